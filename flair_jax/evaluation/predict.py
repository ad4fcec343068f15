"""Prediction of a split: one georeferenced PRED_<number>.tif per patch, and overlay images."""

import json
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import rasterio
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from flair_jax.config import eval_batch_size
from flair_jax.data.dataset import Split, dataset_directory, open_split
from flair_jax.data.input_pipeline import DEFAULT_READING, Batch, Reading, on_device, split_batches
from flair_jax.data.reference_facts import BENCHMARKS
from flair_jax.errors import UserError
from flair_jax.evaluation import provenance
from flair_jax.evaluation.adaptation import parts, suffix
from flair_jax.evaluation.submission import check_submittable, write_submission
from flair_jax.inference.loading import load, watches_ema
from flair_jax.models.functional import Arrays, abstract_model, forward
from flair_jax.models.ops import for_mesh
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime import console
from flair_jax.runtime.atomic_io import atomic_write
from flair_jax.runtime.sharding import (
    batch_sharding,
    check_batch_size,
    largest,
    local_rows,
    make_mesh,
    one_behind,
    process_rows,
    replicated,
    to_global,
    wait_for_hosts,
)
from flair_jax.viz import images

WRITERS = 4  # threads that write files while the devices predict
PredictStep = jax.stages.Wrapped  # (params, batch_stats, batch) -> (N, H, W) uint8


def make_predict_step(
    graphdef: nnx.GraphDef, spec: ModelSpec, mesh: Mesh, *, everywhere: bool = False
) -> PredictStep:
    """A jitted function: parameters, statistics, batch -> classes (N, H, W) uint8, from 0.

    The result is sharded like the batch, or with `everywhere` replicated on all devices.
    """
    ops = for_mesh(mesh)

    def predict_step(params: Arrays, batch_stats: Arrays, batch: dict[str, jax.Array]) -> jax.Array:
        logits = forward(graphdef, spec, params, batch_stats, batch, ops)
        return ops.best_class(logits).astype(jnp.uint8)

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
    with MemoryFile() as memory:  # so that any path of epath's will do
        with memory.open(**profile) as raster:
            raster.write(classes, 1)
        epath.Path(path).write_bytes(memory.read())


def overlay(image: np.ndarray, classes: np.ndarray, spec: ModelSpec) -> np.ndarray:
    """An image with the predicted classes' colours over it, and their names at its right.

    Args:
        image: (H, W, bands) uint8, the model's bands. In colour, or else infrared, or else its
            first band in grey.
        classes: (H, W) uint8, from 0.
        spec: of the model.

    Returns:
        (height, width, 3) uint8, at least as large as the image.
    """
    background = images.composite(image, spec.bands, "colour")
    if background is None:
        background = images.composite(image, spec.bands, "infrared")
    if background is None:
        background = images.grey(image[..., 0] / 255)
    mixed = images.overlay(background, classes, spec.nomenclature)
    return images.with_legend(mixed, spec.nomenclature, np.unique(classes).tolist())


def overlay_folder(predictions: epath.PathLike) -> epath.Path:
    """The folder of the overlays of a folder of predictions: beside it, `<its name>_overlays`."""
    predictions = epath.Path(predictions)
    return predictions.with_name(predictions.name + "_overlays")


def overlay_count(text: str) -> int | None:
    """How many overlays `--overlays` asks for; None: one of each patch.

    Raises:
        UserError: it is neither "all" nor a number from 0.
    """
    if text == "all":
        return None
    if not text.isdecimal():
        raise UserError(f"--overlays={text}: expected a number of patches, or 'all'")
    return int(text)


