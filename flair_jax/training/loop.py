"""The training loop."""

import contextlib
import dataclasses
import datetime
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import jax
import ml_collections
import numpy as np
from etils import epath

from flair_jax.config import follows_validation
from flair_jax.data import input_pipeline
from flair_jax.data.dataset import Split
from flair_jax.data.input_pipeline import Reading, TrainOrder, on_device
from flair_jax.errors import UserError
from flair_jax.evaluation.evaluate import Evaluation, StopRequestedError, accumulate
from flair_jax.models.functional import Arrays
from flair_jax.runtime import console
from flair_jax.runtime.preemption import Preempted, StopSignals
from flair_jax.runtime.profiling import Profiler
from flair_jax.runtime.provenance import provenance
from flair_jax.runtime.sharding import process_rows, to_global
from flair_jax.training import setup
from flair_jax.training.checkpoints import Checkpoints
from flair_jax.training.final_evaluation import score_and_predict
from flair_jax.training.image_summaries import ImageSummaries
from flair_jax.training.metric_writer import MetricWriter
from flair_jax.training.optimizer import learning_rate, rate_factor, with_learning_rate
from flair_jax.training.schedules import Best, Progress
from flair_jax.training.setup import Experiment
from flair_jax.training.state import TrainState


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> dict | None:
    """Trains, or resumes training, then scores the best checkpoint on the test split.

    Args:
        config: see `config.default`.
        workdir: the run's folder; created if missing. If it holds an unfinished run of the same
            configuration and data, that run resumes from its newest intact checkpoint.

    Returns:
        The test split's metrics (see `evaluate.evaluate_checkpoint`), or None if it has no masks.

    Raises:
        UserError: something that the user can fix is wrong; the message tells what.
        Preempted: see `train`.
    """
    experiment = setup.make_experiment(config, workdir)
    setup.make_workdir(experiment)
    with contextlib.closing(
        Checkpoints(experiment.workdir / "checkpoints", max_to_keep=config.max_to_keep)
    ) as checkpoints:
        state, progress, lines = setup.start(experiment, checkpoints)
        setup.save_settings(experiment)
        setup.log_start(experiment, lines)
        if not experiment.is_finished(progress):
            state, progress = train(experiment, checkpoints, state, progress)
    console.log(f"training is finished: {_why_finished(experiment, progress)}")
    return score_and_predict(experiment)


def train(
    experiment: Experiment, checkpoints: Checkpoints, state: TrainState, progress: Progress
) -> tuple[TrainState, Progress]:
    """Runs the epochs that are left.

    The order at the end of an epoch, which resuming relies on:
    1. the last step is checked, so that nothing is saved that is not finite;
    2. the validation split is scored with the epoch's last weights;
    3. the schedules take the monitored value;
    4. metrics and image summaries are written;
    5. state and progress are saved under the epoch's last step.

    Returns:
        State and progress after the last epoch.

    Raises:
        Preempted: SIGTERM or Ctrl-C was received, on any process; the state is saved.
        UserError: the training has diverged, or cannot be saved.
    """
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        step = int(state.step)
        writer = stack.enter_context(contextlib.closing(MetricWriter(experiment.workdir, step)))
        run = Loop(experiment, checkpoints, writer, signals)
        stack.callback(run.close)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        writer.write(step, {"started": now} | setup.describe(experiment) | provenance())
        while not experiment.is_finished(progress):
            started = time.perf_counter()
            state, progress = run.train_epoch(state, progress)
            state, progress = run.end_epoch(state, progress, time.perf_counter() - started)
        checkpoints.wait()
    return state, progress


