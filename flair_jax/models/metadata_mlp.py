"""The metadata encoder: an MLP, 45 numbers per patch -> 16 for the U-Net's bottleneck."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

# PyTorch's nn.Linear: weights and biases uniform within 1 / sqrt(fan_in).
_linear_kernel = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _linear_bias(fan_in: int) -> nnx.initializers.Initializer:
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def linear(in_features: int, out_features: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer in full float32, initialised as PyTorch initialises it."""
    return nnx.Linear(
        in_features,
        out_features,
        kernel_init=_linear_kernel,
        bias_init=_linear_bias(in_features),
        param_dtype=jnp.float32,
        precision=jax.lax.Precision.HIGHEST,
        rngs=rngs,
    )


class MetadataMLP(nnx.Module):
    """Linear, dropout 0.4, ReLU; three times, 45 -> 64 -> 32 -> 16 (the FLAIR baseline's).

    `enc_mlp` holds the linear layers under 0, 3 and 6, their keys in the PyTorch state dict.
    """

    widths = (64, 32, 16)
    dropout = 0.4

    def __init__(self, in_features: int = 45, *, rngs: nnx.Rngs) -> None:
        layers = {}
        for i, width in enumerate(self.widths):
            layers[str(3 * i)] = linear(in_features, width, rngs=rngs)
            in_features = width
        self.enc_mlp = nnx.Dict(layers)

    def __call__(
        self, metadata: jax.Array, train: bool, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Maps (N, 45) float32 to (N, 16) float32; `dropout_key` is needed when training."""
        if train and dropout_key is None:
            raise ValueError("training a model with metadata needs a dropout_key")
        x = metadata.astype(jnp.float32)
        for i in range(len(self.widths)):
            x = self.enc_mlp[str(3 * i)](x)
            if train and dropout_key is not None:
                key = jax.random.fold_in(dropout_key, i)
                kept = jax.random.bernoulli(key, 1 - self.dropout, x.shape)
                x = jnp.where(kept, x / (1 - self.dropout), 0)
            x = jax.nn.relu(x)
        return x
