"""Adaptation to new images without labels: batch statistics re-estimated from them (AdaBN).

The parameters stay as they were trained; the running mean and variance of every batch
normalisation are replaced by those of the images that the model is applied to. Li et al. 2017,
"Revisiting Batch Normalization for Practical Domain Adaptation". The statistics are those that
PyTorch gives with `momentum=None` after one pass in training mode: the mean over the batches of
each batch's mean and unbiased variance. All batches have `BATCH` patches, whatever the devices, so
that the result does not depend on these, but for the rounding of float32.
"""

import functools
from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import Mesh

from flair_jax.inference.fill import fill_invalid
from flair_jax.inference.predictor import Model
from flair_jax.inference.raster_source import Source
from flair_jax.inference.tiles import Grid
from flair_jax.models.functional import Arrays, abstract_model, merge_model, model_batch_stats
from flair_jax.models.ops import for_mesh
from flair_jax.models.preprocess import normalise
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime.sharding import (
    batch_sharding,
    process_rows,
    replicate,
    replicated,
    to_global,
)

BATCH = 8  # patches
FEW = 8  # patches, or windows, below which a warning is printed
WINDOWS = 128  # of a raster, at most
WINDOW = 512  # pixels, where the size of the training patches is not known
VALID = 0.9  # share of the pixels of a window


def adaptation_order(count: int) -> np.ndarray:
    """Batches of a random order of `count` patches, always the same: (batches, BATCH) int64.

    The last batch is filled up from the beginning of the order, so that some patches count twice.
    """
    order = np.random.default_rng(0).permutation(count)
    return np.resize(order, (-(-count // BATCH), BATCH))


def _is_shared(mesh: Mesh) -> bool:
    """Whether the devices share a batch; otherwise each computes all of it."""
    return BATCH % mesh.size == 0


def adaptation_rows(mesh: Mesh) -> np.ndarray:
    """The rows of a batch that this process reads; all of them if the devices do not share it."""
    return process_rows(mesh, BATCH) if _is_shared(mesh) else np.arange(BATCH)


def adapted_statistics(
    spec: ModelSpec,
    params: Arrays,
    batch_stats: Arrays,
    data: Iterable[dict[str, np.ndarray]],
    mesh: Mesh,
) -> Arrays:
    """Statistics of the batch normalisations on some images.

    Args:
        spec: of the model.
        params, batch_stats: its arrays by name.
        data: batches of `adaptation_order`, of each the rows `adaptation_rows`: "image" (rows, H,
            W, bands) uint8, and "metadata" (rows, numbers) float32 for a model that takes it.
        mesh: the devices.

    Returns:
        `batch_stats` with other values, on all devices.
    """
    step = _statistics_of_batch(spec, mesh)
    sums = {name: np.zeros(value.shape) for name, value in batch_stats.items()}
    count = 0
    for batch in data:
        arrays: dict[str, np.ndarray] = {
            key: batch[key] for key in ("image", "metadata") if key in batch
        }
        placed = to_global(arrays, mesh) if _is_shared(mesh) else replicate(arrays, mesh)
        for name, value in jax.device_get(step(params, batch_stats, placed)).items():
            sums[name] += value
        count += 1
    return replicate({k: (total / count).astype(np.float32) for k, total in sums.items()}, mesh)


@functools.lru_cache(maxsize=8)  # so that many domains and rasters need one compilation
def _statistics_of_batch(spec: ModelSpec, mesh: Mesh) -> jax.stages.Wrapped:
    """A jitted function: parameters, statistics, batch -> the statistics of the batch alone."""
    whole = replicated(mesh)
    graphdef, ops = abstract_model(spec)[0], for_mesh(mesh)

    def of_batch(params: Arrays, batch_stats: Arrays, batch: dict[str, jax.Array]) -> Arrays:
        model = merge_model(graphdef, params, batch_stats, ops)
        # The statistics recorded are those of this batch alone, and nothing is dropped out.
        model.set_attributes(momentum=1.0)
        model.set_attributes(dropout=0.0, raise_if_not_found=False)
        metadata = batch["metadata"] if spec.takes_metadata else None
        model(normalise(batch["image"], spec), metadata, train=True, dropout_key=jax.random.key(0))
        return model_batch_stats(model)

    return jax.jit(
        of_batch,
        in_shardings=(whole, whole, batch_sharding(mesh) if _is_shared(mesh) else whole),
        out_shardings=whole,
    )


def adapt_to_raster(model: Model, source: Source, mesh: Mesh) -> tuple[Model, str]:
    """The model with statistics of a raster, and a note of what they were estimated from.

    They are of at most `WINDOWS` windows of the size of the training patches, taken at random,
    always the same, from those that are nearly all valid; if there are none, of the window with the
    most valid pixels.

    Args:
        model: to adapt; it is not changed.
        source: the raster.
        mesh: the devices.
    """
    side = max(model.spec.patch_size) or WINDOW
    grid = Grid.over(source.height, source.width, (side, side), margin=0, blended=False)
    count = grid.count
    windows: list[np.ndarray] = []
    best, most = None, 0.0
    for number in np.random.default_rng(0).permutation(count):
        row, column = divmod(int(number), grid.horizontal.count)
        image, valid = source.read(grid.vertical.pixels(row), grid.horizontal.pixels(column))
        share = float(valid.mean())
        if image is None or share <= most < VALID:
            continue
        if share >= VALID:
            windows.append(fill_invalid(image, valid))
        elif not windows:
            best, most = fill_invalid(image, valid), share
        if len(windows) == WINDOWS:
            break
    if not windows and best is not None:
        windows = [best]
    if not windows:
        return model, "not at all: no pixel is valid"
    rows = adaptation_rows(mesh)
    data = (
        {"image": np.stack([windows[i] for i in batch[rows]])}
        for batch in adaptation_order(len(windows))
    )
    spec, params = model.spec, model.params
    batch_stats = adapted_statistics(spec, params, model.batch_stats, data, mesh)
    adapted = Model(model.path, mesh, spec, params, batch_stats, model.step)
    note = f"batch statistics of {len(windows)} of {count} windows of {side} pixels"
    return adapted, note + (", too few to rely on" if len(windows) < FEW else "")
