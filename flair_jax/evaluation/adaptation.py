"""Parts of a split, each with batch statistics of its own domain (`--adapt=domain`)."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh

from flair_jax.data.dataset import Split, as_text
from flair_jax.data.input_pipeline import DEFAULT_READING, Reading, batches
from flair_jax.inference.adaptation import (
    FEW,
    adaptation_order,
    adaptation_rows,
    adapted_statistics,
)
from flair_jax.models.functional import Arrays
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime import console


@dataclasses.dataclass(frozen=True)
class Part:
    """Some patches of a split, and the batch statistics to predict them with.

    Attributes:
        split: of these patches.
        indices: (patches,) int64, their indices in the whole split, ascending.
        batch_stats: by dotted name.
    """

    split: Split
    indices: np.ndarray
    batch_stats: Arrays


def parts(
    split: Split,
    adapt: str,
    spec: ModelSpec,
    params: Arrays,
    batch_stats: Arrays,
    mesh: Mesh,
    *,
    reading: Reading = DEFAULT_READING,
) -> Iterator[Part]:
    """The whole split with the model's statistics, or its domains with their own.

    Args:
        split: to predict; its masks are not used.
        adapt: "" or "domain"; a domain is what the data set groups its patches by.
        spec, params, batch_stats: of the model.
        mesh: the devices.
        reading: see `input_pipeline.batches`.
    """
    if not adapt:
        yield Part(split, np.arange(len(split)), batch_stats)
        return
    domains = np.array([as_text(record["domain"]) for record in split.records])
    for name in np.unique(domains):
        indices = np.flatnonzero(domains == name)
        part = split.subset(indices)
        if len(part) < FEW:
            console.log(
                f"warning: {name} has only {len(part)} of the {FEW} patches needed for reliable "
                "batch statistics"
            )
        order = adaptation_order(len(part))
        data = batches(
            part, order[:, adaptation_rows(mesh)], metadata_encoding=spec.metadata_encoding,
            bands=spec.bands, reading=reading,
        )  # fmt: skip
        bar = console.progress_bar(data, total=len(order), desc=f"adapt to {name}", unit="batch")
        yield Part(part, indices, adapted_statistics(spec, params, batch_stats, bar, mesh))


def suffix(ema: bool, adapt: str) -> str:
    """What follows the names of the folders of results."""
    return ("_ema" if ema else "") + ("_adapted" if adapt else "")
