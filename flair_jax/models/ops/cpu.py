"""The CPU's form of the network's operations: arrays (N, H, W, C), summed in another order.

What is slow in the plain form there: kernel gradients, whose sums run over all pixels at once and
miss the caches; maps smaller than the kernel; maps doubled before they are convolved; and counting
by a matrix product. The functions are described in `flair_jax.models.ops.Ops`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from flair_jax.models.ops._cells import cell_taps
from flair_jax.models.ops.plain import (
    add_to_rows,
    best_class,
    channels,
    class_layout,
    enter,
    leave,
    max_pool,
    moments,
    scale_and_shift,
)

__all__ = [
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
    "scale_and_shift",
    "upsampled_convolution",
]

Padding = tuple[tuple[int, int], tuple[int, int]]

WIDE = 256  # output channels from which XLA's own gradient of the kernel is faster
CACHE = 2**21  # numbers in a block, so that its shifted copies stay in the caches
FEW_BANDS = 16  # channels below which 2 x 2 pixels are taken as one where the stride is 2

# After doubling by nearest neighbours, three taps meet two pixels: which, by the result's parity.
_TAPS_OF_PHASE = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)


def convolution(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    size, _, inputs, _ = kernel.shape
    pad = size // 2
    if stride == 1:
        return _stride_one(x, kernel, ((pad, pad), (pad, pad)))
    if inputs < FEW_BANDS and size > 1:
        return _stride_two_of_cells(x, kernel)
    return _convolve(x, kernel.astype(x.dtype), ((pad, pad), (pad, pad)), stride)


def upsampled_convolution(x: jax.Array, skip: jax.Array | None, kernel: jax.Array) -> jax.Array:
    # A convolution of concatenated channels is a sum of two.
    of_x, of_skip = jnp.split(kernel, [x.shape[-1]], axis=2)
    y = _doubled_convolution(x, of_x)
    return y if skip is None else y + convolution(skip, of_skip)


def _doubled_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution of a map doubled by nearest neighbours, which is never made.

    Pixels of the result whose row and column are even, or odd, meet only 2 x 2 different pixels:
    four small convolutions take 2.25 times fewer operations than the one.

    Args:
        x: (N, H, W, in).
        kernel: (3, 3, in, out) float32.

    Returns:
        (N, 2 H, 2 W, out).
    """
    n, h, w, _ = x.shape
    kernels = _exact("atk,bul,klio->abtuio", _TAPS_OF_PHASE, _TAPS_OF_PHASE, kernel)

    def phase(a: int, b: int) -> jax.Array:
        return _stride_one(x, kernels[a, b], ((1 - a, a), (1 - b, b)))

    rows = [jnp.stack([phase(a, 0), phase(a, 1)], axis=3) for a in range(2)]
    return jnp.stack(rows, axis=2).reshape(n, 2 * h, 2 * w, -1)


def count_pairs(labels: jax.Array, predictions: jax.Array, num_classes: int) -> jax.Array:
    # By one index per pixel; the last cell takes what is not counted.
    n, cells = len(labels), num_classes**2
    pairs = labels.astype(jnp.int32) * num_classes + predictions.astype(jnp.int32)
    pairs = pairs + cells * jnp.arange(n, dtype=jnp.int32)[:, None]
    pairs = jnp.where(labels < num_classes, pairs, n * cells)
    counts = jnp.bincount(pairs.ravel(), length=n * cells + 1)
    return counts[:-1].reshape(n, num_classes, num_classes).astype(jnp.int32)


