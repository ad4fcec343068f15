"""The arrays of a training run as one pytree."""

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
    """All arrays that a training step reads and writes.

    Attributes:
        step: () int32, number of steps taken.
        params: parameters by dotted name, float32.
        batch_stats: running statistics of the batch normalisations by dotted name, float32.
        opt_state: the optimizer's state, which includes the learning rate.
        ema: exponential moving averages of `params` and `batch_stats` by name; empty if unused.
    """

    step: jax.Array
    params: Arrays
    batch_stats: Arrays
    opt_state: Any
    ema: Arrays = dataclasses.field(default_factory=dict)


def create_train_state(
    params: Mapping[str, jax.Array],
    batch_stats: Mapping[str, jax.Array],
    optimizer: optax.GradientTransformation,
    *,
    ema: bool = False,
) -> TrainState:
    """The state before the first step; with `ema`, moving averages are kept."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=dict(params),
        batch_stats=dict(batch_stats),
        opt_state=optimizer.init(dict(params)),
        ema={k: jnp.copy(v) for k, v in {**params, **batch_stats}.items()} if ema else {},
    )
