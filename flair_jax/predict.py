"""A split -> one georeferenced PRED_<number>.tif for each patch."""

import json
import shutil
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import rasterio
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from rasterio.transform import Affine

from flair_jax import console
from flair_jax.checkpoint import load
from flair_jax.errors import UserError
from flair_jax.evaluate import check_bands, forward, on_device, split_batches
from flair_jax.input_pipeline import Split, dataset_directory, open_split
from flair_jax.model_card import ModelCard
from flair_jax.sharding import (
    batch_sharding,
    check_batch_size,
    local_rows,
    make_mesh,
    replicated,
    to_global,
    wait_for_hosts,
)
from flair_jax.train_state import Arrays
from flair_jax.whole_files import write_whole

PredictStep = Callable[[Arrays, Arrays, dict[str, jax.Array]], jax.Array]


def make_predict_step(
    graphdef: nnx.GraphDef, card: ModelCard, mesh: Mesh, *, everywhere: bool = False
) -> PredictStep:
    """A jitted function: parameters, statistics, batch -> classes (N, H, W) uint8, from 0.

    The devices share the classes as they do the batch, or with `everywhere` all have all of them.
    """

    def predict_step(params: Arrays, stats: Arrays, batch: dict[str, jax.Array]) -> jax.Array:
        return jnp.argmax(forward(graphdef, card, params, stats, batch), -1).astype(jnp.uint8)

    return jax.jit(
        predict_step,
        in_shardings=(replicated(mesh), replicated(mesh), batch_sharding(mesh)),
        out_shardings=replicated(mesh) if everywhere else batch_sharding(mesh),
    )


def write_prediction(
    path: epath.PathLike, classes: np.ndarray, transform: np.ndarray, crs: str
) -> None:
    """Writes one patch in the challenge's form: uint8, LZW, classes from 0.

    Args:
        path: the file.
        classes: (H, W) uint8.
        transform: (6,) float64, the affine's a, b, c, d, e, f.
        crs: "EPSG:n" or WKT; "" for none.
    """
    profile = {
        "driver": "GTiff", "dtype": "uint8", "count": 1, "compress": "lzw",
        "height": classes.shape[0], "width": classes.shape[1],
        "transform": Affine(*transform), "crs": crs or None,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile) as raster:
            raster.write(classes, 1)


def predict_checkpoint(
    checkpoint: epath.PathLike,
    split: Split,
    mesh: Mesh,
    *,
    batch_size: int,
    output: epath.PathLike,
    num_workers: int = 0,
    averaged: bool = False,
) -> int:
    """Predicts a split with a checkpoint and writes `PRED_<number>.tif` files.

    They are written into a folder of another name, which gets its own when all are there;
    `<output>.json` beside it names the step, the split and the classes.

    Args:
        checkpoint: see `checkpoint.find`; of a run, its best one is taken.
        split: what to predict; masks are not needed.
        mesh: the devices.
        batch_size: global batch.
        output: folder to make; an earlier one of that name is replaced.
        num_workers: see `input_pipeline.batches`.
        averaged: predict with the moving average of the weights.

    Returns:
        The number of files, over all hosts.
    """
    check_batch_size(batch_size, mesh, "config.eval_batch_size")
    card, params, stats, step = load(checkpoint, mesh, averaged=averaged)
    check_bands(split)
    output = epath.Path(output)
    partial = output.with_name(output.name + ".partial")
    first = jax.process_index() == 0
    if first:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
    wait_for_hosts("predictions: folder made")
    predict_step = make_predict_step(nnx.split(card.abstract_model())[0], card, mesh)
    place = ("id", "transform", "crs")
    for batch in split_batches(split, card, batch_size, num_workers=num_workers, keep=place):
        classes = local_rows(predict_step(params, stats, to_global(on_device(batch), mesh)))
        for i in np.flatnonzero(batch["sample"]):
            path = partial / f"PRED_{batch['id'][i]}.tif"
            if path.exists():
                raise UserError(
                    f"two patches of the split {split.name!r} have the number of {path.name}"
                )
            write_prediction(path, classes[i], batch["transform"][i], str(batch["crs"][i]))
    wait_for_hosts("predictions: files written")
    if first:
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)
        note = {
            "step": step,
            "split": split.name,
            "first_class": 0,
            "classes": card.nomenclature.names,
        }
        write_whole(output.with_name(output.name + ".json"), json.dumps(note, indent=1) + "\n")
    return len(split)


def predict_run(
    config: ml_collections.ConfigDict, workdir: epath.Path, name: str, averaged: bool = False
) -> int:
    """Predicts a split with the best checkpoint of a workdir, into `predictions/`.

    With `averaged`, by the moving average of the weights, into `predictions_average/`.
    """
    directory = dataset_directory(config.data_dir, config.data_config)
    output = workdir / ("predictions_average" if averaged else "predictions")
    count = predict_checkpoint(
        workdir,
        open_split(directory, name),
        make_mesh(),
        batch_size=config.eval_batch_size or config.batch_size,
        output=output,
        num_workers=config.num_workers,
        averaged=averaged,
    )
    console.say(f"{count} predictions of {name!r} in {output}")
    return count
