"""Evaluation: confusion matrices, loss and scores of a split."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from flair_jax.config import eval_batch_size
from flair_jax.data.dataset import Split, dataset_directory, open_split
from flair_jax.data.input_pipeline import DEFAULT_READING, Batch, Reading, on_device, split_batches
from flair_jax.data.nomenclature import Nomenclature
from flair_jax.errors import UserError
from flair_jax.evaluation import provenance, tables
from flair_jax.evaluation.adaptation import parts, suffix
from flair_jax.evaluation.grouped_metrics import FIELDS, by_patch, grouped_scores, groups
from flair_jax.evaluation.metrics import DEFINITIONS, challenge_scores, confusion_matrices, summary
from flair_jax.inference.loading import load, watches_ema
from flair_jax.models.functional import Arrays, abstract_model, forward
from flair_jax.models.losses import cross_entropy_sums
from flair_jax.models.ops import for_mesh
from flair_jax.models.preprocess import to_labels
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime import console
from flair_jax.runtime.atomic_io import atomic_write
from flair_jax.runtime.sharding import (
    batch_sharding,
    check_batch_size,
    gather_texts,
    largest,
    make_mesh,
    one_behind,
    replicated,
    to_global,
)
from flair_jax.viz import figures

_NO_MASKS = "no patch of this split has a mask: it can be predicted, but not scored"
EvalStep = jax.stages.Wrapped  # (params, batch_stats, batch) -> {str: jax.Array}


class NoMasksError(UserError):
    """A split whose patches have no masks cannot be scored."""


class StopRequestedError(Exception):
    """A process was told to stop before the evaluation was complete."""


@dataclasses.dataclass
class Evaluation:
    """Counts over a split, without the patches that have no mask.

    Attributes:
        confusions: (patches, classes, classes) int32, rows are the truth.
        loss_sum, loss_count: of the configuration's normalisation, see `losses`.
        fields: (patches,) str arrays by name: what the batches kept of `grouped_metrics.FIELDS`.
        indices: (patches,) int64, index of each patch in the split, from 0.
    """

    confusions: np.ndarray
    loss_sum: float
    loss_count: float
    fields: dict[str, np.ndarray]
    indices: np.ndarray

    @property
    def loss(self) -> float:
        """Mean over the split."""
        return self.loss_sum / max(self.loss_count, 1e-12)

    @property
    def confusion(self) -> np.ndarray:
        """(classes, classes) int64, over all patches."""
        return self.confusions.sum(0, dtype=np.int64)

    def miou(self, nomenclature: Nomenclature) -> float:
        """Mean IoU by the challenge's definition."""
        return challenge_scores(self.confusion, nomenclature.weights)["miou"]

    def scores(self, nomenclature: Nomenclature) -> dict[str, Any]:
        """All definitions of the scores, as plain numbers."""
        return summary(self.confusion, nomenclature.names, nomenclature.weights)


