import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flair_jax import config as configuration
from flair_jax.training.optimizer import (
    learning_rate,
    make_optimizer,
    rate_factor,
    with_learning_rate,
)


def configured(**changes):
    config = configuration.default()
    config.update(changes)
    return config


def test_a_step_uses_the_rate_in_the_state():
    sgd = make_optimizer(configured(learning_rate=0.5), 10)
    params = {"w": jnp.asarray(1.0)}
    state = with_learning_rate(sgd.init(params), 0.25)
    updates, state = sgd.update({"w": jnp.asarray(2.0)}, state, params)
    assert float(updates["w"]) == -0.5
    assert learning_rate(state) == 0.25


@pytest.mark.parametrize("rate", [0.02, 1e-7, 0.003, 1.0, 3e-5])
def test_the_rate_reads_as_it_was_written(rate):
    """It is a float32, which as a Python number would be 0.0199999995529652."""
    sgd = make_optimizer(configured(learning_rate=rate), 10)
    state = sgd.init({"w": jnp.zeros(2)})
    assert learning_rate(state) == rate
    assert learning_rate(with_learning_rate(state, rate / 2)) == pytest.approx(rate / 2, rel=1e-7)
    assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype("float32"), jnp.dtype("int32")}


def test_gradients_are_clipped_by_their_global_norm():
    gradients = {"a": jnp.asarray([3.0, 0.0]), "b": jnp.asarray([[4.0]])}
    for clip_norm, scale in ((0.0, 1.0), (10.0, 1.0), (1.0, 0.2)):
        sgd = make_optimizer(configured(learning_rate=0.5, clip_norm=clip_norm), 10)
        updates, _ = sgd.update(gradients, sgd.init(gradients), gradients)
        for name, value in gradients.items():
            np.testing.assert_allclose(updates[name], -0.5 * scale * value, rtol=1e-6)


@pytest.mark.parametrize("schedule", ["one_cycle", "warmup_cosine"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_adamw_by_its_formula(schedule, weight_decay):
    """Loshchilov and Hutter 2019, as PyTorch has it: decay by the rate of the step."""
    config = configured(
        optimizer="adamw", learning_rate=0.01, weight_decay=weight_decay, schedule=schedule
    )
    adamw = make_optimizer(config, 10)
    rng = np.random.default_rng(0)
    w = rng.normal(size=5)
    params = {"w": jnp.asarray(w, jnp.float32)}
    state = adamw.init(params)
    first, second = np.zeros(5), np.zeros(5)
    for t in range(1, 11):
        g = rng.normal(size=5)
        updates, state = adamw.update({"w": jnp.asarray(g, jnp.float32)}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        rate = 0.01 * float(rate_factor(config, 10)(t - 1))
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        corrected = first / (1 - 0.9**t), second / (1 - 0.999**t)
        w = w - rate * (corrected[0] / (np.sqrt(corrected[1]) + 1e-8) + weight_decay * w)
        np.testing.assert_allclose(params["w"], w, rtol=1e-5)
    assert learning_rate(state) == 0.01


def test_weight_decay_of_sgd():
    sgd = make_optimizer(configured(learning_rate=0.5, weight_decay=0.1), 10)
    params = {"w": jnp.asarray([1.0, -2.0])}
    updates, _ = sgd.update({"w": jnp.asarray([2.0, 0.0])}, sgd.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.5 * 2.1, 0.5 * 0.2], rtol=1e-6)


def test_the_schedules_rise_and_fall():
    def factors(schedule, warmup=0.2, steps=100):
        factor = rate_factor(configured(schedule=schedule, warmup=warmup), steps)
        return np.array([factor(step) for step in range(steps + 1)])

    np.testing.assert_array_equal(factors("plateau"), 1)
    one_cycle, cosine = factors("one_cycle"), factors("warmup_cosine")
    np.testing.assert_allclose(one_cycle[[0, 10, 20, 60, 100]], [1e-3, 0.5005, 1, 0.5, 1e-7], 1e-4)
    np.testing.assert_allclose(cosine[[0, 10, 20, 60, 100]], [0, 0.5, 1, 0.5, 0], atol=1e-6)
    for values in (one_cycle, cosine):
        assert (np.diff(values[:21]) > 0).all()
        assert (np.diff(values[20:]) < 0).all()
    for schedule in ("one_cycle", "warmup_cosine"):  # nothing odd in the shortest trainings
        for steps in (1, 2, 3):
            for warmup in (0.0, 0.2, 0.9):
                values = factors(schedule, warmup, steps)
                assert np.isfinite(values).all()
                assert values.max() == 1
