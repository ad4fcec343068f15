import json

import numpy as np
import pytest
from golden_arrays import golden

from flair_jax.training.schedules import Best, Monitor, Plateau, PlateauState, Progress

LOSS, MIOU = Monitor("val_loss"), Monitor("val_miou")


def rates(plateau, rate, values, monitor=LOSS):
    state = PlateauState()
    for value in values:
        state, rate = plateau.update(state, rate, value, monitor)
        yield rate


def test_plateau_is_pytorchs():
    arrays = golden("plateau")
    found = list(rates(Plateau(), 0.02, map(float, arrays["val_loss"])))
    np.testing.assert_array_equal(found, arrays["lr_after"])


def test_plateau_stops_at_the_smallest_rate():
    plateau = Plateau(patience=0, cooldown=0)
    assert list(rates(plateau, 3e-7, [1.0] * 5)) == [3e-7, 1.5e-7, 1e-7, 1e-7, 1e-7]


def test_plateau_of_a_score():
    """As PyTorch's mode "max": the threshold is a share of the best score, above it."""
    plateau = Plateau(patience=0, cooldown=0, threshold=0.1)
    found = list(rates(plateau, 1.0, [0.5, 0.54, 0.56, 0.7, 0.6], MIOU))
    assert found == [1.0, 0.5, 0.5, 0.5, 0.25]


@pytest.mark.parametrize(
    ("name", "higher", "ema"),
    [
        ("val_loss", False, False), ("val_miou", True, False), ("val_loss_ema", False, True),
        ("val_miou_ema", True, True),
    ],
)  # fmt: skip
def test_monitors(name, higher, ema):
    monitor = Monitor(name)
    assert (monitor.higher_is_better, monitor.ema) == (higher, ema)
    assert monitor.improves(2.0, None)
    assert monitor.improves(2.0, 1.0) is higher
    assert monitor.improves(1.0, 2.0) is not higher
    assert not monitor.improves(1.0, 1.0)  # the first one among equals is best
    assert not monitor.improves(float("nan"), 1.0)
    assert not monitor.improves(float("nan"), None)


def test_epochs_since_the_best_one():
    assert Progress(epoch=3).epochs_since_best == 3
    assert Progress(epoch=7, best=Best(40, 4, 1.0)).epochs_since_best == 3


@pytest.mark.parametrize("best", [None, Best(4, 1, 1.25)])
def test_progress_comes_back_from_json(best):
    progress = Progress(5, 1e-9 + 1, PlateauState(0.1 + 0.2, 2, 1), best)
    saved = json.loads(json.dumps(progress.to_json()))
    assert Progress.from_json(saved | {"further": 1}) == progress
