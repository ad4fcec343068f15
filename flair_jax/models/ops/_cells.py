"""Convolution and pooling of cells, several pixels taken as one, that more than one form uses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.lru_cache
def cell_taps(
    size: int, stride: int, scale: int, before: int, after: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """Which taps of a row of the kernel join which pixels of which cells.

    Args:
        size: taps in a row.
        stride, scale: the map is enlarged by `scale`, then every `stride`-th position is taken.
        before, after: pixels of a cell in the map and in the result.

    Returns:
        (cells, before, after, size) float32 of 0 and 1; and by how many cells the map is padded at
        the left and the right.
    """
    joined = []
    for pixel in range(after):
        for tap in range(size):
            position = (stride * pixel + tap - size // 2) // scale
            joined.append((position // before, position % before, pixel, tap))
    first, last = min(joined)[0], max(joined)[0]
    taps = np.zeros((last - first + 1, before, after, size), np.float32)
    for cell, position, pixel, tap in joined:
        taps[cell - first, position, pixel, tap] = 1
    return taps, (-first, last)


def pool_neighbours(left: jax.Array, middle: jax.Array, right: jax.Array) -> jax.Array:
    """The second half of a 3 x 3 pooling, of the pixels of every second column.

    Args:
        left, middle, right: (N, H, W, C), these pixels' left neighbours, themselves and their
            right neighbours; none negative.

    Returns:
        (N, H / 2, W, C): the largest of the neighbours in three rows, at every second row.
    """
    n, h, w, _ = middle.shape
    rows = _first_largest(_first_largest(left, middle), right)
    upper, lower = jnp.moveaxis(rows.reshape(n, h // 2, 2, w, -1), 2, 0)
    above = jnp.pad(lower[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))
    return _first_largest(_first_largest(above, upper), lower)


def _first_largest(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(b > a, b, a)
