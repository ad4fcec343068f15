import jax.numpy as jnp
import numpy as np
import pytest
from golden_arrays import golden

from flair_jax.training import optimizer


def test_plateau_is_pytorchs():
    arrays = golden("plateau")
    plateau = optimizer.Plateau(0.02)
    rates = [plateau.update(float(loss)) for loss in arrays["val_loss"]]
    np.testing.assert_array_equal(rates, arrays["lr_after"])


def test_plateau_stops_at_the_smallest_rate():
    plateau = optimizer.Plateau(3e-7, patience=0, cooldown=0)
    assert [plateau.update(1.0) for _ in range(4)] == [3e-7, 1.5e-7, 1e-7, 1e-7]


def test_early_stop_waits_for_its_patience():
    stop = optimizer.EarlyStop(patience=2)
    best = [stop.update(loss, epoch) for epoch, loss in enumerate([3.0, 2.0, 2.0, 2.5])]
    assert best == [True, True, False, False]
    assert (stop.best, stop.best_epoch, stop.waited, stop.stopped) == (2.0, 1, 2, True)


def test_step_uses_the_rate_in_the_state():
    sgd = optimizer.make_optimizer(0.5)
    params = {"w": jnp.asarray(1.0)}
    state = optimizer.with_learning_rate(sgd.init(params), 0.25)
    updates, state = sgd.update({"w": jnp.asarray(2.0)}, state, params)
    assert float(updates["w"]) == -0.5
    assert float(state.hyperparams["learning_rate"]) == pytest.approx(0.25)
