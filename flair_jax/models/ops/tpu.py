"""Folded rows: neighbouring pixels of a row side by side in the channels.

A TPU keeps channels in vectors of 128 lanes and pads what has fewer: a map of 16 channels takes,
and moves, eight times its size, and memory traffic is what bounds the U-Net there. Folded by r, a
map (N, H, W, C) is (N, H, W / r, r C): the same numbers in the same order, r neighbouring pixels
making up a cell. Its convolutions are convolutions of cells whose kernels hold the given kernel's
taps and zeros: exactly the same sums, in full lanes. Every function here reads the fold off the
shapes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint

LANES = 128  # channels that a TPU moves at once

# Nearest-neighbour doubling, then three taps, is four taps on the rows with zeros between them.
_TAPS_OF_DOUBLED = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]], np.float32)


def fold(x: jax.Array, pixels: int) -> jax.Array:
    """(N, H, W, C) -> (N, H, W / pixels, pixels C)."""
    n, h, w, c = x.shape
    return x.reshape(n, h, w // pixels, pixels * c)


def unfold(x: jax.Array, channels: int) -> jax.Array:
    """The inverse of `fold`: (N, H, W / r, r channels) -> (N, H, W, channels)."""
    n, h, _, _ = x.shape
    return x.reshape(n, h, -1, channels)


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    doubled: bool = False,
) -> jax.Array:
    """A convolution of a folded map, padded by half the kernel on every side.

    Args:
        x: (N, H, W / r, r in), r = 1 for a map that is not folded.
        kernel: (k, k, in, out) float32, of the map itself.
        stride: 1 or 2.
        doubled: whether the map is doubled first, by nearest neighbours, to 2 H x 2 W; k is 3.

    Returns:
        (N, H', W / r, s out): the cells stay, so the result is folded by s = r / stride, or
        s = 2 r where the map is doubled. H' is H / stride, or 2 H.
    """
    size, _, inputs, outputs = kernel.shape
    pad, scale = size // 2, 2 if doubled else 1
    before = x.shape[-1] // inputs
    after = before * scale // stride
    taps, columns = cell_taps(size, stride, scale, before, after)
    # Every entry of the new kernel is zero, a given tap or a sum of some: no product is rounded.
    exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    kernel = exact("dqpk,hkio->hdqipo", taps, kernel)
    kernel = kernel.reshape(size, len(taps), before * inputs, after * outputs)
    rows, between = (pad, pad), 1
    if doubled:
        kernel = exact("tk,kdio->tdio", _TAPS_OF_DOUBLED, kernel)
        rows, between = (2, 2), 2
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (stride, 1),
        (rows, columns),
        lhs_dilation=(between, 1),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=full_precision(x),
    )


def full_precision(x: jax.Array) -> jax.lax.Precision | None:
    """The precision in which products of float32 are float32's, on every platform."""
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None


@functools.lru_cache
def cell_taps(
    size: int, stride: int, scale: int, before: int, after: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """Which taps of a row of the kernel join which pixels of which cells.

    Args:
        size: taps in a row.
        stride, scale: the map is enlarged by `scale`, then every `stride`-th place is taken.
        before, after: pixels of a cell in the map and in the result.

    Returns:
        (cells, before, after, size) float32 of 0 and 1; and by how many cells the map is padded at
        the left and the right.
    """
    found = []
    for pixel in range(after):
        for tap in range(size):
            place = (stride * pixel + tap - size // 2) // scale
            found.append((place // before, place % before, pixel, tap))
    first, last = min(found)[0], max(found)[0]
    taps = np.zeros((last - first + 1, before, after, size), np.float32)
    for cell, place, pixel, tap in found:
        taps[cell - first, place, pixel, tap] = 1
    return taps, (-first, last)


def max_pool(x: jax.Array, channels: int) -> jax.Array:
    """The largest of every 3 x 3 pixels, every second row and pixel; as `nnx.max_pool` padded by 1.

    Args:
        x: (N, H, W / r, r channels) without negative values, r even; past the border it is taken
            as 0.
        channels: of a pixel.

    Returns:
        (N, H / 2, W / r, r / 2 channels). Where values are equal, the gradient is the first one's,
        row by row, as it is PyTorch's.
    """
    folded = x.shape[-1]
    # Lanes are moved by products with zeros and ones: slices of half a vector would be copied.
    thirds = jax.lax.conv_general_dilated(
        x,
        jnp.asarray(_neighbours(folded // channels, channels), x.dtype),
        (1, 1),
        ((0, 0), (1, 0)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=full_precision(x),
    )
    return largest_of_rows(*jnp.split(thirds, 3, -1))


def largest_of_rows(left: jax.Array, middle: jax.Array, right: jax.Array) -> jax.Array:
    """The second half of a pooling: the largest of three neighbours, of every second row's three.

    Args:
        left, middle, right: (N, H, W, C), values to be compared, none negative.

    Returns:
        (N, H / 2, W, C).
    """
    n, h, w, _ = middle.shape
    rows = _first_largest(_first_largest(left, middle), right)
    upper, lower = jnp.moveaxis(rows.reshape(n, h // 2, 2, w, -1), 2, 0)
    above = jnp.pad(lower[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))
    return _first_largest(_first_largest(above, upper), lower)


@functools.lru_cache
def _neighbours(pixels: int, channels: int) -> np.ndarray:
    """The kernel (1, 2, pixels channels, 3 pixels / 2 channels) that `max_pool` begins with.

    Of a cell and the one before it, it takes the left neighbours of every second pixel, these
    pixels, and their right neighbours.
    """
    taken = np.zeros((2, pixels, 3, pixels // 2), np.float32)
    for i in range(pixels // 2):
        for which in range(3):
            place = 2 * i - 1 + which
            taken[int(place >= 0), place % pixels, which, i] = 1
    kernel = np.einsum("dqwi,ab->dqawib", taken, np.eye(channels, dtype=np.float32))
    return kernel.reshape(1, 2, pixels * channels, -1)


def _first_largest(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(b > a, b, a)


def planes(logits: jax.Array, classes: int) -> jax.Array:
    """Logits with an axis for the classes that is not one of lanes.

    Args:
        logits: (N, H, W / r, r classes).
        classes: of a pixel.

    Returns:
        (N, r, classes, H, W / r), of which `plane` is one class's pixels.
    """
    n, h, w, folded = logits.shape
    apart = jnp.transpose(logits, (0, 3, 1, 2)).reshape(n, folded // classes, classes, h, w)
    return lay_out(apart)


def lay_out(apart: jax.Array) -> jax.Array:
    """Keeps what `planes` gives, or a gradient of it, in memory with rows in the lanes.

    Left to itself the compiler keeps the classes there, and copies what is the same for all of
    them once for each.
    """
    return with_layout_constraint(apart, Layout(major_to_minor=(0, 1, 2, 4, 3)))


def best_class(logits: jax.Array, classes: int) -> jax.Array:
    """(N, H, W / r, r classes) -> (N, H, W) int32: the class of each pixel's largest logit."""
    n, h = logits.shape[:2]
    if logits.shape[-1] == classes:
        return jnp.argmax(logits, -1)
    best = jnp.argmax(planes(logits, classes), 2).astype(jnp.int32)
    return jnp.transpose(best, (0, 2, 3, 1)).reshape(n, h, -1)


def plane(labels: jax.Array, pixels: int) -> jax.Array:
    """(N, H, W) -> (N, pixels, H, W / pixels), in the order of `planes`."""
    n, h, w = labels.shape
    return jnp.transpose(labels.reshape(n, h, w // pixels, pixels), (0, 3, 1, 2))
