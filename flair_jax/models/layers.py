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
        """Normalises x (N, H, W, C); with `train` by the batch's statistics, which it records."""
        if not train:
            mean, var = self.mean[...], self.var[...]
            return self._normalise(x.astype(jnp.float32), mean, var).astype(x.dtype)
        y = x.astype(jnp.float32).reshape(self.groups, -1, *x.shape[1:])
        mean = jnp.mean(y, (1, 2, 3), keepdims=True)
        var = jnp.mean(jnp.square(y - mean), (1, 2, 3), keepdims=True)
        count = x.size // (self.groups * x.shape[-1])
        self._record(self.mean, mean)
        self._record(self.var, var * (count / max(count - 1, 1)))
        return self._normalise(y, mean, var).astype(x.dtype).reshape(x.shape)

    def _normalise(self, x: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
        scale = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        return x * scale + (self.bias[...] - mean * scale)

    def _record(self, running: nnx.BatchStat, batch: jax.Array) -> None:
        of_batch = jax.lax.stop_gradient(jnp.mean(batch.reshape(self.groups, -1), 0))
        running[...] = (1 - self.momentum) * running[...] + self.momentum * of_batch
