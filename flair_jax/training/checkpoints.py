"""Checkpoints of a training run: saving, retention, and restoring the newest that is intact.

What a folder of checkpoints holds is told in `flair_jax.inference.loading`.

Orbax's `AsyncCheckpointer` writes; which steps are kept is decided here, once a save is complete:
`CheckpointManager` deletes old ones even after a save has failed, keeps the later of two equally
good steps, and takes its metrics from a file without a checksum. Orbax's newer interface has no
part in it: in the versions that pyproject.toml allows it is `orbax.checkpoint.experimental.v1`, and
its `Checkpointer` has the same manager below.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

from flair_jax.errors import UserError
from flair_jax.inference.loading import (
    DamagedError,
    OutOfReachError,
    absolute,
    by_name,
    composite_handler,
    item_checksum,
    model_item,
    read_arrays,
    read_record,
    saved_steps,
)
from flair_jax.runtime import checksums
from flair_jax.runtime.sharding import from_first, largest, replicate, wait_for_hosts
from flair_jax.training.schedules import Progress
from flair_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Restored:
    """What `Checkpoints.restore_newest` finds.

    Attributes:
        state, progress: to resume with.
        messages: what is damaged or lost, for the log.
        damaged: the steps to `quarantine`.
    """

    state: TrainState
    progress: Progress
    messages: list[str]
    damaged: list[int]


class Checkpoints:
    """The checkpoints of one run, in one folder; every process must make the same calls.

    Args:
        directory: the folder; made if missing.
        max_to_keep: how many of the newest are kept, beside the best.
    """

    def __init__(self, directory: epath.PathLike, *, max_to_keep: int = 2) -> None:
        self.directory = absolute(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._max_to_keep = max_to_keep
        self._checkpointer = ocp.AsyncCheckpointer(composite_handler())
        self._best: int | None = None
        if jax.process_index() == 0:  # what interrupted saves have left
            for path in self.directory.iterdir():
                if path.is_dir() and ocp.utils.is_tmp_checkpoint(path):
                    # It may still be written to: of a save that has failed, Orbax ends some of the
                    # threads later. What is left is no step, and the next save replaces it.
                    with contextlib.suppress(OSError):
                        path.rmtree()
        wait_for_hosts("checkpoints: opened")

    def steps(self) -> list[int]:
        """The steps that are complete, ascending, the same on every process."""
        return from_first(saved_steps(self.directory))

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return max(self.steps(), default=None)

    def save(self, state: TrainState, progress: Progress, monitor: str = "val_loss") -> None:
        """Starts saving; the arrays are copied before this returns, the files are written later.

        Args:
            state: what to save, under its step; an earlier one of that step is replaced.
            progress: what is saved with it, the best step among it.
            monitor: which value has decided that, see `config.monitor`.

        Raises:
            UserError: this one or the one before could not be written.
        """
        self.wait()
        items = {
            "model": model_item(state.params, state.batch_stats),
            "optimizer": by_name(state.opt_state),
        }
        if state.ema:
            items["average"] = state.ema
        record = progress.to_json() | {
            "monitor": monitor,
            "checksums": {name: item_checksum(item) for name, item in items.items()},
        }
        arguments: dict[str, Any] = {n: ocp.args.PyTreeSave(item) for n, item in items.items()}
        arguments["progress"] = ocp.args.JsonSave(checksums.seal(record))
        self._best = progress.best.step if progress.best else None
        with self._writing():
            self._checkpointer.save(
                self.directory / str(int(state.step)),
                args=ocp.args.Composite(**arguments),
                force=True,
            )

    def wait(self) -> None:
        """Returns when all started saves are on disk; then deletes old ones.

        Raises:
            UserError: one could not be written.
        """
        with self._writing():
            self._checkpointer.wait_until_finished()
            if jax.process_index() == 0:
                for step in saved_steps(self.directory)[: -self._max_to_keep]:
                    if step != self._best:
                        (self.directory / str(step)).rmtree()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # of the system, of TensorStore, of Orbax
            complete = ", ".join(map(str, saved_steps(self.directory))) or "none yet"
            raise UserError(
                f"a checkpoint could not be written to {self.directory}: {error}\n"
                f"Complete checkpoints there: {complete}. Free some space (or fix what the message "
                "reports), then run the same command again: it resumes from the last complete one."
            ) from error

    def close(self) -> None:
        """Waits, then ends Orbax's threads."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def restore_newest(self, like: TrainState, mesh: Mesh) -> Restored | None:
        """Restores the newest step that is intact.

        If the best step is damaged and one before it is intact, that one is taken: training makes
        the best step again.

        Args:
            like: a state of the same names, shapes and dtypes.
            mesh: the devices; the checkpoint may come from another number of them.

        Returns:
            What to resume with, or None if nothing has been saved.

        Raises:
            UserError: there are checkpoints, and none is intact; or one cannot be read now.
        """
        newest = self._newest(like, mesh, before=None)
        if newest is None or newest.progress.best is None:
            return newest
        best = newest.progress.best.step
        self._best = best
        if best == int(newest.state.step):
            return newest
        _, problem = self._read(best, like)
        if not problem:
            return newest
        older = self._newest(like, mesh, before=best)
        lost = f"{problem}\nIt is the best checkpoint so far"
        if older is not None:
            return dataclasses.replace(
                older,
                messages=[*newest.messages, f"{lost}: training resumes before it"],
                damaged=[step for step in self.steps() if step > int(older.state.step)],
            )
        message = f"{lost}, and no older one is left: it cannot be made again"
        missing = [best] if best in self.steps() else []
        return dataclasses.replace(
            newest, messages=[*newest.messages, message], damaged=[*newest.damaged, *missing]
        )

    def _newest(self, like: TrainState, mesh: Mesh, before: int | None) -> Restored | None:
        """The newest intact step, before a step if one is given; None if there is none before."""
        messages, damaged = [], []
        for step in reversed(self.steps()):
            if before is not None and step >= before:
                continue
            found, problem = self._read(step, like)
            if found is None:
                messages.append(problem)
                damaged.append(step)
                continue
            state, progress = found
            return Restored(replicate(state, mesh), progress, messages, damaged)
        if messages and before is None:
            raise UserError(
                "\n".join(messages) + "\nNo checkpoint of this run can be restored: give another "
                "--workdir, or remove this one to start over."
            )
        return None

    def _read(self, step: int, like: TrainState) -> tuple[tuple[TrainState, Progress] | None, str]:
        """State and progress of a step, in NumPy arrays, or what is wrong; alike on all processes.

        Raises:
            OutOfReachError: a process cannot read it now.
        """
        found, problem, verdict = None, "", 0
        try:
            found = self.read_step(step, like)
        except DamagedError as error:
            problem, verdict = str(error), 1
        except OutOfReachError as error:
            problem, verdict = str(error), 2
        agreed = largest(verdict)
        if agreed == 2:
            raise OutOfReachError(
                problem or f"another process cannot read {self.directory / str(step)}: see there"
            )
        if agreed == 1:
            return None, problem or f"{self.directory / str(step)} is damaged on another process"
        return found, ""

    def read_step(self, step: int, like: TrainState) -> tuple[TrainState, Progress]:
        """State, in NumPy arrays, and progress of a step, as this process reads them.

        Raises:
            OutOfReachError, DamagedError: it cannot be read.
        """
        folder = self.directory / str(step)
        record = read_record(folder)
        try:
            progress = Progress.from_json(record)
        except (KeyError, TypeError) as error:
            raise DamagedError(f"{folder} has no progress of a training ({error!r})") from error
        items = {
            "model": model_item(like.params, like.batch_stats),
            "optimizer": by_name(like.opt_state),
        }
        if like.ema:
            items["average"] = like.ema
        known = record["checksums"]
        arrays = {name: read_arrays(folder, name, items[name], known.get(name)) for name in items}
        opt_state = jax.tree.unflatten(
            jax.tree.structure(like.opt_state),
            [arrays["optimizer"][name] for name in items["optimizer"]],
        )
        number: Any = np.int32(step)
        model, ema = arrays["model"], arrays.get("average", {})
        return TrainState(number, model["params"], model["stats"], opt_state, ema), progress

    def quarantine(self, steps: list[int]) -> None:
        """Moves the folders of damaged steps out of the way, into `damaged_checkpoints`."""
        if jax.process_index() == 0:
            folder = self.directory.parent / "damaged_checkpoints"
            folder.mkdir(exist_ok=True)
            for step in steps:
                taken = len(list(folder.glob(f"{step}*")))
                name = f"{step}-{taken}" if taken else str(step)
                (self.directory / str(step)).rename(folder / name)
        wait_for_hosts("checkpoints: damaged ones quarantined")
