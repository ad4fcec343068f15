"""Convolution and batch normalisation as PyTorch defines them, channels last."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

Initializer = Callable[..., jax.Array]

# PyTorch's `kaiming_normal_(mode="fan_out", nonlinearity="relu")`: how torchvision starts a ResNet.
kaiming_normal_fan_out = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
# PyTorch's `kaiming_uniform_(mode="fan_in", nonlinearity="relu")`: bound sqrt(6 / fan_in).
kaiming_uniform_fan_in = nnx.initializers.variance_scaling(2.0, "fan_in", "uniform")
# PyTorch's `xavier_uniform_`: bound sqrt(6 / (fan_in + fan_out)).
xavier_uniform = nnx.initializers.variance_scaling(1.0, "fan_avg", "uniform")


def conv(
    in_channels: int,
    out_channels: int,
    kernel: int,
    *,
    stride: int = 1,
    bias: bool = False,
    kernel_init: Initializer,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A square convolution padded by `kernel // 2` on every side, as PyTorch pads it.

    Flax's "SAME" would pad a strided convolution on the right and bottom only. float32 means
    float32: TPUs and newer GPUs would otherwise multiply in bfloat16 or TF32.
    """
    pad = kernel // 2
    full = jnp.dtype(dtype) == jnp.float32
    return nnx.Conv(
        in_channels,
        out_channels,
        (kernel, kernel),
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        use_bias=bias,
        kernel_init=kernel_init,
        dtype=dtype,
        param_dtype=jnp.float32,
        precision=jax.lax.Precision.HIGHEST if full else None,
        rngs=rngs,
    )


class BatchNorm(nnx.Module):
    """Batch normalisation over (N, H, W) with PyTorch's running statistics.

    `nnx.BatchNorm` keeps the biased running variance and another default momentum; PyTorch's
    running variance is the unbiased one (divided by n - 1), the batch itself is normalised by
    the biased one. Under `jax.jit` with a sharded batch the statistics are those of the global
    batch. Statistics and normalisation are computed in float32 whatever the activations' dtype.

    Attributes:
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

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalises x (N, H, W, C); with `train` by the batch's statistics, which it records."""
        if train:
            y = x.astype(jnp.float32)
            mean = jnp.mean(y, (0, 1, 2))
            var = jnp.mean(jnp.square(y - mean), (0, 1, 2))
            count = x.size // x.shape[-1]
            keep = 1 - self.momentum
            unbiased = var * (count / max(count - 1, 1))
            self.mean[...] = keep * self.mean[...] + self.momentum * jax.lax.stop_gradient(mean)
            self.var[...] = keep * self.var[...] + self.momentum * jax.lax.stop_gradient(unbiased)
        else:
            mean, var = self.mean[...], self.var[...]
        scale = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        shift = self.bias[...] - mean * scale
        return (x.astype(jnp.float32) * scale + shift).astype(x.dtype)
