"""The state of a training run as one pytree, and the model's parts by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from flair_jax.models import UNet

Arrays = dict[str, jax.Array]  # "encoder.layer1.0.conv1.kernel" -> array


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


def split_model(model: UNet) -> tuple[nnx.GraphDef, Arrays, Arrays]:
    """The model as (structure, parameters by name, statistics by name)."""
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)  # type: ignore[misc]
    return graphdef, _by_name(params), _by_name(stats)


def merge_model(graphdef: nnx.GraphDef, params: Arrays, stats: Arrays) -> UNet:
    """The inverse of `split_model`: a model that holds copies of these arrays."""
    state = nnx.from_flat_state(
        [
            (_path(name), kind(value))
            for kind, arrays in ((nnx.Param, params), (nnx.BatchStat, stats))
            for name, value in arrays.items()
        ]
    )
    return nnx.merge(graphdef, state, copy=True)


def model_stats(model: UNet) -> Arrays:
    """The running statistics of a model by name, as they are after a forward pass."""
    return _by_name(nnx.state(model, nnx.BatchStat))


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


def _by_name(state: nnx.State) -> Arrays:
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def _path(name: str) -> tuple[int | str, ...]:
    # List members are integers in a path; the metadata MLP's keys are strings that look like them.
    parts = name.split(".")
    return tuple(
        int(part) if part.isdigit() and before != "enc_mlp" else part
        for before, part in zip(["", *parts], parts, strict=False)
    )
