"""Preprocessing on the device, inside jit: mask values -> labels, normalisation of images."""

import jax
import jax.numpy as jnp

from flair_jax.data.nomenclature import IGNORED, Nomenclature
from flair_jax.models.spec import ModelSpec


def to_labels(mask: jax.Array, nomenclature: Nomenclature) -> jax.Array:
    """Mask values -> labels of a nomenclature.

    By comparisons, not by a table: a gather for every pixel is slow on TPU.

    Args:
        mask: (N, H, W) uint8, values as in the mask files.
        nomenclature: which value belongs to which class.

    Returns:
        (N, H, W) uint8; 255 for unlisted values.
    """
    table = nomenclature.labels
    largest = max(value for value, _ in nomenclature.names_of_values)
    labels = mask - jnp.uint8(1)  # as it mostly is; 0 becomes IGNORED
    for value in range(largest + 1):
        if table[value] != (value - 1) % 256:
            labels = jnp.where(mask == value, table[value], labels)
    return jnp.where(mask > largest, jnp.uint8(IGNORED), labels)


def normalise(image: jax.Array, spec: ModelSpec) -> jax.Array:
    """Digital numbers -> the network's input, by the normalisation of the model's spec.

    Args:
        image: (N, H, W, bands) uint8.
        spec: its `normalization` is "scaling" (divides by 255) or "custom" (subtracts the bands'
            means and divides by their standard deviations).

    Returns:
        (N, H, W, bands) of the spec's dtype; the arithmetic is float32.
    """
    values = image.astype(jnp.float32)
    if spec.normalization == "scaling":
        values = values / 255.0
    elif spec.normalization == "custom":
        means = jnp.asarray(spec.means, jnp.float32)
        values = (values - means) / jnp.asarray(spec.stds, jnp.float32)
    else:
        raise ValueError(f"normalisation {spec.normalization!r} is not 'scaling' or 'custom'")
    return values.astype(spec.dtype)
