"""After training: scores and predicts the test split with the best checkpoint."""

from typing import Any

from flair_jax.data import dataset
from flair_jax.data.input_pipeline import Reading
from flair_jax.errors import UserError
from flair_jax.evaluation import evaluate, predict, tables
from flair_jax.evaluation.evaluate import NoMasksError, evaluate_checkpoint
from flair_jax.evaluation.predict import predict_checkpoint
from flair_jax.inference.loading import DamagedError
from flair_jax.runtime import console
from flair_jax.training.setup import Experiment


def score_and_predict(experiment: Experiment) -> dict[str, Any] | None:
    """Scores a run's best checkpoint on the test split, and predicts it if the run asks for that.

    Weights and their moving average are scored; those that the run monitors come last, are
    returned, and predict. Results of the same checkpoint, data and versions are kept.

    Returns:
        The metrics (see `evaluate.evaluate_checkpoint`), or None if the split cannot be scored.

    Raises:
        UserError: the best checkpoint is damaged or lost.
    """
    config, workdir, mesh = experiment.config, experiment.workdir, experiment.mesh
    try:
        test = dataset.open_split(
            dataset.dataset_directory(config.data_dir, config.data_config), "test"
        )
    except UserError as error:
        console.log(f"no test score: {error}")
        return None
    watched = experiment.monitor.ema
    options: dict[str, Any] = {
        "batch_size": experiment.eval_batch_size,
        "reading": Reading.of(config),
        "reuse": True,
    }
    metrics = None
    try:
        for ema in (not watched, watched) if config.ema_decay else (watched,):
            try:
                metrics = evaluate_checkpoint(
                    workdir, test, mesh, output=evaluate.output_folder(workdir, "test", ema),
                    ema=ema, loss_normalization=config.loss_normalization, **options,
                )  # fmt: skip
            except NoMasksError as error:
                console.log(f"no test score: {error}")
                continue
            title = "exponential moving average of the weights:\n" if ema else ""
            console.log(title + tables.all_tables(metrics))
        if config.predict_after_training:
            output = predict.output_folder(workdir, watched)
            count = predict_checkpoint(workdir, test, mesh, output=output, ema=watched, **options)
            console.log(f"{count} predictions in {output}")
    except DamagedError as error:
        raise UserError(
            f"{error}\nTraining is finished, and that checkpoint cannot be made again: train in "
            "another --workdir to have the scores of its best epoch."
        ) from error
    console.log(f"all results are in {workdir}")
    return metrics
