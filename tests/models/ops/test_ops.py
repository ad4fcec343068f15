"""What all forms have in common."""

import inspect
import pkgutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flair_jax.models import ops
from flair_jax.models.layers import BatchNorm, Conv
from flair_jax.models.ops import cpu, plain, tpu

FORMS = [
    ops.for_platform(module.name)
    for module in pkgutil.iter_modules(ops.__path__)
    if not module.name.startswith("_")
]
every_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__.split(".")[-1])


def test_forms_of_platforms():
    assert {form.__name__.split(".")[-1] for form in FORMS} >= {"plain", "cpu", "tpu"}
    assert ops.for_platform("cpu") is cpu
    assert ops.for_platform("tpu") is tpu
    for platform in ("gpu", "cuda", "rocm", "METAL"):
        assert ops.for_platform(platform) is plain
    devices = np.array([SimpleNamespace(platform="tpu")])
    assert ops.for_mesh(SimpleNamespace(devices=devices)) is tpu


@every_form
def test_a_form_has_every_function_with_its_parameters(form):
    for name, function in inspect.getmembers(ops.Ops, inspect.isfunction):
        if name.startswith("_"):
            continue
        expected = list(inspect.signature(function).parameters)[1:]
        assert list(inspect.signature(getattr(form, name)).parameters) == expected, name


def layer(make, form):
    made = make()
    made.set_attributes(ops=form)
    return made


def conv(in_channels, kernel=3, **options):
    return Conv(
        in_channels, 8, kernel, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0), **options
    )


@every_form
@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda form, x: layer(lambda: conv(5), form)(x), "takes 5 channels, not 10"),
        (lambda form, x: layer(lambda: conv(20), form)(x), "takes 20 channels, not 10"),
        (lambda form, x: layer(lambda: conv(5, stride=2), form)(x), "takes 5 channels, not 10"),
        (lambda form, x: layer(lambda: conv(5, 1), form)(x), "takes 5 channels, not 10"),
        (
            lambda form, x: layer(lambda: conv(15), form).upsampled(x, None),
            "takes 15 channels, not 10",
        ),
        (
            lambda form, x: layer(lambda: conv(15), form).upsampled(x, x),
            "takes 15 channels, not 20",
        ),
        (lambda form, x: layer(lambda: BatchNorm(1), form)(x, train=False), "takes 1 channels"),
        (lambda form, x: layer(lambda: BatchNorm(5), form)(x, train=True), "takes 5 channels"),
    ],
)
def test_another_number_of_channels_is_refused(form, call, expected):
    with pytest.raises(ValueError, match=expected):
        call(form, form.enter(jnp.zeros((2, 32, 32, 10))))


@every_form
def test_maps_keep_their_pixels(form):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 255, (2, 32, 64, 5), dtype=np.uint8))
    assert form.channels(form.enter(x)) == 5
    np.testing.assert_array_equal(form.leave(form.enter(x)), x)


@every_form
@pytest.mark.parametrize("shape", [(5,), (2, 1, 1, 5), (2, 32, 1, 1)])
def test_values_of_rows_are_added_to_all_their_pixels(form, shape):
    x = jnp.arange(2.0 * 32 * 32 * 5).reshape(2, 32, 32, 5)
    values = jnp.arange(np.prod(shape, dtype=float)).reshape(shape)
    np.testing.assert_array_equal(form.leave(form.add_to_rows(form.enter(x), values)), x + values)


@every_form
def test_moments_and_scale_of_groups(form):
    x = jnp.asarray(np.random.default_rng(1).normal(3, 2, (4, 32, 32, 3)), jnp.float32)
    around = jnp.asarray([3.0, 0.0, -1.0])
    grouped = jax.tree.map(lambda a: a.reshape(2, 2, *a.shape[1:]), form.enter(x))
    offset, square, count = form.moments(grouped, around)
    apart = np.asarray(x, np.float64).reshape(2, -1, 3) - np.asarray(around)
    assert count == 2 * 32 * 32
    np.testing.assert_allclose(offset, apart.mean(1), rtol=1e-5)
    np.testing.assert_allclose(square, np.square(apart).mean(1), rtol=1e-5)
    made = form.scale_and_shift(grouped, square, offset)
    made = form.leave(jax.tree.map(lambda a: a.reshape(4, *a.shape[2:]), made))
    each = x.reshape(2, 2, 32, 32, 3) * square[:, None, None, None] + offset[:, None, None, None]
    np.testing.assert_allclose(made, each.reshape(x.shape), rtol=1e-6)


@every_form
def test_pairs_are_counted_alike(form):
    rng = np.random.default_rng(2)
    labels = rng.choice([0, 1, 2, 3, 255], (2, 500)).astype(np.uint8)
    predictions = rng.integers(0, 4, (2, 500)).astype(np.uint8)
    counts = form.count_pairs(jnp.asarray(labels), jnp.asarray(predictions), 4)
    expected = np.zeros((2, 4, 4), np.int64)
    for image in range(2):
        known = labels[image] < 4
        np.add.at(expected[image], (labels[image][known], predictions[image][known]), 1)
    assert counts.dtype == jnp.int32
    np.testing.assert_array_equal(counts, expected)


@every_form
def test_the_class_layout_keeps_logits_and_labels_together(form):
    shape = 2, 32, 64
    logits = jnp.asarray(np.random.default_rng(3).integers(-9, 9, (*shape, 5)), jnp.float32)
    labels = jnp.arange(np.prod(shape)).reshape(shape)
    by_class, order, axis = form.class_layout(form.enter(logits), labels)
    assert (by_class.shape[0], by_class.shape[axis], order.shape[axis]) == (2, 5, 1)
    by_pixel = np.moveaxis(by_class, axis, -1).reshape(-1, 5)
    expected = np.asarray(logits).reshape(-1, 5)
    np.testing.assert_array_equal(by_pixel, expected[np.asarray(order).ravel()])


@every_form
def test_the_best_class_is_the_first_of_the_largest(form):
    logits = np.random.default_rng(4).integers(-2, 3, (2, 32, 64, 5)).astype(np.float32)
    best = form.best_class(form.enter(jnp.asarray(logits)))
    np.testing.assert_array_equal(best, logits.argmax(-1))
