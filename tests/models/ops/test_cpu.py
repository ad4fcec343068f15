"""The CPU's form gives what the plain operations give: to the bit, for whole numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain_convolution import plain, whole_numbers

from flair_jax.models.ops import cpu
from flair_jax.models.ops.plain import upsample


def value_and_gradients(function, x, kernel, seen):
    y, transpose = jax.vjp(function, x, kernel)
    return y, *transpose(seen)


@pytest.mark.parametrize("cache", [1, 2**20])  # one row at a time, and all of them
@pytest.mark.parametrize(
    ("size", "stride", "inputs", "outputs"),
    [(3, 1, 6, 4), (3, 1, 4, 6), (7, 2, 5, 8), (3, 2, 20, 4), (1, 1, 3, 5), (1, 2, 3, 5)],
)
def test_convolution_and_its_gradients(size, stride, inputs, outputs, cache, monkeypatch):
    monkeypatch.setattr(cpu, "CACHE", cache)
    x = whole_numbers(0, 2, 16, 8, inputs)
    kernel = whole_numbers(1, size, size, inputs, outputs)
    seen = whole_numbers(2, 2, 16 // stride, 8 // stride, outputs)
    actual = value_and_gradients(lambda x, k: cpu.convolution(x, k, stride), x, kernel, seen)
    reference = value_and_gradients(lambda x, k: plain(x, k, stride), x, kernel, seen)
    for made, expected in zip(actual, reference, strict=True):
        np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("outputs", [4, 256])
@pytest.mark.parametrize(("height", "width"), [(2, 2), (2, 8), (4, 2), (2, 6)])
def test_a_map_smaller_than_the_kernel(height, width, outputs, stride):
    x, kernel = whole_numbers(0, 2, height, width, 20), whole_numbers(1, 3, 3, 20, outputs)
    seen = whole_numbers(2, 2, height // stride, width // stride, outputs)
    actual = value_and_gradients(lambda x, k: cpu.convolution(x, k, stride), x, kernel, seen)
    reference = value_and_gradients(lambda x, k: plain(x, k, stride), x, kernel, seen)
    for made, expected in zip(actual, reference, strict=True):
        np.testing.assert_array_equal(made, expected)
    text = jax.jit(lambda x, k: cpu.convolution(x, k, stride)).lower(x, kernel).as_text()
    assert "stablehlo.convolution" not in text  # XLA's is up to 80 times slower there


@pytest.mark.parametrize("outputs", [4, 256])
@pytest.mark.parametrize(("height", "width"), [(6, 8), (1, 1), (1, 4), (2, 1)])
def test_convolution_of_a_doubled_map(outputs, height, width):
    x, kernel = whole_numbers(3, 2, height, width, 3), whole_numbers(4, 3, 3, 3, outputs)
    seen = whole_numbers(5, 2, 2 * height, 2 * width, outputs)
    actual = value_and_gradients(
        lambda x, k: cpu.upsampled_convolution(x, None, k), x, kernel, seen
    )
    reference = value_and_gradients(lambda x, k: plain(upsample(x), k), x, kernel, seen)
    for made, expected in zip(actual, reference, strict=True):
        np.testing.assert_array_equal(made, expected)


def test_kernel_gradients_in_bfloat16_are_summed_in_float32():
    ones = jnp.ones((1, 64, 64, 1), jnp.bfloat16)
    kernel = jnp.zeros((3, 3, 1, 1), jnp.float32)
    gradient = jax.grad(lambda k: jnp.sum(cpu.convolution(ones, k, 1).astype(jnp.float32)))(kernel)
    assert float(gradient[1, 1, 0, 0]) == 64 * 64  # in bfloat16 the sum would stop at 256


def test_max_pool_and_which_of_equal_values_gets_the_gradient():
    x = jnp.asarray(np.random.default_rng(6).integers(0, 4, (2, 8, 12, 3)), jnp.float32)
    seen = whole_numbers(7, 2, 4, 6, 3)
    # Where a window holds zeros only, its gradient may go to the border: behind a ReLU it is lost.
    positive = x + 1

    def reference(x):
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

    np.testing.assert_array_equal(cpu.max_pool(x), reference(x))
    (actual,) = jax.vjp(cpu.max_pool, positive)[1](seen)
    (expected,) = jax.vjp(reference, positive)[1](seen)
    np.testing.assert_array_equal(actual, expected)
