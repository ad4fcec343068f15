"""The FLAIR #1 baseline's U-Net: ResNet34 encoder, five decoder blocks, metadata fusion."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from flair_jax.errors import UserError
from flair_jax.models.choices import FUSIONS, check_size
from flair_jax.models.layers import BatchNorm, Conv, kaiming_uniform_fan_in, relu, xavier_uniform
from flair_jax.models.metadata_mlp import MetadataMLP, linear
from flair_jax.models.ops import FeatureMap, Ops, plain
from flair_jax.models.resnet import ResNet34Encoder, call_block

DECODER_CHANNELS = (256, 128, 64, 32, 16)


class ConvBlock(nnx.List):
    """3x3 convolution, batch normalisation, ReLU; members 0 and 1, as in the state dict."""

    def __init__(self, in_channels: int, channels: int, *, rngs: nnx.Rngs) -> None:
        super().__init__(
            [
                Conv(in_channels, channels, 3, kernel_init=kaiming_uniform_fan_in, rngs=rngs),
                BatchNorm(channels),
            ]
        )

    def __call__(self, x: FeatureMap, train: bool) -> FeatureMap:
        """Maps (N, H, W, in) to (N, H, W, channels)."""
        convolve, normalise = self
        return relu(normalise(convolve(x), train))

    def upsampled(self, x: FeatureMap, skip: FeatureMap | None, train: bool) -> FeatureMap:
        """The same for [x doubled, skip]; see `layers.Conv.upsampled`."""
        convolve, normalise = self
        return relu(normalise(convolve.upsampled(x, skip), train))


class DecoderBlock(nnx.Module):
    """Doubles the map, appends the encoder's map of that size, convolves twice."""

    def __init__(
        self, in_channels: int, skip_channels: int, channels: int, *, rngs: nnx.Rngs
    ) -> None:
        self.conv1 = ConvBlock(in_channels + skip_channels, channels, rngs=rngs)
        self.conv2 = ConvBlock(channels, channels, rngs=rngs)

    def __call__(self, x: FeatureMap, skip: FeatureMap | None = None, *, train: bool) -> FeatureMap:
        """Maps (N, H, W, in) and a skip (N, 2 H, 2 W, s) to (N, 2 H, 2 W, channels)."""
        return self.conv2(self.conv1.upsampled(x, skip, train), train)


class Decoder(nnx.Module):
    """The five decoder blocks, coarsest first; the last has no skip.

    Attributes:
        remat: whether to save memory in training, see `resnet.call_block`.
    """

    def __init__(self, encoder_channels: tuple[int, ...], *, rngs: nnx.Rngs) -> None:
        *skips, before = encoder_channels
        blocks = []
        for channels, skip in zip(DECODER_CHANNELS, [*reversed(skips), 0], strict=True):
            blocks.append(DecoderBlock(before, skip, channels, rngs=rngs))
            before = channels
        self.blocks = nnx.List(blocks)
        self.remat = False

    def __call__(self, features: list[FeatureMap], train: bool) -> FeatureMap:
        """Maps the encoder's maps, finest first, to (N, H, W, 16) at the input's size."""
        call = call_block(train, self.remat)
        *skips, x = features
        for block, skip in zip(self.blocks, [*reversed(skips), None], strict=True):
            x = call(block, x) if skip is None else call(block, x, skip)
        return x


class UNet(nnx.Module):
    """U-Net with a ResNet34 encoder, 24,444,381 parameters at 5 bands and 13 classes.

    The network of the FLAIR #1 baseline (Garioud et al. 2022), which is
    segmentation-models-pytorch's `Unet("resnet34")`. Parameter names are those of its state
    dict. Parameters and statistics are float32, activations and logits have `dtype`.

    Args:
        in_channels: number of bands, 5 in FLAIR (red, green, blue, near infrared, height).
        num_classes: number of output channels, 13 in the baseline.
        metadata_features: length of the metadata vector (45), or 0 for a model without metadata.
        fusion: how its 16 numbers join the bottleneck. "rows", the reference's way, adds them
            along the 16 rows, alike for all columns and channels: for 512 x 512 pixels only, and
            a flipped image keeps its rows' code. "channels" adds a learned vector of 512, alike
            for all pixels: for any size, and the same under flips.
        dtype: of the activations: float32 or bfloat16.
        rngs: source of the initial weights.

    Attributes:
        ops: the form in which it is computed, the plain one at first. To be set on all parts
            together, as `functional.merge_model` does.
    """

    def __init__(
        self,
        in_channels: int = 5,
        num_classes: int = 13,
        *,
        metadata_features: int = 0,
        fusion: str = "rows",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if fusion not in FUSIONS:
            raise ValueError(f"fusion {fusion!r} is none of {FUSIONS}")
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.metadata_features = metadata_features
        self.dtype = dtype
        self.encoder = ResNet34Encoder(in_channels, rngs=rngs)
        self.decoder = Decoder(ResNet34Encoder.out_channels, rngs=rngs)
        self.segmentation_head = nnx.List(
            [
                Conv(
                    DECODER_CHANNELS[-1],
                    num_classes,
                    3,
                    bias=True,
                    kernel_init=xavier_uniform,
                    rngs=rngs,
                )
            ]
        )
        self.fusion = fusion
        self.ops: Ops = plain
        if metadata_features:
            self.enc = MetadataMLP(metadata_features, rngs=rngs)
            if fusion == "channels":
                width = ResNet34Encoder.out_channels[-1]
                self.enc_channels = linear(MetadataMLP.widths[-1], width, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        metadata: jax.Array | None = None,
        *,
        train: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> FeatureMap:
        """Logits of every pixel.

        Args:
            x: (N, H, W, bands) normalised floats; H and W multiples of 32.
            metadata: (N, features) float32 encoded metadata, for a model that takes it.
            train: normalise by the batch's statistics (and record them), and drop out.
            dropout_key: random key for the metadata's dropout, needed when both apply.

        Returns:
            (N, H, W, classes) of the activations' dtype, a map of `ops`.

        Raises:
            UserError: the size, the number of bands or the metadata do not fit the model.
        """
        self._check(x, metadata)
        features = self.encoder(self.ops.enter(x.astype(self.dtype)), train)
        if metadata is not None:
            code = self.enc(metadata, train, dropout_key)
            features[-1] = self.fuse(features[-1], code)
        return self.segmentation_head[0](self.decoder(features, train))

    def fuse(self, bottleneck: FeatureMap, code: jax.Array) -> FeatureMap:
        """Adds a metadata code (N, 16) to a bottleneck (N, H / 32, W / 32, 512)."""
        if self.fusion == "channels":
            added = self.enc_channels(code)[:, None, None, :]
        else:
            added = code[:, :, None, None]
        return self.ops.add_to_rows(bottleneck, added)

    def _check(self, x: jax.Array, metadata: jax.Array | None) -> None:
        _, height, width, bands = x.shape
        if bands != self.in_channels:
            raise UserError(f"this model takes {self.in_channels} bands, the image has {bands}")
        if (metadata is not None) != bool(self.metadata_features):
            has, given = ("takes", "none was") if metadata is None else ("takes no", "some was")
            raise UserError(f"this model {has} metadata, and {given} given")
        check_size(height, width, by_rows=metadata is not None and self.fusion == "rows")
