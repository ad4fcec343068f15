"""After training: scores and predicts the test split with the best checkpoint."""

import json
from typing import Any

import ml_collections
from etils import epath
from jax.sharding import Mesh

from flair_jax.data import input_pipeline
from flair_jax.errors import UserError
from flair_jax.evaluation import tables
from flair_jax.evaluation.evaluate import NoMasksError, evaluate_checkpoint, output_folder
from flair_jax.evaluation.predict import predict_checkpoint
from flair_jax.runtime import console
from flair_jax.training.checkpoints import Checkpoints


def score_and_predict(
    config: ml_collections.ConfigDict, workdir: epath.Path, mesh: Mesh
) -> dict[str, Any] | None:
    """Scores a run's best checkpoint on the test split, and predicts it if the run asks for that.

    Results that were already written for that checkpoint are kept.

    Returns:
        The metrics (see `evaluate.evaluate_checkpoint`), or None if the split cannot be scored.
    """
    directory = input_pipeline.dataset_directory(config.data_dir, config.data_config)
    try:
        test = input_pipeline.open_split(directory, "test")
    except UserError as error:
        console.log(f"no test score: {error}")
        return None
    batch_size = config.eval_batch_size or config.batch_size
    options = {
        "batch_size": batch_size,
        "num_workers": config.num_workers,
        "prefetch_mb": config.prefetch_mb,
    }
    checkpoints = workdir / "checkpoints"
    reader = Checkpoints(checkpoints, read_only=True)
    best = reader.best()
    reader.close()
    metrics = None
    for ema in (True, False) if config.ema_decay else (False,):
        output = output_folder(workdir, "test", ema)
        metrics = _read_if_current(output / "metrics.json", best, "test")
        if metrics is not None:
            console.log(f"the test split is already scored: {output}")
        else:
            try:
                metrics = evaluate_checkpoint(
                    checkpoints, test, mesh, output=output, ema=ema,
                    loss_normalization=config.loss_normalization, **options,
                )  # fmt: skip
            except NoMasksError as error:
                console.log(f"no test score: {error}")
        if metrics is not None:
            title = "exponential moving average of the weights:\n" if ema else ""
            console.log(title + tables.all_tables(metrics))
    if config.predict_after_training:
        predictions = workdir / "predictions"
        if predictions.exists() and _read_if_current(workdir / "predictions.json", best, "test"):
            console.log(f"the test split is already predicted: {predictions}")
        else:
            count = predict_checkpoint(checkpoints, test, mesh, output=predictions, **options)
            console.log(f"{count} predictions in {predictions}")
    console.log(f"all results are in {workdir}")
    return metrics


def _read_if_current(path: epath.Path, step: int | None, split: str) -> dict | None:
    """The content of a JSON file if it was written for this step and split."""
    if not path.exists():
        return None
    values = json.loads(path.read_text())
    return values if (values["step"], values["split"]) == (step, split) else None
