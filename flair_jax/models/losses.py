"""The weighted cross-entropy, with both of the reference's normalisations."""

import functools

import jax
import jax.numpy as jnp

from flair_jax.models.choices import LOSS_NORMALIZATIONS
from flair_jax.models.ops import FeatureMap, Ops, plain


def cross_entropy_sums(
    logits: FeatureMap,
    labels: jax.Array,
    weights: jax.Array,
    normalization: str,
    ops: Ops = plain,
) -> tuple[jax.Array, jax.Array]:
    """Numerator and denominator of the loss for each sample; the loss is sum / sum.

    A sum of a one-hot product: gathers by label are slow on TPU.

    Args:
        logits: (N, H, W, classes) floats, a map of `ops`.
        labels: (N, H, W) integers; a label outside the classes counts in neither of the two.
        weights: (classes,) float32.
        normalization: "pixels" divides by the number of pixels, as the challenge's code did (its
            targets were one-hot); "weights" by the sum of the pixels' weights, as PyTorch does
            with class indices, and the later code.
        ops: the form of the logits.

    Returns:
        Two arrays (N,) float32.
    """
    if normalization not in LOSS_NORMALIZATIONS:
        raise ValueError(f"loss normalization {normalization!r} is none of {LOSS_NORMALIZATIONS}")
    values, labels, axis = ops.class_layout(logits, labels)
    total = _weighted_sums(values, labels, weights, axis)
    counted = jnp.ones_like(weights) if normalization == "pixels" else weights
    return total, jnp.sum(_one_hot(labels, counted, axis), range(1, values.ndim))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _weighted_sums(
    logits: jax.Array, labels: jax.Array, weights: jax.Array, axis: int
) -> jax.Array:
    """Each sample's sum of -w log p over its pixels; the classes lie along `axis` of the logits.

    The gradient is w (p - one-hot). Written out, it needs the logits and one more number per pixel
    from the forward pass, where the chain rule would keep p and log p of every class.
    """
    return _forward(logits, labels, weights, axis)[0]


def _forward(
    logits: jax.Array, labels: jax.Array, weights: jax.Array, axis: int
) -> tuple[jax.Array, tuple]:
    values = logits.astype(jnp.float32)
    normaliser = jax.nn.logsumexp(values, axis, keepdims=True)
    weighted = _one_hot(labels, weights, axis)
    total = jnp.sum(weighted * (normaliser - values), range(1, values.ndim))
    return total, (logits, labels, weights, normaliser)


def _backward(axis: int, kept: tuple, cotangent: jax.Array) -> tuple[jax.Array, None, None]:
    logits, labels, weights, normaliser = kept
    probability = jnp.exp(logits.astype(jnp.float32) - normaliser)
    weighted = _one_hot(labels, weights, axis)
    gradient = probability * jnp.sum(weighted, axis, keepdims=True) - weighted
    gradient *= cotangent.reshape(-1, *[1] * (logits.ndim - 1))
    return gradient.astype(logits.dtype), None, None


_weighted_sums.defvjp(_forward, _backward)


def _one_hot(labels: jax.Array, weights: jax.Array, axis: int) -> jax.Array:
    """Labels with one entry along `axis` -> the weight of the class at its index, 0 elsewhere."""
    shape = [1] * labels.ndim
    shape[axis] = len(weights)
    classes = jnp.arange(len(weights), dtype=labels.dtype).reshape(shape)
    return jnp.where(labels == classes, weights.reshape(shape), 0.0)


def cross_entropy(
    logits: FeatureMap,
    labels: jax.Array,
    weights: jax.Array,
    normalization: str,
    ops: Ops = plain,
) -> jax.Array:
    """The loss of a batch, () float32; arguments as of `cross_entropy_sums`."""
    total, count = cross_entropy_sums(logits, labels, weights, normalization, ops)
    return jnp.sum(total) / jnp.maximum(jnp.sum(count), 1e-12)
