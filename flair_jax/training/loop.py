"""The training loop."""

import datetime
import math
import time
from collections.abc import Iterator

import jax
import ml_collections
from etils import epath

from flair_jax.data import input_pipeline
from flair_jax.data.input_pipeline import on_device
from flair_jax.errors import UserError
from flair_jax.evaluation.evaluate import StopRequestedError
from flair_jax.runtime import console, profiling
from flair_jax.runtime.preemption import Preempted, StopSignals
from flair_jax.runtime.sharding import process_rows, to_global
from flair_jax.training.final_evaluation import score_and_predict
from flair_jax.training.metric_writer import MetricWriter
from flair_jax.training.optimizer import with_learning_rate
from flair_jax.training.setup import Run, set_up


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> dict | None:
    """Trains, or resumes training, then scores the best checkpoint on the test split.

    Args:
        config: see `config.default`.
        workdir: the run's folder; created if missing. If it holds an unfinished run of the same
            configuration, that run resumes from its last checkpoint.

    Returns:
        The test split's metrics (see `evaluate.evaluate_checkpoint`), or None if it has no masks.

    Raises:
        UserError: something that the user can fix is wrong; the message tells what.
        Preempted: see `train`.
    """
    run = set_up(config, epath.Path(workdir).expanduser())
    try:
        if not _finished(run):
            train(run)
        else:
            console.log(f"the training in {run.workdir} is finished ({_why_finished(run)})")
    finally:
        run.checkpoints.close()
    return score_and_predict(config, run.workdir, run.mesh)


def train(run: Run) -> None:
    """Runs the epochs that are left.

    The order at the end of an epoch, which resuming relies on:
    1. the last losses are read, so that nothing is saved after a loss that is not finite;
    2. the validation split is scored with the epoch's last weights;
    3. plateau and early stop take the loss, the new learning rate goes into the state;
    4. metrics and image summaries are written;
    5. state and progress are saved under the epoch's last step.

    Raises:
        Preempted: SIGTERM or Ctrl-C was received, on any process; the state is saved.
    """
    progress = run.progress
    writer = MetricWriter(run.workdir, int(run.state.step))
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    writer.write(int(run.state.step), {"started": now} | run.description)
    try:
        with StopSignals() as signals:
            while not _finished(run):
                started = time.perf_counter()
                if int(run.state.step) < (progress.epoch + 1) * run.steps_per_epoch:
                    _train_one_epoch(run, writer, signals)
                _end_epoch(run, writer, signals, time.perf_counter() - started)
            run.checkpoints.wait()
        console.log(f"training is finished: {_why_finished(run)}")
    finally:
        writer.close()


def _end_epoch(run: Run, writer: MetricWriter, signals: StopSignals, seconds: float) -> None:
    """Validates, adapts the learning rate, writes, saves; see `train`."""
    config, progress, state, epoch = run.config, run.progress, run.state, run.progress.epoch
    step, train_loss = int(state.step), progress.loss_sum / run.steps_per_epoch

    def stop() -> bool:
        return bool(signals.received)

    try:
        result = run.validate(state.params, state.batch_stats, stop)
        ema_result = None
        if state.ema:
            params, batch_stats = (
                {k: state.ema[k] for k in part} for part in (state.params, state.batch_stats)
            )
            ema_result = run.validate(params, batch_stats, stop)
    except StopRequestedError:
        _save(run, writer, None)
        raise _preempted(run, signals) from None
    if not math.isfinite(result.loss):
        raise _not_finite(run, "validation loss", result.loss, step)
    rate = progress.plateau.rate
    best = progress.early_stop.update(result.loss, epoch)
    run.state.opt_state = with_learning_rate(state.opt_state, progress.plateau.update(result.loss))
    miou = result.miou(run.spec.nomenclature)
    numbers = {
        "epoch": epoch + 1,
        "train_loss": train_loss,
        "val_loss": result.loss,
        "val_miou": miou,
        "learning_rate": rate,
        "epoch_seconds": round(seconds, 1),
    }
    if ema_result is not None:
        numbers["val_loss_ema"] = ema_result.loss
        numbers["val_miou_ema"] = ema_result.miou(run.spec.nomenclature)
    writer.write(step, numbers)
    if run.image_summaries is not None:
        params, batch_stats = state.params, state.batch_stats
        run.image_summaries.write(
            writer, step, params, batch_stats, result.confusion, first=epoch == 0
        )
    progress.epoch, progress.loss_sum = epoch + 1, 0.0
    _save(run, writer, {"val_loss": result.loss})
    of_ema = f" ({numbers['val_miou_ema']:.4f} EMA)" if ema_result is not None else ""
    console.log(
        f"epoch {epoch + 1}/{config.num_epochs}: training loss {train_loss:.4f}, "
        f"validation loss {result.loss:.4f}, mIoU {miou:.4f}{of_ema}"
        f"{' (best)' if best else ''}, learning rate {rate:g}, {seconds:.0f} s"
    )


