"""Packed maps give what plain arrays give: to the bit, for whole numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_convolution import plain, whole_numbers

from flair_jax.models.ops import tpu
from flair_jax.models.ops.plain import upsample


@pytest.mark.parametrize(
    ("size", "stride", "before"),
    [(7, 2, 8), (3, 1, 2), (3, 1, 4), (3, 1, 8), (3, 2, 2), (1, 2, 2), (3, 1, 1)],
)
def test_convolution(size, stride, before):
    x, kernel = whole_numbers(0, 2, 8, 16, 3), whole_numbers(1, size, size, 3, 4)
    packed = tpu.convolution(tpu.pack(x, before), kernel, stride)
    assert packed.channels == 4
    assert packed.array.shape == (2, 8 // stride, 16 // before, before // stride * 4)
    np.testing.assert_array_equal(tpu.leave(packed), plain(x, kernel, stride))


@pytest.mark.parametrize("before", [1, 2, 4])
def test_convolution_of_a_doubled_map(before):
    x, kernel = whole_numbers(2, 2, 6, 8, 3), whole_numbers(3, 3, 3, 3, 4)
    packed = tpu.upsampled_convolution(tpu.pack(x, before), None, kernel)
    assert packed.array.shape == (2, 12, 8 // before, 2 * before * 4)
    np.testing.assert_array_equal(tpu.leave(packed), plain(upsample(x), kernel))


def test_gradients_of_a_packed_convolution():
    x, kernel, seen = (
        whole_numbers(4, 1, 4, 8, 3),
        whole_numbers(5, 3, 3, 3, 2),
        whole_numbers(6, 1, 8, 16, 2),
    )

    def of_packed(x, kernel):
        y = tpu.upsampled_convolution(tpu.pack(x, 2), None, kernel)
        return jnp.sum(tpu.leave(y) * seen)

    def of_plain(x, kernel):
        return jnp.sum(plain(upsample(x), kernel) * seen)

    for actual, expected in zip(
        jax.grad(of_packed, (0, 1))(x, kernel), jax.grad(of_plain, (0, 1))(x, kernel), strict=True
    ):
        np.testing.assert_array_equal(actual, expected)


def test_max_pool_and_which_of_equal_values_gets_the_gradient():
    # Few different values, so that most windows have several largest.
    x = jnp.asarray(np.random.default_rng(7).integers(1, 4, (2, 8, 16, 3)), jnp.float32)
    seen = whole_numbers(8, 2, 4, 8, 3)

    def of_packed(x):
        y = tpu.leave(tpu.max_pool(tpu.pack(x, 4)))
        return jnp.sum(y * seen), y

    def of_plain(x):
        y = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return jnp.sum(y * seen), y

    gradient, y = jax.grad(of_packed, has_aux=True)(x)
    expected_gradient, expected = jax.grad(of_plain, has_aux=True)(x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(gradient, expected_gradient)
