"""Convolution and batch normalisation as PyTorch defines them, channels last.

Feature maps are in the form of the layer's `ops`, see `flair_jax.models.ops`. The shapes given here
are those of the (N, H, W, C) arrays that they represent.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from flair_jax.models.ops import FeatureMap, Ops, plain

Initializer = Callable[..., jax.Array]


def _sampled_as_matrix(
    scale: float, mode: Literal["fan_in", "fan_out"], distribution: Literal["normal", "uniform"]
) -> Initializer:
    """`variance_scaling` of a kernel (height, width, in, out), sampled as a matrix of equal fan.

    The numbers are the same. XLA compiles the sampling of a matrix three times as fast, and
    sampling is half of what a first start takes.
    """
    init_matrix = nnx.initializers.variance_scaling(scale, mode, distribution)

    def init(key: jax.Array, shape: tuple[int, ...], *args: Any, **kwargs: Any) -> jax.Array:
        *window, channels_in, channels_out = shape
        pixels = math.prod(window)
        if mode == "fan_out":
            matrix = channels_in, pixels * channels_out
        else:
            matrix = pixels * channels_in, channels_out
        return init_matrix(key, matrix, *args, **kwargs).reshape(shape)

    return init


# PyTorch's `kaiming_normal_(mode="fan_out", nonlinearity="relu")`: torchvision's for a ResNet.
kaiming_normal_fan_out = _sampled_as_matrix(2.0, "fan_out", "normal")
# PyTorch's `kaiming_uniform_(mode="fan_in", nonlinearity="relu")`: bound sqrt(6 / fan_in).
kaiming_uniform_fan_in = _sampled_as_matrix(2.0, "fan_in", "uniform")
# PyTorch's `xavier_uniform_`: bound sqrt(6 / (fan_in + fan_out)).
xavier_uniform = nnx.initializers.variance_scaling(1.0, "fan_avg", "uniform")


def relu(x: FeatureMap) -> FeatureMap:
    """max(x, 0)."""
    return jax.tree.map(jax.nn.relu, x)


def add(x: FeatureMap, y: FeatureMap) -> FeatureMap:
    """The sum of two maps of the same shape."""
    return jax.tree.map(jnp.add, x, y)


class Conv(nnx.Module):
    """A square convolution padded by `kernel // 2` on every side, as PyTorch pads it.

    "SAME" would pad a strided convolution on the right and bottom only. It is computed in the
    map's dtype.

    Attributes:
        kernel: (k, k, in, out) float32.
        bias: (out,) float32, or None.
        ops: the form in which it is computed.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        bias: bool = False,
        kernel_init: Initializer,
        rngs: nnx.Rngs,
    ) -> None:
        shape = kernel, kernel, in_channels, out_channels
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_channels,), jnp.float32)) if bias else None
        self.stride = stride
        self.ops: Ops = plain

    def __call__(self, x: FeatureMap) -> FeatureMap:
        """Maps (N, H, W, in) to (N, H / stride, W / stride, out).

        Raises:
            ValueError: x has another number of channels.
        """
        self._check(self.ops.channels(x))
        y = self.ops.convolution(x, self.kernel[...], self.stride)
        return y if self.bias is None else self.ops.add_to_rows(y, self.bias[...])

    def upsampled(self, x: FeatureMap, skip: FeatureMap | None) -> FeatureMap:
        """The same for [x doubled by nearest neighbours, skip], which need not be made.

        Args:
            x: (N, H, W, a).
            skip: (N, 2 H, 2 W, in - a), or None.

        Returns:
            (N, 2 H, 2 W, out).

        Raises:
            ValueError: x and skip have another number of channels together.
        """
        self._check(sum(self.ops.channels(part) for part in (x, skip) if part is not None))
        return self.ops.upsampled_convolution(x, skip, self.kernel[...])

    def _check(self, channels: int) -> None:
        expected = self.kernel.shape[2]
        if channels != expected:
            raise ValueError(f"this convolution takes {expected} channels, not {channels}")


class BatchNorm(nnx.Module):
    """Batch normalisation over (N, H, W) with PyTorch's running statistics.

    `nnx.BatchNorm` keeps the biased running variance and another default momentum; PyTorch's
    running variance is the unbiased one (divided by n - 1), the batch itself is normalised by
    the biased one. Under `jax.jit` with a sharded batch the statistics are those of the global
    batch; with `groups` equal to the number of devices, each device normalises its share by
    itself, as PyTorch's DDP does, and the running statistics are averaged over them. Statistics
    and normalisation are computed in float32 whatever the activations' dtype.

    Attributes:
        groups: into how many equal parts a training batch is cut, each with its own statistics.
        scale, bias: (C,) float32 parameters (`weight` and `bias` in PyTorch).
        mean, var: (C,) float32 running statistics (`running_mean`, `running_var`).
        ops: the form in which it is computed.
    """

    epsilon = 1e-5
    momentum = 0.1  # PyTorch's sense: the share of the new batch

    def __init__(self, channels: int) -> None:
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((channels,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((channels,), jnp.float32))
        self.groups = 1
        self.ops: Ops = plain

    def __call__(self, x: FeatureMap, train: bool) -> FeatureMap:
        """Normalises x (N, H, W, C); with `train` by the batch's statistics, which it records.

        Raises:
            ValueError: x has another number of channels.
        """
        channels, expected = self.ops.channels(x), self.scale.shape[0]
        if channels != expected:
            raise ValueError(f"this normalisation takes {expected} channels, not {channels}")
        groups = self.groups if train else 1
        y = jax.tree.map(lambda a: a.astype(jnp.float32).reshape(groups, -1, *a.shape[1:]), x)
        if not train:
            mean, var = self.mean[...][None], self.var[...][None]
        else:
            # Both sums in one pass over the map. Taken around the running mean, not around zero,
            # the second one loses no digits where the mean is far from zero.
            near = self.mean[...]
            offset, square, count = self.ops.moments(y, near)
            mean, var = near + offset, jnp.maximum(square - jnp.square(offset), 0)
            self._record(self.mean, mean)
            self._record(self.var, var * (count / max(count - 1, 1)))
        scale = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        y = self.ops.scale_and_shift(y, scale, self.bias[...] - mean * scale)
        return jax.tree.map(lambda a, like: a.astype(like.dtype).reshape(like.shape), y, x)

    def _record(self, running: nnx.BatchStat, batch: jax.Array) -> None:
        of_batch = jax.lax.stop_gradient(jnp.mean(batch, 0))
        running[...] = (1 - self.momentum) * running[...] + self.momentum * of_batch
