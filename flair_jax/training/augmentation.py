"""Random crops, flips, rotations and radiometry of training patches, on the device, inside jit.

Every random choice is drawn for the whole global batch from one key, so that it depends on the
seed, the step and the sample's index in the batch, and not on how many devices share the batch.
"""

import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp


def random_crop(
    key: jax.Array, image: jax.Array, mask: jax.Array, size: int
) -> tuple[jax.Array, jax.Array]:
    """Cuts a random `size` x `size` square out of each image, the same out of its mask.

    Args:
        key: random key.
        image: (N, H, W, bands) uint8.
        mask: (N, H, W) uint8.
        size: side of the square in pixels, at most H and W.
    """
    n, height, width, bands = image.shape
    top_key, left_key = jax.random.split(key)
    top = jax.random.randint(top_key, (n,), 0, height - size + 1)
    left = jax.random.randint(left_key, (n,), 0, width - size + 1)

    def cut(image: jax.Array, mask: jax.Array, top: jax.Array, left: jax.Array) -> tuple:
        return (
            jax.lax.dynamic_slice(image, (top, left, 0), (size, size, bands)),
            jax.lax.dynamic_slice(mask, (top, left), (size, size)),
        )

    return jax.vmap(cut)(image, mask, top, left)


def augment(
    key: jax.Array, image: jax.Array, mask: jax.Array, probability: Mapping[str, float]
) -> tuple[jax.Array, jax.Array]:
    """Flips and rotates each image at random, its mask alike.

    As the reference does with albumentations: a vertical flip, then a horizontal flip, then a
    rotation by 0, 90, 180 or 270 degrees, each happening with its own probability.

    Args:
        key: random key.
        image: (N, S, S, bands), square.
        mask: (N, S, S).
        probability: of `vertical_flip`, `horizontal_flip` and `rotation`.
    """
    if image.shape[1] != image.shape[2]:
        raise ValueError(f"rotations need square images, not {image.shape[1:3]}")
    n = image.shape[0]
    keys = jax.random.split(key, 4)
    vertical = jax.random.bernoulli(keys[0], probability["vertical_flip"], (n,))
    horizontal = jax.random.bernoulli(keys[1], probability["horizontal_flip"], (n,))
    rotated = jax.random.bernoulli(keys[2], probability["rotation"], (n,))
    turns = jnp.where(rotated, jax.random.randint(keys[3], (n,), 0, 4), 0)
    # A turn by 90 degrees counter-clockwise is a transposition, then a vertical flip; one by 180
    # degrees is both flips. So a flip before, at most one transposition, and a flip after do it.
    quarter, half = turns % 2 == 1, turns >= 2
    return (
        _transform(image, vertical, horizontal, quarter, half),
        _transform(mask, vertical, horizontal, quarter, half),
    )


def radiometric_bands(bands: Sequence[str], unchanged: Sequence[str]) -> list[str]:
    """The bands that `augment_radiometry` changes: those without any of some words in their names.

    Args:
        bands: of the model, such as "red" and "dsm_metres".
        unchanged: words, in lower case, such as "dsm".
    """
    words = [set(re.split(r"[\W_]+", name.lower())) for name in bands]
    return [name for name, of in zip(bands, words, strict=True) if of.isdisjoint(unchanged)]


def augment_radiometry(
    key: jax.Array, image: jax.Array, bands: Sequence[bool], limits: Mapping[str, float]
) -> jax.Array:
    """Changes gamma, contrast and brightness of each band of each image at random, in this order.

    With v in 0 to 255 and m its mean over the band of the image, pixels that are 0 in all bands
    left out, as padding and NoData are; they stay 0:

        v = 255 (v / 255)^exp(g);  v = m + exp(c) (v - m);  v = v + 255 b;  v is clipped to 0..255

    g, c and b are drawn uniformly from within the limits, for every band by itself.

    Args:
        key: random key.
        image: (N, H, W, bands) uint8.
        bands: whether each is changed, see `radiometric_bands`.
        limits: of `gamma`, `contrast` and `brightness`, each from 0; the largest absolute value.

    Returns:
        (N, H, W, bands) float32, not rounded.
    """
    shape = image.shape[0], 1, 1, image.shape[3]
    changed = jnp.asarray(bands, jnp.float32)
    gamma, contrast, brightness = (
        changed * limits[name] * jax.random.uniform(each, shape, minval=-1.0, maxval=1.0)
        for each, name in zip(
            jax.random.split(key, 3), ("gamma", "contrast", "brightness"), strict=True
        )
    )
    values = image.astype(jnp.float32)
    filled = jnp.any(image > 0, -1, keepdims=True)
    new = 255 * (values / 255) ** jnp.exp(gamma)
    total = jnp.sum(new, (1, 2), keepdims=True, where=filled)
    mean = total / jnp.maximum(jnp.sum(filled, (1, 2), keepdims=True), 1)
    new = mean + jnp.exp(contrast) * (new - mean)
    new = jnp.clip(new + 255 * brightness, 0, 255)
    return jnp.where(filled & (changed > 0), new, values)


def _transform(
    x: jax.Array, vertical: jax.Array, horizontal: jax.Array, quarter: jax.Array, half: jax.Array
) -> jax.Array:
    def where(choice: jax.Array, yes: jax.Array, no: jax.Array) -> jax.Array:
        return jnp.where(choice.reshape(-1, *[1] * (x.ndim - 1)), yes, no)

    x = where(vertical ^ half, x[:, ::-1], x)
    x = where(horizontal ^ half, x[:, :, ::-1], x)
    return where(quarter, jnp.swapaxes(x, 1, 2)[:, ::-1], x)
