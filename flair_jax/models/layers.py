"""Convolution and batch normalisation as PyTorch defines them, channels last.

Both take maps with folded rows, see `flair_jax.models.ops.tpu`, and read the fold off the shape.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from flair_jax.models.forms import PLAIN
from flair_jax.models.ops import cpu, tpu

Initializer = Callable[..., jax.Array]


def _drawn_as_matrix(
    scale: float, mode: Literal["fan_in", "fan_out"], distribution: Literal["normal", "uniform"]
) -> Initializer:
    """`variance_scaling` of a kernel (height, width, in, out), drawn as a matrix of the same fan.

    The numbers are the same ones. XLA compiles the draw of a matrix three times as fast, and the
    draws are half of what a first start takes.
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


# PyTorch's `kaiming_normal_(mode="fan_out", nonlinearity="relu")`: how torchvision starts a ResNet.
kaiming_normal_fan_out = _drawn_as_matrix(2.0, "fan_out", "normal")
# PyTorch's `kaiming_uniform_(mode="fan_in", nonlinearity="relu")`: bound sqrt(6 / fan_in).
kaiming_uniform_fan_in = _drawn_as_matrix(2.0, "fan_in", "uniform")
# PyTorch's `xavier_uniform_`: bound sqrt(6 / (fan_in + fan_out)).
xavier_uniform = nnx.initializers.variance_scaling(1.0, "fan_avg", "uniform")


class Conv(nnx.Module):
    """A square convolution padded by `kernel // 2` on every side, as PyTorch pads it.

    "SAME" would pad a strided convolution on the right and bottom only. float32 means float32: TPUs
    and newer GPUs would otherwise multiply in bfloat16 or TF32.

    Attributes:
        kernel: (k, k, in, out) float32.
        bias: (out,) float32, or None.
        form: how it is computed, see `forms`.
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
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        shape = kernel, kernel, in_channels, out_channels
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_channels,), jnp.float32)) if bias else None
        self.stride = stride
        self.dtype = dtype
        self.form = PLAIN

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, in) to (N, H / stride, W / stride, out); folded maps to folded ones."""
        y = self._convolve(x, self.kernel[...])
        if self.bias is None:
            return y
        bias = jnp.tile(self.bias[...], y.shape[-1] // self.bias.shape[-1])
        return y + bias.astype(y.dtype)

    def of_doubled(self, x: jax.Array, skip: jax.Array | None, channels: int) -> jax.Array:
        """The same as of [x doubled by nearest neighbours, skip], which need not be made.

        A convolution of joined channels is a sum of two.

        Args:
            x, skip: maps; if folded, the result is folded as the skip is, or twice as much as x.
            channels: of x, where it is not folded.
        """
        kernel, x = self.kernel[...], x.astype(self.dtype)
        of_x, of_skip = kernel[:, :, :channels], kernel[:, :, channels:]
        if self.form.on_cpu:
            y = cpu.convolve_doubled(x, of_x)
        else:
            y = tpu.convolve(x, of_x, doubled=True)
        return y if skip is None else y + self._convolve(skip, of_skip)

    def _convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        x = x.astype(self.dtype)
        if x.shape[-1] > kernel.shape[2]:
            return tpu.convolve(x, kernel, stride=self.stride)
        if self.form.on_cpu:
            return cpu.convolve(x, kernel, self.stride)
        pad = kernel.shape[0] // 2
        return jax.lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            (self.stride, self.stride),
            ((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=tpu.full_precision(x),
        )


class BatchNorm(nnx.Module):
    """Batch normalisation over (N, H, W) with PyTorch's running statistics.

    `nnx.BatchNorm` keeps the biased running variance and another default momentum; PyTorch's
    running variance is the unbiased one (divided by n - 1), the batch itself is normalised by
    the biased one. Under `jax.jit` with a sharded batch the statistics are those of the global
    batch; with `groups` as many as devices, each device normalises its own share by itself, as
    PyTorch's DDP does, and the running statistics are averaged over them. Statistics and
    normalisation are computed in float32 whatever the activations' dtype.

    Attributes:
        groups: into how many equal parts a training batch is cut, each with statistics of its own.
        scale, bias: (C,) float32 parameters (`weight` and `bias` in PyTorch).
        mean, var: (C,) float32 running statistics (`running_mean`, `running_var`).
    """

    epsilon = 1e-5
    momentum = 0.1  # PyTorch's sense: the share of the new batch

    def __init__(self, channels: int) -> None:
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((channels,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((channels,), jnp.float32))
        self.groups = 1

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalises x (N, H, W, C); with `train` by the batch's statistics, which it records.

        x may be folded.
        """
        if not train:
            scale, bias = self._scale_and_bias(self.mean[...], self.var[...])
            return (x.astype(jnp.float32) * _tile(scale, x) + _tile(bias, x)).astype(x.dtype)
        y = x.astype(jnp.float32).reshape(self.groups, -1, *x.shape[1:])
        # Both sums in one pass over the map. Taken from the running mean, not from zero, the
        # second one loses no digits where the mean is far from zero.
        near = self.mean[...]
        offset = self._means(y - _tile(near, y))
        square = self._means(jnp.square(y - _tile(near, y)))
        mean, var = near + offset, jnp.maximum(square - jnp.square(offset), 0)
        count = x.size // (self.groups * self.scale.shape[0])
        self._record(self.mean, mean)
        self._record(self.var, var * (count / max(count - 1, 1)))
        scale, bias = (_tile(v[:, None, None, None], y) for v in self._scale_and_bias(mean, var))
        return (y * scale + bias).astype(x.dtype).reshape(x.shape)

    def _means(self, y: jax.Array) -> jax.Array:
        """(groups, N, H, W / r, r C) -> (groups, C), over all pixels."""
        of_lanes = jnp.mean(y, (1, 2, 3))
        return jnp.mean(of_lanes.reshape(self.groups, -1, self.scale.shape[0]), 1)

    def _scale_and_bias(self, mean: jax.Array, var: jax.Array) -> tuple[jax.Array, jax.Array]:
        scale = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        return scale, self.bias[...] - mean * scale

    def _record(self, running: nnx.BatchStat, batch: jax.Array) -> None:
        of_batch = jax.lax.stop_gradient(jnp.mean(batch, 0))
        running[...] = (1 - self.momentum) * running[...] + self.momentum * of_batch


def _tile(vector: jax.Array, like: jax.Array) -> jax.Array:
    """(..., C) -> (..., r C), for all pixels of a folded map's cells."""
    times = like.shape[-1] // vector.shape[-1]
    return vector if times == 1 else jnp.tile(vector, times)
