"""The jitted training step: randomness, clipping, what it tells, accumulation."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from flair_jax import config as configuration
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime.sharding import make_mesh, replicate, to_global
from flair_jax.training.initialization import random_weights
from flair_jax.training.optimizer import make_optimizer
from flair_jax.training.state import create_train_state
from flair_jax.training.step import make_train_step, set_training_options, step_key

RATE = 0.02


@pytest.fixture(scope="module")
def spec(tiny_model):
    return ModelSpec.from_config(configuration.default(), (32, 32))


@pytest.fixture(scope="module")
def weights(spec):
    return jax.tree.map(np.asarray, random_weights(spec, 0, make_mesh()))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (4, 32, 32, 5), dtype=np.uint8),
        "mask": rng.integers(1, 20, (4, 32, 32), dtype=np.uint8),
        "stop": np.zeros(4, bool),
    }


def make(spec, **changes):
    config, mesh = configuration.default(), make_mesh()
    config.update_from_flattened_dict(changes)
    graphdef = nnx.split(set_training_options(spec.abstract_model(), config, mesh))[0]
    optimizer = make_optimizer(config, num_steps=1)
    return make_train_step(graphdef, spec, config, optimizer, mesh), optimizer


def run(spec, weights, batch, **changes):
    mesh = make_mesh()
    step, optimizer = make(spec, **changes)
    state = replicate(create_train_state(*weights, optimizer), mesh)
    state, facts = step(state, to_global(batch, mesh))
    update = {name: value - weights[0][name] for name, value in state.params.items()}
    return state, facts, update


@pytest.fixture(scope="module")
def plain(spec, weights, batch):
    return run(spec, weights, batch)


def test_keys_of_steps_and_of_initial_weights_differ():
    """Flax's are fold_in(key(seed), 0, 1, 2, ...)."""
    stream = nnx.Rngs(7)
    drawn = {tuple(np.asarray(jax.random.key_data(stream.params()))) for _ in range(300)}
    steps = {
        tuple(np.asarray(jax.random.key_data(part)))
        for step in range(300)
        for part in (step_key(7, step), *jax.random.split(step_key(7, step), 3))
    }
    assert (len(drawn), len(steps)) == (300, 1200)
    assert not drawn & steps


def test_the_norm_is_of_the_gradients(plain):
    _, facts, update = plain
    assert bool(facts["finite"])
    norm = float(optax.tree.norm(update)) / RATE
    assert float(facts["grad_norm"]) == pytest.approx(norm, rel=1e-3)  # updates are rounded


def test_clipping_scales_the_update(spec, weights, batch, plain):
    _, facts, update = plain
    limit = float(facts["grad_norm"]) / 4
    _, clipped_facts, clipped = run(spec, weights, batch, clip_norm=limit)
    assert float(clipped_facts["grad_norm"]) == pytest.approx(float(facts["grad_norm"]), rel=1e-6)
    assert float(optax.tree.norm(clipped)) == pytest.approx(RATE * limit, rel=1e-3)
    for name, value in update.items():
        atol = 2e-7 * max(1.0, float(np.abs(weights[0][name]).max()))
        np.testing.assert_allclose(clipped[name], value / 4, atol=atol)


def test_a_norm_below_the_limit_changes_nothing(spec, weights, batch, plain):
    _, _, update = run(spec, weights, batch, clip_norm=1e6)
    for name, value in plain[2].items():
        np.testing.assert_array_equal(update[name], value)


def test_an_update_that_is_not_finite_is_told_by_its_own_step(spec, weights, batch):
    _, facts, _ = run(spec, weights, batch, learning_rate=np.inf)
    assert np.isfinite(float(facts["loss"]))
    assert not bool(facts["finite"])


def test_statistics_that_are_not_finite_are_told(spec, weights, batch):
    batch_stats = dict(weights[1])
    batch_stats["bn.var"] = np.full_like(batch_stats["bn.var"], np.inf)
    _, facts, _ = run(spec, (weights[0], batch_stats), batch)
    assert np.isfinite(float(facts["loss"]))
    assert not bool(facts["finite"])


def lowered(spec, weights, batch, **changes):
    step, optimizer = make(spec, **changes)
    return step.lower(create_train_state(*weights, optimizer), batch).as_text()


def test_accumulation_on_a_cpu_is_not_a_loop(spec, weights, batch, monkeypatch):
    """XLA's convolutions are many times slower within one there; elsewhere it saves memory."""
    plain, parts = (lowered(spec, weights, batch, accumulate_steps=n) for n in (1, 2))
    assert parts.count("stablehlo.while") == plain.count("stablehlo.while")