def make_eval_step(
    graphdef: nnx.GraphDef, spec: ModelSpec, loss_normalization: str, mesh: Mesh
) -> EvalStep:
    """A jitted function: parameters, statistics, batch -> loss sums and confusion matrices."""
    nomenclature, ops = spec.nomenclature, for_mesh(mesh)

    def eval_step(params: Arrays, batch_stats: Arrays, batch: dict[str, jax.Array]) -> dict:
        labels = to_labels(batch["mask"], nomenclature)
        logits = forward(graphdef, spec, params, batch_stats, batch, ops)
        total, count = cross_entropy_sums(
            logits, labels, jnp.asarray(nomenclature.weights), loss_normalization, ops
        )
        valid = batch["valid"]
        return {
            "loss_sum": jnp.sum(jnp.where(valid, total, 0)),
            "loss_count": jnp.sum(jnp.where(valid, count, 0)),
            "valid": valid,
            "stop": jnp.any(batch["stop"]),
            "confusions": confusion_matrices(
                labels, ops.best_class(logits), valid, len(nomenclature), ops
            ),
        }

    return jax.jit(
        eval_step,
        in_shardings=(replicated(mesh), replicated(mesh), batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )


def accumulate(
    eval_step: EvalStep,
    params: Arrays,
    batch_stats: Arrays,
    data: Iterable[Batch],
    mesh: Mesh,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Runs a split through an evaluation step; sums of the losses in float64 on the host.

    Args:
        eval_step: see `make_eval_step`.
        params, batch_stats: of the model.
        data: this process's share of the batches.
        mesh: the devices.
        stop: called before each batch; if it is true on any process, all of them stop.

    Raises:
        NoMasksError: no patch has a mask.
        StopRequestedError: see `stop`.
    """
    loss_sum = loss_count = 0.0
    confusions, kept = [], []

    def steps() -> Iterable[dict]:
        for batch in data:
            kept.append([batch[name] for name in FIELDS if name in batch])
            yield eval_step(params, batch_stats, to_global(on_device(batch, stop=stop()), mesh))

    valid = []
    for counts in one_behind(steps()):
        loss_sum += float(counts["loss_sum"])
        loss_count += float(counts["loss_count"])
        if counts["stop"]:
            raise StopRequestedError
        valid.append(np.asarray(counts["valid"]))
        confusions.append(np.asarray(counts["confusions"])[valid[-1]])
    if not any(map(np.any, valid)):
        raise NoMasksError(_NO_MASKS)
    indices = np.flatnonzero(np.concatenate(valid))
    fields = {
        name: gather_texts(np.stack(values), mesh)[indices]
        for name, values in zip(FIELDS, zip(*kept, strict=True), strict=False)
    }
    return Evaluation(np.concatenate(confusions), loss_sum, loss_count, fields, indices)


def together(evaluations: Sequence[tuple[Evaluation, np.ndarray]]) -> Evaluation:
    """The evaluations of parts of a split as one, given with their patches' indices in it."""
    indices = np.concatenate([of[evaluation.indices] for evaluation, of in evaluations])
    order = np.argsort(indices)

    def joined(arrays: Iterable[np.ndarray]) -> np.ndarray:
        return np.concatenate(list(arrays))[order]

    each = [evaluation for evaluation, _ in evaluations]
    return Evaluation(
        joined(evaluation.confusions for evaluation in each),
        sum(evaluation.loss_sum for evaluation in each),
        sum(evaluation.loss_count for evaluation in each),
        {name: joined(e.fields[name] for e in each) for name in each[0].fields},
        indices[order],
    )


def evaluate_checkpoint(
    checkpoint: epath.PathLike,
    split: Split,
    mesh: Mesh,
    *,
    batch_size: int,
    loss_normalization: str,
    reading: Reading = DEFAULT_READING,
    output: epath.PathLike | None = None,
    ema: bool | None = None,
    adapt: str = "",
    reuse: bool = False,
) -> dict[str, Any]:
    """Scores a checkpoint on a split; writes `metrics.json` and `confusion_matrix.png`.

    And `patches.json`, which has the `step`, the `split`, the `provenance`, and in `patches` the
    scores of every patch (see `grouped_metrics.by_patch`), one a line.

    Args:
        checkpoint: see `loading.find`; of a run, its best one is taken.
        split: what to score.
        mesh: the devices.
        batch_size: global batch.
        loss_normalization: see `losses.cross_entropy_sums`.
        reading: see `input_pipeline.batches`.
        output: folder to write to, or None.
        ema: score the exponential moving average of the weights; None: see `loading.load`.
        adapt: "domain" re-estimates the batch statistics from the images of each domain.
        reuse: keep what is in `output`, if it is of the same weights, data and versions.

    Returns:
        What `metrics.json` holds: `definitions`, `challenge`, `main`, `open_vocabulary`,
        `intervals`, `by_domain`, `by_camera`, `by_month` (see `grouped_metrics.grouped_scores`),
        `confusion_matrix` (rows are the truth), `loss`, `num_patches`, `split`, `data` (name of the
        data set), `synthetic`, `step`, `classes`, `adapt`, and `provenance` (see
        `provenance.of_result`).
    """
    check_batch_size(batch_size, mesh, "config.eval_batch_size")
    ema = watches_ema(checkpoint) if ema is None else ema
    spec, params, batch_stats, step = load(checkpoint, mesh, ema=ema)
    spec = spec.for_masks_of(split.data)
    spec.check_data(split.data, split.directory, scored=True)
    of = provenance.of_result(
        spec, params, batch_stats, step, split, folder=checkpoint, ema=ema, adapt=adapt,
        loss_normalization=loss_normalization, definitions=DEFINITIONS,
    )  # fmt: skip
    if reuse and output is not None:
        saved = provenance.read_current(epath.Path(output) / "metrics.json", of)
        if not largest(int(saved is None)):
            assert saved is not None
            console.log(f"the split {split.name!r} is already scored: {output}")
            return saved
    graphdef = abstract_model(spec)[0]
    eval_step = make_eval_step(graphdef, spec, loss_normalization, mesh)
    evaluations = []
    for part in parts(split, adapt, spec, params, batch_stats, mesh, reading=reading):
        data = split_batches(
            part.split, batch_size, mesh, metadata_encoding=spec.metadata_encoding,
            bands=spec.bands, refused_values=spec.refused_values, keep=FIELDS, reading=reading,
        )  # fmt: skip
        try:
            evaluation = accumulate(eval_step, params, part.batch_stats, data, mesh)
        except NoMasksError:
            continue
        evaluations.append((evaluation, part.indices))
    if not evaluations:
        raise NoMasksError(_NO_MASKS)
    evaluation = together(evaluations)
    metrics = {
        "definitions": DEFINITIONS,
        **evaluation.scores(spec.nomenclature),
        **grouped_scores(
            evaluation.confusions,
            groups(evaluation.fields, split.data.grouped_by),
            spec.nomenclature,
        ),
        "confusion_matrix": evaluation.confusion.tolist(),
        "classes": spec.nomenclature.names,
        "loss": evaluation.loss,
        "num_patches": len(evaluation.confusions),
        "split": split.name,
        "data": split.data.name,
        "synthetic": split.data.synthetic,
        "step": step,
        "adapt": adapt,
        "provenance": of,
    }
    if output is not None and jax.process_index() == 0:
        folder = epath.Path(output)
        folder.mkdir(parents=True, exist_ok=True)
        figures.plot_confusion_matrix(
            evaluation.confusion, spec.nomenclature, folder / "confusion_matrix.png"
        )
        patches = by_patch(
            evaluation.confusions, evaluation.fields, evaluation.indices, spec.nomenclature
        )
        lines = ",\n".join(map(json.dumps, patches))
        head = f'"step": {step}, "split": "{split.name}", "provenance": {json.dumps(of)}, "patches"'
        atomic_write(folder / "patches.json", f"{{{head}: [\n{lines}\n]}}\n")
        atomic_write(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    return metrics


def evaluate_run(
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    name: str,
    ema: bool | None = None,
    adapt: str = "",
) -> dict:
    """Scores the best checkpoint of a workdir on a split, into `evaluation/<split>/`.

    With `ema` by the exponential moving average of the weights, into `evaluation/<split>_ema/`;
    None: see `loading.load`. With `adapt`, see `evaluate_checkpoint`, into
    `evaluation/<split>_adapted/`.
    """
    directory = dataset_directory(config.data_dir, config.data_config)
    ema = watches_ema(workdir) if ema is None else ema
    output, mesh = output_folder(workdir, name, ema, adapt), make_mesh()
    metrics = evaluate_checkpoint(
        workdir,
        open_split(directory, name),
        mesh,
        batch_size=eval_batch_size(config, mesh.size),
        loss_normalization=config.loss_normalization,
        reading=Reading.of(config),
        output=output,
        ema=ema,
        adapt=adapt,
    )
    console.log(tables.all_tables(metrics))
    console.log(f"scores written to {output}")
    return metrics


def output_folder(
    workdir: epath.Path, split: str, ema: bool = False, adapt: str = ""
) -> epath.Path:
    """The folder of a run's scores: `evaluation/<split>`, followed by `_ema` and `_adapted`."""
    return workdir / "evaluation" / (split + suffix(ema, adapt))
