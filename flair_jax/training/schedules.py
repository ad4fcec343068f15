"""What training decides after each epoch: the best one, the learning rate, and when to stop."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from flair_jax.config import is_of_ema


@dataclasses.dataclass(frozen=True)
class Monitor:
    """The validation value that the schedules watch.

    Attributes:
        name: a choice of `config.monitor`; `..._ema` is of the moving average of the weights.
    """

    name: str

    @property
    def higher_is_better(self) -> bool:
        """Whether it is a score, and not a loss."""
        return "miou" in self.name

    @property
    def ema(self) -> bool:
        """Whether it is of the exponential moving average of the weights."""
        return is_of_ema(self.name)

    def improves(self, value: float, best: float | None, threshold: float = 0.0) -> bool:
        """Whether a value is better than the best so far, by more than a share of that."""
        if best is None:
            return not math.isnan(value)
        if self.higher_is_better:
            return value > best * (1 + threshold)
        return value < best * (1 - threshold)


@dataclasses.dataclass(frozen=True)
class PlateauState:
    """The state of the learning rate's schedule.

    Attributes:
        best: the best value so far.
        bad_epochs: epochs without improvement since then, or since the last reduction.
        cooling: epochs of the cooldown that are left.
    """

    best: float | None = None
    bad_epochs: int = 0
    cooling: int = 0


@dataclasses.dataclass(frozen=True)
class Plateau:
    """Lowers the learning rate when the monitored value stops improving.

    PyTorch's `ReduceLROnPlateau` with a relative threshold, to the digit. The attributes are the
    keys of `config.plateau`.
    """

    factor: float = 0.5
    patience: int = 10
    cooldown: int = 4
    threshold: float = 1e-4
    min_lr: float = 1e-7

    def update(
        self, state: PlateauState, rate: float, value: float, monitor: Monitor
    ) -> tuple[PlateauState, float]:
        """Takes the learning rate and the value of one more epoch; gives the next epoch's rate."""
        best, bad_epochs, cooling = dataclasses.astuple(state)
        if monitor.improves(value, best, self.threshold):
            best, bad_epochs = value, 0
        else:
            bad_epochs += 1
        if cooling > 0:
            cooling -= 1
            bad_epochs = 0
        if bad_epochs > self.patience:
            lower = max(rate * self.factor, self.min_lr)
            if rate - lower > 1e-8:  # PyTorch's eps: a smaller change is not made
                rate = lower
            cooling, bad_epochs = self.cooldown, 0
        return PlateauState(best, bad_epochs, cooling), rate


@dataclasses.dataclass(frozen=True)
class Best:
    """The epoch with the best value so far, the first one among equals.

    Attributes:
        step: its last step, under which it is saved.
        epoch: its number, from 1.
        value: the monitored value.
    """

    step: int
    epoch: int
    value: float


@dataclasses.dataclass(frozen=True)
class Progress:
    """The part of a run's state that is not arrays.

    Attributes:
        epoch: number of epochs finished, validation included.
        loss_sum: sum of the losses of the current epoch's steps so far.
        plateau: the state of the learning rate's schedule.
        best: the best epoch, or None.
    """

    epoch: int = 0
    loss_sum: float = 0.0
    plateau: PlateauState = PlateauState()
    best: Best | None = None

    @property
    def epochs_since_best(self) -> int:
        """Epochs finished without a new best one."""
        return self.epoch - (self.best.epoch if self.best else 0)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Progress":
        """The inverse of `to_json`; passes over further keys.

        Raises:
            KeyError, TypeError: the values are no such progress.
        """
        best = values["best"]
        return cls(
            values["epoch"],
            values["loss_sum"],
            PlateauState(**values["plateau"]),
            None if best is None else Best(**best),
        )
