"""Folded maps give what the maps themselves give: to the bit, where the numbers are whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_convolution import plain, whole_numbers

from flair_jax.models.ops import tpu
from flair_jax.models.unet import upsample


@pytest.mark.parametrize(
    ("size", "stride", "before"),
    [(7, 2, 8), (3, 1, 2), (3, 1, 4), (3, 1, 8), (3, 2, 2), (1, 2, 2), (3, 1, 1)],
)
def test_convolution(size, stride, before):
    x, kernel = whole_numbers(0, 2, 8, 16, 3), whole_numbers(1, size, size, 3, 4)
    folded = tpu.convolve(tpu.fold(x, before), kernel, stride=stride)
    assert folded.shape == (2, 8 // stride, 16 // before, before // stride * 4)
    np.testing.assert_array_equal(tpu.unfold(folded, 4), plain(x, kernel, stride))


@pytest.mark.parametrize("before", [1, 2, 4])
def test_convolution_of_a_doubled_map(before):
    x, kernel = whole_numbers(2, 2, 6, 8, 3), whole_numbers(3, 3, 3, 3, 4)
    folded = tpu.convolve(tpu.fold(x, before), kernel, doubled=True)
    assert folded.shape == (2, 12, 8 // before, 2 * before * 4)
    np.testing.assert_array_equal(tpu.unfold(folded, 4), plain(upsample(x), kernel))


def test_gradients_of_a_folded_convolution():
    x, kernel, seen = (
        whole_numbers(4, 1, 4, 8, 3),
        whole_numbers(5, 3, 3, 3, 2),
        whole_numbers(6, 1, 8, 16, 2),
    )

    def of_folded(x, kernel):
        y = tpu.convolve(tpu.fold(x, 2), kernel, doubled=True)
        return jnp.sum(tpu.unfold(y, 2) * seen)

    def of_plain(x, kernel):
        return jnp.sum(plain(upsample(x), kernel) * seen)

    for ours, theirs in zip(
        jax.grad(of_folded, (0, 1))(x, kernel), jax.grad(of_plain, (0, 1))(x, kernel), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_max_pool_and_which_of_equal_values_gets_the_gradient():
    # Few different values, so that most windows have several largest.
    x = jnp.asarray(np.random.default_rng(7).integers(1, 4, (2, 8, 16, 3)), jnp.float32)
    seen = whole_numbers(8, 2, 4, 8, 3)

    def of_folded(x):
        y = tpu.unfold(tpu.max_pool(tpu.fold(x, 4), 3), 3)
        return jnp.sum(y * seen), y

    def of_plain(x):
        y = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return jnp.sum(y * seen), y

    gradient, y = jax.grad(of_folded, has_aux=True)(x)
    expected_gradient, expected = jax.grad(of_plain, has_aux=True)(x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(gradient, expected_gradient)


def test_planes_have_the_same_pixels_in_the_same_order():
    logits, labels = whole_numbers(9, 2, 4, 16, 5), np.arange(2 * 4 * 16).reshape(2, 4, 16)
    planes = tpu.planes(tpu.fold(logits, 8), 5)
    assert planes.shape == (2, 8, 5, 4, 2)
    place = tpu.plane(jnp.asarray(labels), 8)
    flat = np.asarray(logits).reshape(-1, 5)
    np.testing.assert_array_equal(np.moveaxis(planes, 2, -1), flat[place])
    expected = np.asarray(logits).argmax(-1)
    np.testing.assert_array_equal(tpu.best_class(tpu.fold(logits, 8), 5), expected)
    np.testing.assert_array_equal(tpu.best_class(logits, 5), expected)
