"""The weighted cross-entropy, with both of the reference's ways to divide it."""

import jax
import jax.numpy as jnp

NORMALIZATIONS = ("pixels", "weights")


def cross_entropy_sums(
    logits: jax.Array, labels: jax.Array, weights: jax.Array, normalization: str
) -> tuple[jax.Array, jax.Array]:
    """Numerator and denominator of the loss for each sample; the loss is sum / sum.

    A sum of a one-hot product: gathers by label are slow on TPU.

    Args:
        logits: (N, H, W, classes) float32.
        labels: (N, H, W) integers; a label outside the classes counts neither above nor below.
        weights: (classes,) float32.
        normalization: "pixels" divides by the number of pixels, as the challenge's code did (its
            targets were one-hot); "weights" by the sum of the pixels' weights, as PyTorch does
            with class indices, and the later code.

    Returns:
        Two arrays (N,) float32.
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"loss normalization {normalization!r} is none of {NORMALIZATIONS}")
    one_hot = labels[..., None] == jnp.arange(logits.shape[-1], dtype=labels.dtype)
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    weighted = jnp.where(one_hot, weights, 0.0)
    total = -jnp.sum(weighted * log_probabilities, (1, 2, 3))
    counted = one_hot if normalization == "pixels" else weighted
    return total, jnp.sum(counted, (1, 2, 3), dtype=jnp.float32)


def cross_entropy(
    logits: jax.Array, labels: jax.Array, weights: jax.Array, normalization: str
) -> jax.Array:
    """The loss of a batch, () float32; arguments as of `cross_entropy_sums`."""
    total, count = cross_entropy_sums(logits, labels, weights, normalization)
    return jnp.sum(total) / jnp.maximum(jnp.sum(count), 1e-12)
