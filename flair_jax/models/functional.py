"""A model as a pure function: its structure, and its arrays by dotted name."""

import functools

import jax
import numpy as np
from flax import nnx, traverse_util

from flair_jax.models.ops import FeatureMap, Ops, plain
from flair_jax.models.preprocess import normalise
from flair_jax.models.spec import ModelSpec
from flair_jax.models.unet import UNet

Arrays = dict[str, jax.Array]  # "encoder.layer1.0.conv1.kernel" -> array


def split_model(model: UNet) -> tuple[nnx.GraphDef, Arrays, Arrays]:
    """The model as (structure, parameters by name, running statistics by name)."""
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)  # type: ignore[misc]
    return graphdef, _by_name(params), _by_name(batch_stats)


@functools.lru_cache(maxsize=8)
def abstract_model(spec: ModelSpec) -> tuple[nnx.GraphDef, Arrays, Arrays]:
    """What `split_model` gives, with shapes in place of arrays."""
    return split_model(spec.abstract_model())


def merge_model(
    graphdef: nnx.GraphDef, params: Arrays, batch_stats: Arrays, ops: Ops = plain
) -> UNet:
    """The inverse of `split_model`: a model that holds copies of these arrays.

    It is computed in the form `ops`, whichever the split model had: the form belongs to the
    devices that the model is called on, not to its structure.
    """
    state = nnx.from_flat_state(
        [
            (_path(name), kind(value))
            for kind, arrays in ((nnx.Param, params), (nnx.BatchStat, batch_stats))
            for name, value in arrays.items()
        ]
    )
    model = nnx.merge(graphdef, state, copy=True)
    model.set_attributes(ops=ops)
    return model


def model_batch_stats(model: UNet) -> Arrays:
    """The running statistics of a model by name, as they are after a forward pass."""
    return _by_name(nnx.state(model, nnx.BatchStat))


def forward(
    graphdef: nnx.GraphDef,
    spec: ModelSpec,
    params: Arrays,
    batch_stats: Arrays,
    batch: dict[str, jax.Array],
    ops: Ops = plain,
) -> FeatureMap:
    """Logits of a batch, normalised by the running statistics; to be called inside `jax.jit`.

    Args:
        graphdef: the model's structure, see `split_model`.
        spec: of the model.
        params, batch_stats: its arrays by name.
        batch: "image" (N, H, W, bands) uint8, and "metadata" (N, numbers) float32 for a model that
            takes it.
        ops: the form for the devices that it is computed on, see `flair_jax.models.ops.for_mesh`.

    Returns:
        (N, H, W, classes) of the spec's dtype, a map of `ops`; of the plain ones, an array.
    """
    model = merge_model(graphdef, params, batch_stats, ops)
    image = normalise(batch["image"], spec)
    return model(image, batch["metadata"] if spec.takes_metadata else None)


def value_fault(name: str, array: np.ndarray) -> str:
    """What is wrong with the values of a weight or statistic, "" if nothing is.

    Args:
        name: its dotted name, which tells whether it is a running variance.
        array: its values.
    """
    if not (finite := np.isfinite(array)).all():
        return f"not finite in {np.size(array) - int(finite.sum()):,} of {np.size(array):,} values"
    if name.endswith(".var") and (lowest := float(np.min(array, initial=0))) < 0:
        return f"variances below 0, down to {lowest:.3g}"
    return ""


def _by_name(state: nnx.State) -> Arrays:
    # The pure dict and not `to_flat_state`: how a variable gives its array has changed between
    # versions of Flax.
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    return {".".join(map(str, path)): array for path, array in flat.items()}


def _path(name: str) -> tuple[int | str, ...]:
    # List members are integers in a path; the metadata MLP's keys are strings that look like them.
    parts = name.split(".")
    return tuple(
        int(part) if part.isdigit() and before != "enc_mlp" else part
        for before, part in zip(["", *parts], parts, strict=False)
    )