class Loop:
    """What the epochs of a training share: where metrics, checkpoints and traces go.

    Args:
        experiment: what is trained.
        checkpoints: of the run.
        writer: of its metrics.
        signals: that ask for an end.
    """

    def __init__(
        self,
        experiment: Experiment,
        checkpoints: Checkpoints,
        writer: MetricWriter,
        signals: StopSignals,
    ) -> None:
        config = experiment.config
        self.experiment, self.config = experiment, config
        self.checkpoints, self.writer, self.signals = checkpoints, writer, signals
        self.profiler = Profiler(config.profile, experiment.workdir)
        self._compiled: Callable | None = None
        # Both read ahead from one epoch into the next, so that the devices need not wait there.
        self._training: Iterator[input_pipeline.Batch] | None = None
        self._validation: Iterator[input_pipeline.Batch] | None = None
        self._images = None
        if config.tensorboard_patches:
            self._images = ImageSummaries(
                experiment.val, config.tensorboard_patches, experiment.graphdef, experiment.spec,
                experiment.mesh,
            )  # fmt: skip

    def close(self) -> None:
        """Ends the profile, and waits for the images."""
        self.profiler.close()
        if self._images is not None:
            self._images.close()

    def train_epoch(self, state: TrainState, progress: Progress) -> tuple[TrainState, Progress]:
        """Trains to the end of the current epoch, from wherever it is."""
        experiment, config = self.experiment, self.config
        first = int(state.step) - progress.epoch * experiment.steps_per_epoch
        if first == experiment.steps_per_epoch:  # preempted in the validation
            return state, progress
        left = experiment.steps_per_epoch - first
        if self._training is None:
            self._training = self._batches(int(state.step))
        data = _TimedIterator(itertools.islice(self._training, left))
        bar = console.progress_bar(data, left, f"epoch {progress.epoch + 1}", "step")
        log = _StepLog(self.writer, data, bar, config, int(state.step))
        pending: tuple[dict[str, jax.Array], int] | None = None

        def settle() -> bool:
            """Takes the facts of the last step; whether a process was told to stop."""
            nonlocal progress, pending
            if pending is None:
                return False
            facts, step = pending
            pending = None
            loss = self._checked(facts, step, state, progress)
            progress = dataclasses.replace(progress, loss_sum=progress.loss_sum + loss)
            log.write(step, loss, float(facts["grad_norm"]))
            return bool(facts["stop"])

        for step, batch in enumerate(bar, start=int(state.step) + 1):
            arrays = to_global(on_device(batch, stop=bool(self.signals.received)), experiment.mesh)
            if self._compiled is None:
                self._compile(state, arrays)
                log.start_clock()
            assert self._compiled is not None
            with self.profiler.step(step):
                state, facts = self._compiled(state, arrays)
            self.profiler.end(step, facts)
            stop = settle()  # read only after the next step has been dispatched
            pending = facts, step
            every = config.checkpoint_every_steps
            due = every and step % every == 0 and step % experiment.steps_per_epoch != 0
            if stop or due:
                stop |= settle()
                self._save(state, progress)
            if stop:
                self._preempt(state)
        if settle():
            self._save(state, progress)
            self._preempt(state)
        return state, progress

    def end_epoch(
        self, state: TrainState, progress: Progress, seconds: float
    ) -> tuple[TrainState, Progress]:
        """Validates, adapts the schedules, writes and saves; see `train`."""
        experiment, config, step = self.experiment, self.config, int(state.step)
        monitor = experiment.monitor
        try:
            result = self._validate(state.params, state.batch_stats)
            ema_result = None
            if state.ema:
                params, batch_stats = (
                    {k: state.ema[k] for k in part} for part in (state.params, state.batch_stats)
                )
                ema_result = self._validate(params, batch_stats)
        except StopRequestedError:
            self._save(state, progress)
            self._preempt(state)
        if not math.isfinite(result.loss):
            raise self._diverged("validation loss", result.loss, step, state, progress)
        epoch = progress.epoch + 1
        values = {
            "val_loss": result.loss,
            "val_miou": result.miou(experiment.spec.nomenclature),
        }
        if ema_result is not None:
            values["val_loss_ema"] = ema_result.loss
            values["val_miou_ema"] = ema_result.miou(experiment.spec.nomenclature)
        value, best = values[monitor.name], progress.best
        if not math.isfinite(value):
            raise UserError(
                f"config.monitor={config.monitor!r} is {value} after epoch {epoch}: has the "
                "validation split a scored class? Otherwise monitor another value"
            )
        is_best = monitor.improves(value, best.value if best else None)
        train_loss = progress.loss_sum / experiment.steps_per_epoch
        rate = learning_rate(state.opt_state)
        # As in the epoch's last step.
        used = rate * float(rate_factor(config, experiment.num_steps)(step - 1))
        self.writer.write(
            step,
            {
                "epoch": epoch,
                "train_loss": train_loss,
                **values,
                "learning_rate": used,
                "epoch_seconds": round(seconds, 1),
            },
        )
        if self._images is not None:
            self._images.write(
                self.writer, step, state.params, state.batch_stats, result.confusion,
                first=epoch == 1,
            )  # fmt: skip
        plateau, next_rate = progress.plateau, rate
        if follows_validation(config):
            plateau, next_rate = experiment.plateau.update(plateau, rate, value, monitor)
        if next_rate != rate:
            opt_state = with_learning_rate(state.opt_state, next_rate)
            state = dataclasses.replace(state, opt_state=opt_state)
        progress = Progress(
            epoch=epoch,
            plateau=plateau,
            best=Best(step, epoch, value) if is_best else best,
        )
        self._save(state, progress)
        of_ema = f" ({values['val_miou_ema']:.4f} EMA)" if ema_result is not None else ""
        console.log(
            f"epoch {epoch}/{config.num_epochs}: training loss {train_loss:.4f}, "
            f"validation loss {values['val_loss']:.4f}, mIoU {values['val_miou']:.4f}{of_ema}"
            f"{' (best)' if is_best else ''}, learning rate {used:.4g}, {seconds:.0f} s"
        )
        return state, progress

    def _batches(self, first: int) -> Iterator[input_pipeline.Batch]:
        """This process's rows of the batches of the training, from a step on."""
        experiment, config = self.experiment, self.config
        order = TrainOrder(
            len(experiment.train), config.batch_size, config.seed, config.num_epochs, first=first,
            columns=process_rows(experiment.mesh, config.batch_size),
        )  # fmt: skip
        return self._read(experiment.train, order)

    def _validate(self, params: Arrays, batch_stats: Arrays) -> Evaluation:
        experiment, size = self.experiment, self.experiment.eval_batch_size
        order = input_pipeline.eval_order(len(experiment.val), size)
        if self._validation is None:
            mine = order[:, process_rows(experiment.mesh, size)]
            times = self.config.num_epochs * (2 if self.config.ema_decay else 1)
            self._validation = self._read(experiment.val, mine, times)
        data = itertools.islice(self._validation, len(order))
        return accumulate(
            experiment.eval_step, params, batch_stats,
            console.progress_bar(data, len(order), experiment.val.name, "batch"), experiment.mesh,
            lambda: bool(self.signals.received),
        )  # fmt: skip

    def _read(
        self, split: Split, order: Sequence[np.ndarray] | np.ndarray, times: int = 1
    ) -> Iterator[input_pipeline.Batch]:
        spec = self.experiment.spec
        return input_pipeline.batches(
            split, order, metadata_encoding=spec.metadata_encoding, bands=spec.bands,
            refused_values=spec.refused_values, reading=Reading.of(self.config), times=times,
        )  # fmt: skip

    def _compile(self, *arguments: Any) -> None:
        started = time.perf_counter()
        self._compiled = self.experiment.train_step.lower(*arguments).compile()
        seconds = time.perf_counter() - started
        self.writer.write(int(arguments[0].step), {"compile_seconds": round(seconds, 2)})
        console.log(f"the training step was compiled in {seconds:.1f} s")

    def _save(self, state: TrainState, progress: Progress) -> None:
        """Starts saving, and logs for how long that blocked the loop."""
        self.writer.flush()
        started = time.perf_counter()
        self.checkpoints.save(state, progress, self.experiment.monitor.name)
        seconds = time.perf_counter() - started
        self.writer.write(int(state.step), {"save_seconds": round(seconds, 4)})

    def _preempt(self, state: TrainState) -> NoReturn:
        """Raises Preempted, once all is saved."""
        self.checkpoints.wait()
        cause = self.signals.received or "a signal on another host"
        raise Preempted(
            f"stopped by {cause}: step {int(state.step)} is saved; the same command resumes from "
            "there"
        )

    def _checked(
        self, facts: dict[str, jax.Array], step: int, state: TrainState, progress: Progress
    ) -> float:
        """The loss of a step, which is waited for.

        Raises:
            UserError: the step is not finite.
        """
        loss, norm = float(facts["loss"]), float(facts["grad_norm"])
        if facts["finite"]:
            return loss
        if not math.isfinite(loss):
            raise self._diverged("loss", loss, step, state, progress)
        if not math.isfinite(norm):
            raise self._diverged("gradients' norm", norm, step, state, progress)
        raise self._diverged(
            "update of the weights, or a batch statistic,", math.inf, step, state, progress
        )

    def _diverged(
        self, what: str, value: float, step: int, state: TrainState, progress: Progress
    ) -> UserError:
        self.checkpoints.wait()
        latest = self.checkpoints.latest()
        good = self.checkpoints.directory / str(latest) if latest is not None else "none yet"
        lower = learning_rate(state.opt_state) / 2
        return UserError(
            f"the {what} became {value} at step {step} (epoch {progress.epoch + 1}).\n"
            f"Last good checkpoint: {good}\n"
            f"To resume from it with half the learning rate, add --config.learning_rate_limit="
            f"{lower:g} to the same command; or try config.clip_norm or config.dtype='float32' in "
            "another --workdir."
        )


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


