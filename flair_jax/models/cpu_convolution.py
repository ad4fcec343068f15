"""Convolutions as a CPU computes them fastest: exactly the same sums in another order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

Padding = tuple[tuple[int, int], tuple[int, int]]

FEW = 32  # result channels up to which XLA's own gradient of the kernel is slow
CACHE = 2**20  # float32 numbers of a block, so that the shifted copies stay in the caches

# After doubling by nearest neighbours, three taps meet two pixels: which, by the result's parity.
_TAPS_OF_PHASE = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)


def convolve(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """A convolution by steps of one pixel.

    Args:
        x: (N, H, W, in).
        kernel: (k, l, in, out) float32.
        padding: zeros above and below, left and right of the map; the result has its size.

    Returns:
        (N, H, W, out).
    """
    kernel = kernel.astype(x.dtype)
    if kernel.shape[-1] > FEW:
        return _convolve(x, kernel, padding)
    return _convolve_narrow(x, kernel, padding)


def convolve_doubled(x: jax.Array, kernel: jax.Array) -> jax.Array:
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
    taps = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    kernels = taps("atk,bul,klio->abtuio", _TAPS_OF_PHASE, _TAPS_OF_PHASE, kernel)
    rows = [
        jnp.stack(
            [convolve(x, kernels[a, b], ((1 - a, a), (1 - b, b))) for b in range(2)], axis=3
        )
        for a in range(2)
    ]
    return jnp.stack(rows, axis=2).reshape(n, 2 * h, 2 * w, -1)


def _convolve(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_narrow(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    return _convolve(x, kernel, padding)


def _forward(x: jax.Array, kernel: jax.Array, padding: Padding) -> tuple[jax.Array, tuple]:
    return _convolve(x, kernel, padding), (x, kernel)


def _backward(padding: Padding, kept: tuple, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    of_map = jax.linear_transpose(lambda x: _convolve(x, kernel, padding), x)
    return *of_map(cotangent), _kernel_gradient(x, cotangent, kernel.shape, padding)


_convolve_narrow.defvjp(_forward, _backward)


def _kernel_gradient(
    x: jax.Array, cotangent: jax.Array, shape: tuple[int, ...], padding: Padding
) -> jax.Array:
    """Some rows at a time, a product of the map with shifted copies of the cotangent.

    Image by image, and their sum at the end, so that devices which share the images need not talk
    within the loop.
    """
    high, wide, inputs, outputs = shape
    n, h, w, _ = x.shape
    (above, _), (left, _) = padding
    around = ((0, 0), (high - 1 - above, above), (wide - 1 - left, left), (0, 0))
    cotangent = jnp.pad(cotangent, around)
    shifts = [(high - 1 - i, wide - 1 - j) for i in range(high) for j in range(wide)]
    block = h
    while block % 2 == 0 and n * block * w * outputs * len(shifts) > CACHE:
        block //= 2

    def add(total: jax.Array, row: jax.Array) -> tuple[jax.Array, None]:
        pixels = jax.lax.dynamic_slice_in_dim(x, row, block, 1).reshape(n, -1, inputs)
        part = jax.lax.dynamic_slice_in_dim(cotangent, row, block + high - 1, 1)
        shifted = jnp.concatenate([part[:, i : i + block, j : j + w] for i, j in shifts], -1)
        shifted = shifted.reshape(n, block * w, -1)
        product = jnp.einsum("npi,npo->nio", pixels, shifted, preferred_element_type=jnp.float32)
        return total + product, None

    zero = jnp.zeros((n, inputs, len(shifts) * outputs), jnp.float32)
    total = jnp.sum(jax.lax.scan(add, zero, jnp.arange(0, h, block))[0], 0)
    return total.reshape(inputs, high, wide, outputs).transpose(1, 2, 0, 3).astype(x.dtype)
