"""The training loop."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
from etils import epath
from jax.sharding import Mesh

from flair_jax import config as configuration
from flair_jax import input_pipeline, report
from flair_jax.after_training import score_and_predict
from flair_jax.checkpoint import Checkpoints, Progress
from flair_jax.errors import UserError
from flair_jax.evaluate import accumulate, check_bands, make_eval_step, on_device, split_batches
from flair_jax.initial_weights import initial_weights
from flair_jax.input_pipeline import Split
from flair_jax.metric_writer import MetricWriter
from flair_jax.model_card import FILE, ModelCard, band_places
from flair_jax.models.unet import check_size
from flair_jax.optimizer import (
    EarlyStop,
    Plateau,
    make_optimizer,
    with_learning_rate,
)
from flair_jax.sharding import check_batch_size, make_mesh, replicate, to_global
from flair_jax.train_state import TrainState, create_train_state, split_model
from flair_jax.train_step import TrainStep, make_train_step


@dataclasses.dataclass
class Run:
    """The parts of a run that its loop uses; made once by `set_up`."""

    config: ml_collections.ConfigDict
    workdir: epath.Path
    mesh: Mesh
    card: ModelCard
    splits: dict[str, Split]
    checkpoints: Checkpoints
    state: TrainState
    progress: Progress
    train_step: TrainStep
    validate: Callable[[TrainState], Any]
    steps_per_epoch: int


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> dict | None:
    """Trains, or goes on training, then scores the best checkpoint on the test split.

    Args:
        config: see `config.default`.
        workdir: the run's folder; made if missing. If it holds an interrupted run of the same
            configuration, that run goes on from its last checkpoint.

    Returns:
        The test split's metrics (see `evaluate.evaluate_checkpoint`), or None if it has no masks.

    Raises:
        UserError: something that the user can mend is wrong; the message says what.
    """
    run = set_up(config, epath.Path(workdir).expanduser())
    try:
        if not _finished(run):
            train(run)
        else:
            report.say(f"the training in {run.workdir} is finished ({_why_finished(run)})")
    finally:
        run.checkpoints.close()
    return score_and_predict(config, run.workdir, run.mesh)


def set_up(config: ml_collections.ConfigDict, workdir: epath.Path) -> Run:
    """Checks everything that can be checked before the first step, and makes the run's parts.

    The restore order: the workdir's own latest checkpoint, else `config.init_from`, else fresh
    weights, with an encoder from `config.encoder_weights`.
    """
    configuration.validate(config)
    configuration.check_unchanged(config, workdir)
    mesh = make_mesh()
    check_batch_size(config.batch_size, mesh, "config.batch_size")
    eval_batch_size = config.eval_batch_size or config.batch_size
    check_batch_size(eval_batch_size, mesh, "config.eval_batch_size")
    directory = input_pipeline.dataset_directory(config.data_dir, config.data_config)
    splits = {name: input_pipeline.open_split(directory, name) for name in ("train", "val")}
    check_bands(splits["train"])
    height, width = splits["train"].patch_size
    if config.crop_size > min(height, width):
        raise UserError(
            f"config.crop_size={config.crop_size} is more than the patches' {height} x {width}"
        )
    # Validation and test work on whole patches, whatever the crops.
    check_size(height, width, by_rows=configuration.fuses_by_rows(config))
    if config.augment and not config.crop_size and height != width:
        raise UserError(
            f"config.augment rotates by 90 degrees, which needs square patches, not {height} x "
            f"{width}: set config.crop_size"
        )
    card = ModelCard.from_config(config, (height, width))
    steps = input_pipeline.steps_per_epoch(splits["train"], config.batch_size)

    graphdef, params, stats = split_model(card.build_model(config.seed))
    if (workdir / "checkpoints" / FILE).exists():
        saved = ModelCard.load(workdir / "checkpoints")
        card.check_same_model(saved, str(workdir / "checkpoints"))
    _make_workdir(workdir)
    checkpoints = Checkpoints(workdir / "checkpoints", keep_latest=config.keep_latest)
    latest = checkpoints.latest()
    said: list[str] = []
    if latest is None:
        params, stats, said = initial_weights(
            params, stats, card, init_from=config.init_from,
            encoder_weights=config.encoder_weights, mesh=mesh,
        )  # fmt: skip
    optimizer = make_optimizer(config.learning_rate)
    state = replicate(create_train_state(params, stats, optimizer), mesh)
    plateau = Plateau(config.learning_rate, **config.plateau)
    progress = Progress(0, 0.0, plateau, EarlyStop(config.early_stop_patience))
    if latest is not None:
        state, progress = checkpoints.restore(latest, state, mesh)
        progress.early_stop.patience = config.early_stop_patience
    if jax.process_index() == 0:
        configuration.save(config, workdir)
        card.save(workdir / "checkpoints")

    eval_step = make_eval_step(graphdef, card, config.loss_normalization, mesh)

    def validate(state: TrainState) -> Any:
        data = split_batches(
            splits["val"], card, eval_batch_size, num_workers=config.num_workers,
            refused_values=card.refused_values,
        )  # fmt: skip
        return accumulate(eval_step, state.params, state.stats, data, mesh)

    train_step = make_train_step(graphdef, card, config, optimizer, mesh)
    run = Run(
        config, workdir, mesh, card, splits, checkpoints, state, progress, train_step, validate,
        steps,
    )  # fmt: skip
    report.introduce(card, splits, config, steps)
    report.say("\n".join([*said, f"workdir  {workdir}"]))
    if latest is not None:
        report.say(f"going on from step {latest} ({progress.epoch} epochs finished)")
    return run


def train(run: Run) -> None:
    """Runs the epochs that are left.

    The order at the end of an epoch, which resuming relies on:
    1. the last losses are read, so that nothing is saved after a loss that is not finite;
    2. the validation split is scored with the epoch's last weights;
    3. plateau and early stop take the loss, the new learning rate goes into the state;
    4. numbers are written;
    5. state and progress are saved under the epoch's last step.
    """
    config, progress = run.config, run.progress
    writer = MetricWriter(run.workdir, int(run.state.step))
    try:
        while not _finished(run):
            epoch, started = progress.epoch, time.perf_counter()
            _train_one_epoch(run, writer)
            seconds = time.perf_counter() - started
            result = run.validate(run.state)
            if not math.isfinite(result.loss):
                raise _not_finite(run, "validation loss", result.loss, int(run.state.step))
            rate = progress.plateau.rate
            best = progress.early_stop.update(result.loss, epoch)
            run.state.opt_state = with_learning_rate(
                run.state.opt_state, progress.plateau.update(result.loss)
            )
            miou = result.scores(run.card.nomenclature)["challenge"]["miou"]
            step, train_loss = int(run.state.step), progress.loss_sum / run.steps_per_epoch
            writer.write(
                step,
                {
                    "epoch": epoch + 1,
                    "train_loss": train_loss,
                    "val_loss": result.loss,
                    "val_miou": miou,
                    "learning_rate": rate,
                },
            )
            progress.epoch, progress.loss_sum = epoch + 1, 0.0
            run.checkpoints.save(run.state, progress, {"val_loss": result.loss})
            report.say(
                f"epoch {epoch + 1}/{config.num_epochs}: training loss {train_loss:.4f}, "
                f"validation loss {result.loss:.4f}, mIoU {miou:.4f}"
                f"{' (best)' if best else ''}, learning rate {rate:g}, {seconds:.0f} s"
            )
        run.checkpoints.wait()
        report.say(f"training is finished: {_why_finished(run)}")
    finally:
        writer.close()


def _train_one_epoch(run: Run, writer: MetricWriter) -> None:
    config, progress = run.config, run.progress
    first = int(run.state.step) - progress.epoch * run.steps_per_epoch
    data = _epoch_batches(run, first)
    bar = report.progress_bar(
        data, run.steps_per_epoch - first, f"epoch {progress.epoch + 1}", "step"
    )
    on_terminal = not bar.disable
    logged, logged_at = int(run.state.step), time.perf_counter()

    def take(loss: jax.Array, step: int) -> None:
        """Reads the loss of a step, which waits for it; checks, adds and shows it."""
        nonlocal logged, logged_at
        value = float(loss)
        if not math.isfinite(value):
            raise _not_finite(run, "loss", value, step)
        progress.loss_sum += value
        now = time.perf_counter()
        speed = (step - logged) * config.batch_size / (now - logged_at)
        text = f"loss {value:.4f}, {speed:.1f} patches/s"
        bar.set_postfix_str(text, refresh=False)
        if step % config.log_every_steps == 0:
            writer.write(step, {"loss": value, "patches_per_second": round(speed, 2)})
            logged, logged_at = step, now
            if not on_terminal:
                report.say(f"  step {step}: {text}")

    pending: tuple[jax.Array, int] | None = None
    for step, batch in enumerate(bar, start=int(run.state.step) + 1):
        run.state, loss = run.train_step(run.state, to_global(on_device(batch), run.mesh))
        if pending is not None:  # a loss is read only after the next step is on its way
            take(*pending)
        pending = loss, step
        due = config.checkpoint_every_steps and step % config.checkpoint_every_steps == 0
        if due and step % run.steps_per_epoch != 0:  # the epoch's end has a checkpoint of its own
            take(*pending)
            pending = None
            run.checkpoints.save(run.state, progress, None)
    if pending is not None:
        take(*pending)


def _epoch_batches(run: Run, first_step: int) -> Iterator[input_pipeline.Batch]:
    config, split = run.config, run.splits["train"]
    order = input_pipeline.train_order(
        len(split), config.batch_size, config.seed, run.progress.epoch
    )
    return input_pipeline.batches(
        split,
        order[first_step:],
        metadata_encoding=run.card.metadata_encoding,
        bands=band_places(run.card.bands),
        refused_values=run.card.refused_values,
        num_workers=config.num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _not_finite(run: Run, what: str, value: float, step: int) -> UserError:
    run.checkpoints.wait()
    latest = run.checkpoints.latest()
    good = run.workdir / "checkpoints" / str(latest) if latest is not None else "none yet"
    return UserError(
        f"the {what} became {value} at step {step} (epoch {run.progress.epoch + 1}).\n"
        f"Last good checkpoint: {good}\n"
        "Try a lower config.learning_rate, or config.dtype='float32', in another --workdir."
    )


def _finished(run: Run) -> bool:
    return run.progress.epoch >= run.config.num_epochs or run.progress.early_stop.stopped


def _why_finished(run: Run) -> str:
    stop, epoch = run.progress.early_stop, run.progress.epoch
    if not stop.stopped:
        return f"{epoch} epochs, config.num_epochs={run.config.num_epochs}"
    return f"after {epoch} epochs, {stop.waited} of them without a lower validation loss"


def _make_workdir(workdir: epath.Path) -> None:
    try:
        (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable-{jax.process_index()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"the workdir {workdir} cannot be written to ({error}): choose another --workdir"
        ) from error
