"""A model as a pure function: its structure, and its arrays by dotted name."""

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util

from flair_jax.models.ops import tpu
from flair_jax.models.preprocess import normalise
from flair_jax.models.spec import ModelSpec
from flair_jax.models.unet import UNet

Arrays = dict[str, jax.Array]  # "encoder.layer1.0.conv1.kernel" -> array


def split_model(model: UNet) -> tuple[nnx.GraphDef, Arrays, Arrays]:
    """The model as (structure, parameters by name, statistics by name)."""
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)  # type: ignore[misc]
    return graphdef, _by_name(params), _by_name(batch_stats)


def merge_model(graphdef: nnx.GraphDef, params: Arrays, batch_stats: Arrays) -> UNet:
    """The inverse of `split_model`: a model that holds copies of these arrays."""
    state = nnx.from_flat_state(
        [
            (_path(name), kind(value))
            for kind, arrays in ((nnx.Param, params), (nnx.BatchStat, batch_stats))
            for name, value in arrays.items()
        ]
    )
    return nnx.merge(graphdef, state, copy=True)


def model_batch_stats(model: UNet) -> Arrays:
    """The running statistics of a model by name, as they are after a forward pass."""
    return _by_name(nnx.state(model, nnx.BatchStat))


def forward(
    graphdef: nnx.GraphDef,
    spec: ModelSpec,
    params: Arrays,
    batch_stats: Arrays,
    batch: dict[str, jax.Array],
) -> jax.Array:
    """Logits (N, H, W, classes) float32 of a batch by the running statistics; inside jit."""
    logits = folded_forward(graphdef, spec, params, batch_stats, batch)
    return tpu.unfold(logits, len(spec.nomenclature)).astype(jnp.float32)


def folded_forward(
    graphdef: nnx.GraphDef,
    spec: ModelSpec,
    params: Arrays,
    batch_stats: Arrays,
    batch: dict[str, jax.Array],
) -> jax.Array:
    """As `forward`, but the logits as they are computed: see `UNet.folded_logits`."""
    model = merge_model(graphdef, params, batch_stats)
    image = normalise(batch["image"], spec)
    return model.folded_logits(image, batch["metadata"] if spec.takes_metadata else None)


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
