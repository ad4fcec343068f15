"""The TPU's form of the network's operations: packed pixels.

A TPU keeps channels in vectors of 128 lanes and pads what has fewer: a map of 16 channels takes,
and moves, eight times its size, and memory traffic is what bounds the U-Net there. So r
neighbouring pixels of a row are packed into the channels (space-to-depth along the width): a map
(N, H, W, C) is kept as (N, H, W / r, r C), the same numbers in the same order, r pixels making up
a cell. Its convolutions are convolutions of cells whose kernels hold the given kernel's taps and
zeros: exactly the same sums, in full lanes. The functions are described in
`flair_jax.models.ops.Ops`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint

from flair_jax.models.ops import plain
from flair_jax.models.ops._cells import cell_taps, pool_neighbours
from flair_jax.models.ops.plain import count_pairs

__all__ = [
    "Packed",
    "add_to_rows",
    "best_class",
    "channels",
    "class_layout",
    "convolution",
    "count_pairs",
    "enter",
    "leave",
    "max_pool",
    "moments",
    "pack",
    "scale_and_shift",
    "upsampled_convolution",
]

LANES = 128  # channels that a TPU moves at once
NARROWEST = 16  # channels of the U-Net's maps at the image's size

# Nearest-neighbour doubling, then three taps, is four taps on the rows with zeros between them.
_TAPS_OF_DOUBLED = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]], np.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """A map (N, H, W, C) with r neighbouring pixels of a row packed into the channels.

    Attributes:
        array: (N, H, W / r, r C).
        channels: C.
    """

    array: jax.Array
    channels: int = dataclasses.field(metadata={"static": True})

    @property
    def pixels(self) -> int:
        """r."""
        return self.array.shape[-1] // self.channels


def enter(image: jax.Array) -> Packed:
    # As many pixels as fill the lanes in the U-Net's last maps. Each halving of the size halves
    # the number, each doubling doubles it again.
    return pack(image, LANES // NARROWEST)


def pack(x: jax.Array, pixels: int) -> Packed:
    """Packs so many pixels of (N, H, W, C), a divisor of W."""
    n, h, w, c = x.shape
    return Packed(x.reshape(n, h, w // pixels, pixels * c), c)


def leave(x: Packed) -> jax.Array:
    n, h, _, _ = x.array.shape
    return x.array.reshape(n, h, -1, x.channels)


def channels(x: Packed) -> int:
    return x.channels


def convolution(x: Packed, kernel: jax.Array, stride: int = 1) -> Packed:
    if x.pixels == 1:
        return Packed(plain.convolution(x.array, kernel, stride), kernel.shape[-1])
    return _cell_convolution(x, kernel, stride=stride)


def upsampled_convolution(x: Packed, skip: Packed | None, kernel: jax.Array) -> Packed:
    outputs = kernel.shape[-1]
    if skip is not None and skip.pixels == 1:
        return Packed(plain.upsampled_convolution(x.array, skip.array, kernel), outputs)
    # A convolution of concatenated channels is a sum of two.
    of_x, of_skip = jnp.split(kernel, [x.channels], axis=2)
    upsampled = _cell_convolution(x, of_x, doubled=True)
    if skip is None:
        return upsampled
    return Packed(upsampled.array + convolution(skip, of_skip).array, outputs)


def _cell_convolution(
    x: Packed, kernel: jax.Array, *, stride: int = 1, doubled: bool = False
) -> Packed:
    """A convolution of a packed map, padded by half the kernel on every side.

    Args:
        x: (N, H, W, in), packed by r.
        kernel: (k, k, in, out) float32.
        stride: 1 or 2; r is a multiple of it.
        doubled: whether the map is doubled first, by nearest neighbours, to 2 H x 2 W; k is 3.

    Returns:
        (N, H / stride, W / stride, out), or (N, 2 H, 2 W, out). The number of cells in a row stays,
        so the result is packed by r / stride, or 2 r where the map is doubled.
    """
    size, _, inputs, outputs = kernel.shape
    pad, scale = size // 2, 2 if doubled else 1
    before = x.pixels
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
    y = jax.lax.conv_general_dilated(
        x.array,
        kernel.astype(x.array.dtype),
        (stride, 1),
        (rows, columns),
        lhs_dilation=(between, 1),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=plain.full_precision(x.array),
    )
    return Packed(y, outputs)


def max_pool(x: Packed) -> Packed:
    if x.pixels == 1:
        return Packed(plain.max_pool(x.array), x.channels)
    # Lanes are moved by products with zeros and ones: slices of half a vector would be copied.
    thirds = jax.lax.conv_general_dilated(
        x.array,
        jnp.asarray(_neighbours(x.pixels, x.channels), x.array.dtype),
        (1, 1),
        ((0, 0), (1, 0)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        # Moved, not rounded, whatever JAX's own setting of the precision.
        precision=jax.lax.Precision.HIGHEST if x.array.dtype == jnp.float32 else None,
    )
    return Packed(pool_neighbours(*jnp.split(thirds, 3, -1)), x.channels)


@functools.lru_cache
def _neighbours(pixels: int, channels: int) -> np.ndarray:
    """The kernel (1, 2, pixels channels, 3 pixels / 2 channels) that `max_pool` begins with.

    Of a cell and the one before it, it takes the left neighbours of every second pixel, these
    pixels, and their right neighbours.
    """
    taken = np.zeros((2, pixels, 3, pixels // 2), np.float32)
    for i in range(pixels // 2):
        for which in range(3):
            position = 2 * i - 1 + which
            taken[int(position >= 0), position % pixels, which, i] = 1
    kernel = np.einsum("dqwi,ab->dqawib", taken, np.eye(channels, dtype=np.float32))
    return kernel.reshape(1, 2, pixels * channels, -1)


def moments(x: Packed, around: jax.Array) -> tuple[jax.Array, jax.Array, int]:
    offset, square, count = plain.moments(x.array, jnp.tile(around, x.pixels))

    def of_channels(of_lanes: jax.Array) -> jax.Array:
        return jnp.mean(of_lanes.reshape(-1, x.pixels, x.channels), 1)

    return of_channels(offset), of_channels(square), count * x.pixels


def scale_and_shift(x: Packed, scale: jax.Array, shift: jax.Array) -> Packed:
    scale, shift = (jnp.tile(vector, x.pixels) for vector in (scale, shift))
    return Packed(plain.scale_and_shift(x.array, scale, shift), x.channels)


def add_to_rows(x: Packed, values: jax.Array) -> Packed:
    if values.shape[-1] == x.channels:
        values = jnp.tile(values, x.pixels)
    return Packed(plain.add_to_rows(x.array, values), x.channels)


def class_layout(logits: Packed, labels: jax.Array) -> tuple[jax.Array, jax.Array, int]:
    n, h, w = labels.shape
    pixels = logits.pixels
    labels = jnp.transpose(labels.reshape(n, h, w // pixels, pixels), (0, 3, 1, 2))
    return _planes(logits), labels[:, :, None], 2


def best_class(logits: Packed) -> jax.Array:
    # In the layout of the loss, which an evaluation has made already.
    n, h, _, _ = logits.array.shape
    best = jnp.argmax(_planes(logits), 2)
    return jnp.transpose(best, (0, 2, 3, 1)).reshape(n, h, -1)


def _planes(logits: Packed) -> jax.Array:
    """(N, r, classes, H, W / r): the classes along an axis that is not one of lanes."""
    n, h, w, _ = logits.array.shape
    apart = jnp.transpose(logits.array, (0, 3, 1, 2))
    return _rows_in_lanes(apart.reshape(n, logits.pixels, logits.channels, h, w))


@jax.custom_vjp
def _rows_in_lanes(planes: jax.Array) -> jax.Array:
    """Keeps planes (N, r, classes, H, W / r), and their gradient, in memory with rows in the lanes.

    Left to itself the compiler keeps the classes there, and copies what is the same for all of
    them once for each.
    """
    return with_layout_constraint(planes, Layout(major_to_minor=(0, 1, 2, 4, 3)))


_rows_in_lanes.defvjp(
    lambda planes: (_rows_in_lanes(planes), None),
    lambda _, cotangent: (_rows_in_lanes(cotangent),),
)
