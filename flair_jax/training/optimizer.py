"""The optimizer, the plateau schedule of its learning rate, and early stopping."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import optax


def make_optimizer(learning_rate: float) -> optax.GradientTransformation:
    """Plain stochastic gradient descent, its learning rate kept in the state.

    The rate is data, not code, so that the plateau schedule changes it without recompiling.
    """
    return optax.inject_hyperparams(optax.sgd, hyperparam_dtype=jnp.float32)(
        learning_rate=learning_rate
    )


def learning_rate(opt_state: Any) -> float:
    """The rate that the next step will use."""
    return float(opt_state.hyperparams["learning_rate"])


def with_learning_rate(opt_state: Any, rate: float) -> Any:
    """The same optimizer state with another rate, with the sharding of the old one."""
    old = opt_state.hyperparams["learning_rate"]
    new = jnp.asarray(rate, old.dtype)
    new = new if isinstance(old, float) else jnp.full_like(old, new)
    return opt_state._replace(hyperparams={**opt_state.hyperparams, "learning_rate": new})


@dataclasses.dataclass
class Plateau:
    """Lowers the learning rate when the validation loss stops decreasing.

    PyTorch's `ReduceLROnPlateau` in mode "min" with a relative threshold, to the digit.
    """

    rate: float
    factor: float = 0.5
    patience: int = 10
    cooldown: int = 4
    threshold: float = 1e-4
    min_lr: float = 1e-7
    best: float = math.inf
    bad_epochs: int = 0
    cooling: int = 0

    def update(self, loss: float) -> float:
        """Takes the validation loss of one more epoch; returns the rate for the next."""
        if loss < self.best * (1 - self.threshold):
            self.best, self.bad_epochs = loss, 0
        else:
            self.bad_epochs += 1
        if self.cooling > 0:
            self.cooling -= 1
            self.bad_epochs = 0
        if self.bad_epochs > self.patience:
            lower = max(self.rate * self.factor, self.min_lr)
            if self.rate - lower > 1e-8:  # PyTorch's eps: a smaller change is not made
                self.rate = lower
            self.cooling, self.bad_epochs = self.cooldown, 0
        return self.rate


@dataclasses.dataclass
class EarlyStop:
    """Stops when the validation loss has not decreased for `patience` epochs."""

    patience: int = 30
    best: float = math.inf
    best_epoch: int = -1
    waited: int = 0

    def update(self, loss: float, epoch: int) -> bool:
        """Takes the validation loss of an epoch; returns whether it is the best so far."""
        if loss < self.best:
            self.best, self.best_epoch, self.waited = loss, epoch, 0
            return True
        self.waited += 1
        return False

    @property
    def stopped(self) -> bool:
        """Whether training should end."""
        return self.waited >= self.patience