class _StepLog:
    """Loss and speed of the steps: on the bar, in the metrics, on the console."""

    def __init__(
        self,
        writer: MetricWriter,
        data: _TimedIterator,
        bar: Any,
        config: ml_collections.ConfigDict,
        step: int,
    ) -> None:
        self._writer, self._data, self._bar, self._config = writer, data, bar, config
        self._step = step
        self.start_clock()

    def start_clock(self) -> None:
        """Counts the time from now on."""
        self._since = time.perf_counter()

    def write(self, step: int, loss: float, grad_norm: float) -> None:
        """Takes a finished step."""
        now = time.perf_counter()
        seconds = (now - self._since) / (step - self._step)
        text = f"loss {loss:.4f}, {self._config.batch_size / seconds:.1f} patches/s"
        self._bar.set_postfix_str(text, refresh=False)
        if step % self._config.log_every_steps:
            return
        timing = {
            "patches_per_second": self._config.batch_size / seconds,
            "step_seconds": seconds,
            "data_wait_seconds": self._data.take_seconds() / (step - self._step),
        }
        self._writer.write(
            step,
            {"loss": loss, "grad_norm": grad_norm} | {k: round(v, 4) for k, v in timing.items()},
        )
        self._step, self._since = step, now
        if self._bar.disable:  # the output goes to a file
            console.log(f"  step {step}: {text}")


def _why_finished(experiment: Experiment, progress: Progress) -> str:
    epochs, config = progress.epoch, experiment.config
    if epochs >= config.num_epochs:
        return f"{epochs} epochs, config.num_epochs={config.num_epochs}"
    return (
        f"after {epochs} epochs, the last {progress.epochs_since_best} without a better "
        f"{config.monitor}"
    )
