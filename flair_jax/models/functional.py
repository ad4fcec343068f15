"""A model as a pure function: its structure, and its arrays by dotted name."""

import jax
import jax.numpy as jnp
from flax import nnx

from flair_jax.models.ops import tpu
from flair_jax.models.preprocess import normalise
from flair_jax.models.spec import ModelCard
from flair_jax.models.unet import UNet

Arrays = dict[str, jax.Array]  # "encoder.layer1.0.conv1.kernel" -> array


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


def forward(
    graphdef: nnx.GraphDef,
    card: ModelCard,
    params: Arrays,
    stats: Arrays,
    batch: dict[str, jax.Array],
) -> jax.Array:
    """Logits (N, H, W, classes) float32 of a batch by the running statistics; inside jit."""
    logits = folded_forward(graphdef, card, params, stats, batch)
    return tpu.unfold(logits, len(card.nomenclature)).astype(jnp.float32)


def folded_forward(
    graphdef: nnx.GraphDef,
    card: ModelCard,
    params: Arrays,
    stats: Arrays,
    batch: dict[str, jax.Array],
) -> jax.Array:
    """As `forward`, but the logits as they are computed: see `UNet.folded_logits`."""
    model = merge_model(graphdef, params, stats)
    image = normalise(batch["image"], card)
    return model.folded_logits(image, batch["metadata"] if card.takes_metadata else None)


def _by_name(state: nnx.State) -> Arrays:
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def _path(name: str) -> tuple[int | str, ...]:
    # List members are integers in a path; the metadata MLP's keys are strings that look like them.
    parts = name.split(".")
    return tuple(
        int(part) if part.isdigit() and before != "enc_mlp" else part
        for before, part in zip(["", *parts], parts, strict=False)
    )