def _stride_two_of_cells(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution of stride 2 as one of stride 1 over cells of 2 x 2 pixels."""
    n, h, w, bands = x.shape
    size, _, _, outputs = kernel.shape
    taps, around = cell_taps(size, stride=2, scale=1, before=2, after=1)
    taps, count = taps[:, :, 0], len(taps)
    cells = x.reshape(n, h // 2, 2, w // 2, 2, bands).transpose(0, 1, 3, 2, 4, 5)
    of_cells = _exact("dak,ebl,klio->deabio", taps, taps, kernel)
    return _stride_one(
        cells.reshape(n, h // 2, w // 2, -1),
        of_cells.reshape(count, count, 4 * bands, outputs),
        (around, around),
    )


def _stride_one(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """A convolution of stride 1; the padding is such that the result has the map's size."""
    kernel = kernel.astype(x.dtype)
    if kernel.shape[-1] >= WIDE or kernel.shape[:2] == (1, 1):
        return _convolve(x, kernel, padding)
    return _convolve_in_blocks(x, kernel, padding)


def _convolve(x: jax.Array, kernel: jax.Array, padding: Padding, stride: int = 1) -> jax.Array:
    if min(x.shape[1:3]) < len(kernel):
        return _convolve_as_product(x, kernel, padding, stride)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _convolve_as_product(
    x: jax.Array, kernel: jax.Array, padding: Padding, stride: int
) -> jax.Array:
    """The same for a map that is smaller than the kernel, where XLA's own is up to 80 times slower.

    So is the deepest map of images of 64 x 64 pixels.
    """
    size, _, inputs, outputs = kernel.shape
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    high, wide = ((length - size) // stride + 1 for length in padded.shape[1:3])
    copies = [
        padded[:, i : i + stride * high : stride, j : j + stride * wide : stride]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(copies, -1) @ kernel.reshape(size * size * inputs, outputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_in_blocks(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    return _convolve(x, kernel, padding)


def _forward(x: jax.Array, kernel: jax.Array, padding: Padding) -> tuple[jax.Array, tuple]:
    return _convolve(x, kernel, padding), (x, kernel)


def _backward(padding: Padding, kept: tuple, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    of_map = jax.linear_transpose(lambda x: _convolve(x, kernel, padding), x)
    return *of_map(cotangent), _kernel_gradient(x, cotangent, kernel.shape, padding)


_convolve_in_blocks.defvjp(_forward, _backward)


def _kernel_gradient(
    x: jax.Array, cotangent: jax.Array, shape: tuple[int, ...], padding: Padding
) -> jax.Array:
    """The product of a map and of shifted copies of the narrower other one, a few rows at a time.

    Image by image, and summed at the end, so that devices which share the images need not
    communicate within the loop.
    """
    high, wide, inputs, outputs = shape
    n, h, w, _ = x.shape
    (above, below), (left, right) = padding
    shifts = [(i, j) for i in range(high) for j in range(wide)]
    of_map = inputs < outputs
    if of_map:
        shifted, still = jnp.pad(x, ((0, 0), (above, below), (left, right), (0, 0))), cotangent
    else:
        shifted, still = jnp.pad(cotangent, ((0, 0), (below, above), (right, left), (0, 0))), x
        shifts.reverse()
    block = h
    while block % 2 == 0 and n * block * w * shifted.shape[-1] * len(shifts) > CACHE:
        block //= 2

    def add(total: jax.Array, row: jax.Array) -> tuple[jax.Array, None]:
        rows = jax.lax.dynamic_slice_in_dim(shifted, row, block + high - 1, 1)
        copies = [rows[:, i : i + block, j : j + w] for i, j in shifts]
        pixels = jnp.concatenate(copies, -1).reshape(n, block * w, -1)
        others = jax.lax.dynamic_slice_in_dim(still, row, block, 1).reshape(n, block * w, -1)
        # The narrower factor first: the products of CPUs are up to twice as fast that way.
        product = jnp.einsum("npo,npi->noi", others, pixels, preferred_element_type=jnp.float32)
        return total + product, None

    zero = jnp.zeros((n, still.shape[-1], len(shifts) * shifted.shape[-1]), jnp.float32)
    total = jnp.sum(jax.lax.scan(add, zero, jnp.arange(0, h, block))[0], 0).astype(x.dtype)
    if of_map:
        return total.reshape(outputs, high, wide, inputs).transpose(1, 2, 3, 0)
    return total.reshape(inputs, high, wide, outputs).transpose(1, 2, 0, 3)


_exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
