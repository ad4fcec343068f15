"""The state of a training run as one pytree."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flair_jax.models.functional import Arrays


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """Everything that a training step reads and writes.

    Attributes:
        step: () int32, number of steps taken.
        params: parameters by dotted name, float32.
        stats: running statistics of the batch normalisations by dotted name, float32.
        opt_state: the optimizer's own state, with the learning rate among it.
        average: moving averages of `params` and `stats`, all by name; empty if there are none.
    """

    step: jax.Array
    params: Arrays
    stats: Arrays
    opt_state: Any
    average: Arrays = dataclasses.field(default_factory=dict)


def create_train_state(
    params: Mapping[str, jax.Array],
    stats: Mapping[str, jax.Array],
    optimizer: optax.GradientTransformation,
    *,
    averaged: bool = False,
) -> TrainState:
    """The state before the first step; `averaged` for one that keeps moving averages."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=dict(params),
        stats=dict(stats),
        opt_state=optimizer.init(dict(params)),
        average={k: jnp.copy(v) for k, v in {**params, **stats}.items()} if averaged else {},
    )