def predict_checkpoint(
    checkpoint: epath.PathLike,
    split: Split,
    mesh: Mesh,
    *,
    batch_size: int,
    output: epath.PathLike,
    reading: Reading = DEFAULT_READING,
    ema: bool | None = None,
    adapt: str = "",
    overlays: int | None = 0,
    submission: epath.PathLike | None = None,
    reuse: bool = False,
) -> int:
    """Predicts a split with a checkpoint and writes `PRED_<number>.tif` files.

    They are written into a temporary folder, which is renamed when all are complete;
    `<output>.json` beside it names the step, the split, the classes and the provenance. Overlays,
    `OVERLAY_<number>.png`, are written in the same way, see `overlay_folder`; those of earlier
    predictions go with them.

    Args:
        checkpoint: see `loading.find`; of a run, its best one is taken.
        split: what to predict; masks are not needed.
        mesh: the devices.
        batch_size: global batch.
        output: folder to create; an earlier one of that name is replaced.
        reading: see `input_pipeline.batches`.
        ema: predict with the exponential moving average of the weights; None: see `loading.load`.
        adapt: "domain" re-estimates the batch statistics from the images of each domain.
        overlays: number of patches, spread over the split, to write an overlay of; None: all.
        submission: a zip to write for the challenge, see `submission.write_submission`.
        reuse: keep what is in `output`, if it is of the same weights, data and versions.

    Returns:
        The number of predictions, over all processes.

    Raises:
        UserError: two patches have the same number, or no submission can be made.
    """
    check_batch_size(batch_size, mesh, "config.eval_batch_size")
    ema = watches_ema(checkpoint) if ema is None else ema
    spec, params, batch_stats, step = load(checkpoint, mesh, ema=ema)
    spec.check_data(split.data, split.directory, scored=False)
    if submission is not None:
        check_submittable(submission, split.name, spec.nomenclature)
    output = epath.Path(output)
    of = provenance.of_result(
        spec, params, batch_stats, step, split, folder=checkpoint, ema=ema, adapt=adapt,
    )  # fmt: skip
    facts = output.with_name(output.name + ".json")
    if reuse:
        current = output.exists() and provenance.read_current(facts, of) is not None
        if not largest(int(not current)):
            console.log(f"the split {split.name!r} is already predicted: {output}")
            return len(split)
    partial = _partial(output)
    overlay_partial = _partial(overlay_folder(output))
    with_overlay = _spread(len(split), overlays)
    first = jax.process_index() == 0
    if first:
        for folder in (partial, overlay_partial):
            if folder.exists():
                folder.rmtree()
        partial.mkdir(parents=True)
        if with_overlay:
            overlay_partial.mkdir()
    wait_for_hosts("predictions: folder made")
    predict_step = make_predict_step(abstract_model(spec)[0], spec, mesh)
    georeference = ("id", "transform", "crs")
    rows = process_rows(mesh, batch_size)

    def dispatched() -> Iterator[tuple[Batch, np.ndarray, jax.Array]]:
        """Batches, the indices of their patches in the split, and their classes to come."""
        for part in parts(split, adapt, spec, params, batch_stats, mesh, reading=reading):
            data = split_batches(
                part.split, batch_size, mesh, metadata_encoding=spec.metadata_encoding,
                bands=spec.bands, keep=georeference, reading=reading,
            )  # fmt: skip
            for number, batch in enumerate(data):
                arrays = to_global(on_device(batch), mesh)
                indices = part.indices.take(number * batch_size + rows, mode="clip")  # padding
                yield batch, indices, predict_step(params, part.batch_stats, arrays)

    def write(path: epath.Path, classes: np.ndarray, batch: Batch, i: int, draw: bool) -> None:
        write_prediction(path, classes, batch["transform"][i], str(batch["crs"][i]))
        if draw:
            name = f"OVERLAY_{batch['id'][i]}.png"
            images.write_png(overlay_partial / name, overlay(batch["image"][i], classes, spec))

    paths: set[epath.Path] = set()
    writing: list[Future] = []
    with ThreadPoolExecutor(WRITERS) as writers, warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        for batch, indices, result in one_behind(dispatched()):
            classes = local_rows(result)
            for future in writing:  # of the batch before: no more are held
                future.result()
            writing = []
            for i in np.flatnonzero(batch["sample"]).tolist():
                path = partial / f"PRED_{batch['id'][i]}.tif"
                if path in paths or path.exists():
                    raise UserError(
                        f"two patches of the split {split.name!r} have the number of {path.name}"
                    )
                paths.add(path)
                draw = indices[i] in with_overlay
                writing.append(writers.submit(write, path, classes[i], batch, i, draw))
        for future in writing:
            future.result()
    wait_for_hosts("predictions: files written")
    if first:
        for folder in (output, overlay_folder(output)):
            if folder.exists():
                folder.rmtree()
            if _partial(folder).exists():
                _partial(folder).rename(folder)
        summary = {
            "step": step,
            "split": split.name,
            "first_class": 0,
            "adapt": adapt,
            "classes": spec.nomenclature.names,
            "provenance": of,
        }
        atomic_write(facts, json.dumps(summary, indent=1) + "\n")
        if submission is not None:
            write_submission(output, submission, len(split), split.patch_size)
    return len(split)


def output_folder(workdir: epath.Path, ema: bool = False, adapt: str = "") -> epath.Path:
    """The folder of a run's predictions: `predictions`, followed by `_ema` and `_adapted`."""
    return workdir / ("predictions" + suffix(ema, adapt))


def _partial(folder: epath.Path) -> epath.Path:
    return folder.with_name(folder.name + ".partial")


def _spread(total: int, count: int | None) -> set[int]:
    """Indices of `count` patches spread evenly over `total`; all where None."""
    count = total if count is None else min(count, total)
    return {i * total // count for i in range(count)}


def predict_run(
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    name: str,
    ema: bool | None = None,
    adapt: str = "",
    overlays: int | None = 0,
    submission: epath.PathLike | None = None,
) -> int:
    """Predicts a split with the best checkpoint of a workdir, into `predictions/`.

    With `ema` by the exponential moving average of the weights, into `predictions_ema/`; None: see
    `loading.load`; with `adapt` into `predictions_adapted/`. For `adapt`, `overlays` and
    `submission`, see `predict_checkpoint`.
    """
    directory = dataset_directory(config.data_dir, config.data_config)
    ema = watches_ema(workdir) if ema is None else ema
    output, mesh = output_folder(workdir, ema, adapt), make_mesh()
    split = open_split(directory, name)
    count = predict_checkpoint(
        workdir,
        split,
        mesh,
        batch_size=eval_batch_size(config, mesh.size),
        output=output,
        reading=Reading.of(config),
        ema=ema,
        adapt=adapt,
        overlays=overlays,
        submission=submission,
    )
    console.log(f"{count} predictions of {name!r} in {output}")
    if overlays != 0:
        console.log(f"overlays of them in {overlay_folder(output)}")
    if submission is not None:
        console.log(f"submission in {submission}: {count} files, checked")
        benchmark = BENCHMARKS.get(split.data.name)
        if benchmark and count != benchmark.patches:
            console.log(
                f"note: {benchmark.name}'s test split has {benchmark.patches:,} patches, this one "
                f"{count:,}"
            )
    return count