def _train_one_epoch(run: Run, writer: MetricWriter, signals: StopSignals) -> None:
    config, progress = run.config, run.progress
    first = int(run.state.step) - progress.epoch * run.steps_per_epoch
    data = _TimedIterator(_epoch_batches(run, first))
    bar = console.progress_bar(
        data, run.steps_per_epoch - first, f"epoch {progress.epoch + 1}", "step"
    )
    on_terminal = not bar.disable
    logged, logged_at = int(run.state.step), time.perf_counter()

    def record(numbers: dict[str, jax.Array], step: int) -> bool:
        """Logs a finished step, waiting for it; returns whether any process was told to stop."""
        nonlocal logged, logged_at
        value = float(numbers["loss"])
        if not math.isfinite(value):
            raise _not_finite(run, "loss", value, step)
        progress.loss_sum += value
        now = time.perf_counter()
        seconds = (now - logged_at) / (step - logged)
        text = f"loss {value:.4f}, {config.batch_size / seconds:.1f} patches/s"
        bar.set_postfix_str(text, refresh=False)
        if step % config.log_every_steps == 0:
            timing = {
                "patches_per_second": config.batch_size / seconds,
                "step_seconds": seconds,
                "data_wait_seconds": data.take_seconds() / (step - logged),
            }
            writer.write(step, {"loss": value} | {k: round(v, 4) for k, v in timing.items()})
            logged, logged_at = step, now
            if not on_terminal:
                console.log(f"  step {step}: {text}")
        return bool(numbers["stop"])

    pending: tuple[dict[str, jax.Array], int] | None = None
    stop = False
    for step, batch in enumerate(bar, start=int(run.state.step) + 1):
        arrays = to_global(on_device(batch, stop=bool(signals.received)), run.mesh)
        if not run.compiled:
            _compile(run, arrays, writer)
            logged_at = time.perf_counter()
        profiling.begin(config.profile, step, run.workdir)
        run.state, numbers = run.train_step(run.state, arrays)
        profiling.end(config.profile, step, numbers)
        if pending is not None:  # read only after the next step has been dispatched
            stop = record(*pending)
        pending = numbers, step
        due = config.checkpoint_every_steps and step % config.checkpoint_every_steps == 0
        if stop or (due and step % run.steps_per_epoch != 0):  # the end of an epoch saves by itself
            stop |= record(*pending)
            pending = None
            _save(run, writer, None)
        if stop:
            raise _preempted(run, signals)
    if pending is not None and record(*pending):
        _save(run, writer, None)
        raise _preempted(run, signals)


class _TimedIterator:
    """An iterator that sums the time spent waiting for it."""

    def __init__(self, data: Iterator[input_pipeline.Batch]) -> None:
        self._data = data
        self._seconds = 0.0

    def __iter__(self) -> Iterator[input_pipeline.Batch]:
        while True:
            started = time.perf_counter()
            batch = next(self._data, None)
            self._seconds += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def take_seconds(self) -> float:
        """The seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def _compile(run: Run, arrays: dict[str, jax.Array], writer: MetricWriter) -> None:
    started = time.perf_counter()
    run.train_step = run.train_step.lower(run.state, arrays).compile()
    run.compiled = True
    seconds = time.perf_counter() - started
    writer.write(int(run.state.step), {"compile_seconds": round(seconds, 2)})
    console.log(f"the training step was compiled in {seconds:.1f} s")


def _save(run: Run, writer: MetricWriter, metrics: dict[str, float] | None) -> None:
    """Starts saving, and logs for how long that blocked the loop."""
    writer.flush()
    started = time.perf_counter()
    run.checkpoints.save(run.state, run.progress, metrics)
    seconds = time.perf_counter() - started
    writer.write(int(run.state.step), {"save_seconds": round(seconds, 4)})


def _preempted(run: Run, signals: StopSignals) -> Preempted:
    run.checkpoints.wait()
    cause = signals.received or "a signal on another host"
    return Preempted(
        f"stopped by {cause}: step {int(run.state.step)} is saved; the same command resumes from "
        "there"
    )


def _epoch_batches(run: Run, first_step: int) -> Iterator[input_pipeline.Batch]:
    config, split = run.config, run.splits["train"]
    order = input_pipeline.train_order(
        len(split), config.batch_size, config.seed, run.progress.epoch
    )
    return input_pipeline.batches(
        split,
        order[first_step:, process_rows(run.mesh, config.batch_size)],
        metadata_encoding=run.spec.metadata_encoding,
        bands=run.spec.bands,
        refused_values=run.spec.refused_values,
        num_workers=config.num_workers,
        prefetch_mb=config.prefetch_mb,
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
    return f"after {epoch} epochs, the last {stop.waited} without a lower validation loss"
