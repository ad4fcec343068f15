"""ResNet34 as an encoder of five feature maps (He et al. 2015, torchvision's form)."""

import functools
from collections.abc import Callable

from flax import nnx

from flair_jax.models.layers import BatchNorm, Conv, add, kaiming_normal_fan_out, relu
from flair_jax.models.ops import FeatureMap, Ops, plain

STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # channels and blocks of each stage


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut; the shortcut is projected where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int, *, rngs: nnx.Rngs) -> None:
        convolution = functools.partial(Conv, kernel_init=kaiming_normal_fan_out, rngs=rngs)
        self.conv1 = convolution(in_channels, channels, 3, stride=stride)
        self.bn1 = BatchNorm(channels)
        self.conv2 = convolution(channels, channels, 3)
        self.bn2 = BatchNorm(channels)
        self.projects = stride != 1 or in_channels != channels
        if self.projects:
            self.downsample = nnx.List(
                [convolution(in_channels, channels, 1, stride=stride), BatchNorm(channels)]
            )

    def __call__(self, x: FeatureMap, train: bool) -> FeatureMap:
        """Maps (N, H, W, in) to (N, H / stride, W / stride, channels)."""
        y = relu(self.bn1(self.conv1(x), train))
        y = self.bn2(self.conv2(y), train)
        if self.projects:
            project, normalise = self.downsample
            x = normalise(project(x), train)
        return relu(add(y, x))


def call_block(train: bool, remat: bool) -> Callable[..., FeatureMap]:
    """How a block is called: `call(block, *maps)`.

    With `remat` its inner maps are not kept for the backward pass but computed again there: less
    memory, about a third more arithmetic.
    """

    def call(block: nnx.Module, *maps: FeatureMap) -> FeatureMap:
        return block(*maps, train=train)

    return nnx.remat(call) if remat else call


class ResNet34Encoder(nnx.Module):
    """ResNet34 without its classifier. Attribute names are those of torchvision's state dict.

    Attributes:
        remat: whether to save memory in training, see `call_block`.
        ops: the form in which it is computed.
    """

    out_channels = (64, 64, 128, 256, 512)

    def __init__(self, in_channels: int, *, rngs: nnx.Rngs) -> None:
        self.conv1 = Conv(
            in_channels, 64, 7, stride=2, kernel_init=kaiming_normal_fan_out, rngs=rngs
        )
        self.bn1 = BatchNorm(64)
        before = 64
        for number, (channels, blocks) in enumerate(STAGES, start=1):
            stride = 1 if number == 1 else 2
            stage = []
            for i in range(blocks):
                stage.append(BasicBlock(before, channels, stride if i == 0 else 1, rngs=rngs))
                before = channels
            setattr(self, f"layer{number}", nnx.List(stage))
        self.remat = False
        self.ops: Ops = plain

    def __call__(self, x: FeatureMap, train: bool) -> list[FeatureMap]:
        """Returns the maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of (N, H, W, bands), finest first."""
        features = [relu(self.bn1(self.conv1(x), train))]
        call = call_block(train, self.remat)
        x = self.ops.max_pool(features[0])
        for number in range(1, len(STAGES) + 1):
            for block in getattr(self, f"layer{number}"):
                x = call(block, x)
            features.append(x)
        return features
