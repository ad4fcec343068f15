import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flair_jax import config as configuration
from flair_jax.training.optimizer import learning_rate, make_optimizer, with_learning_rate


def configured(**changes):
    config = configuration.default()
    config.update(changes)
    return config


def test_a_step_uses_the_rate_in_the_state():
    sgd = make_optimizer(configured(learning_rate=0.5))
    params = {"w": jnp.asarray(1.0)}
    state = with_learning_rate(sgd.init(params), 0.25)
    updates, state = sgd.update({"w": jnp.asarray(2.0)}, state, params)
    assert float(updates["w"]) == -0.5
    assert learning_rate(state) == 0.25


@pytest.mark.parametrize("rate", [0.02, 1e-7, 0.003, 1.0, 3e-5])
def test_the_rate_reads_as_it_was_written(rate):
    """It is a float32, which as a Python number would be 0.0199999995529652."""
    sgd = make_optimizer(configured(learning_rate=rate))
    state = sgd.init({"w": jnp.zeros(2)})
    assert learning_rate(state) == rate
    assert learning_rate(with_learning_rate(state, rate / 2)) == pytest.approx(rate / 2, rel=1e-7)
    assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype("float32"), jnp.dtype("int32")}


def test_gradients_are_clipped_by_their_global_norm():
    gradients = {"a": jnp.asarray([3.0, 0.0]), "b": jnp.asarray([[4.0]])}
    for clip_norm, scale in ((0.0, 1.0), (10.0, 1.0), (1.0, 0.2)):
        sgd = make_optimizer(configured(learning_rate=0.5, clip_norm=clip_norm))
        updates, _ = sgd.update(gradients, sgd.init(gradients), gradients)
        for name, value in gradients.items():
            np.testing.assert_allclose(updates[name], -0.5 * scale * value, rtol=1e-6)
