"""Checkpoints of a training run: saving, retention, restoring (Orbax).

A folder of checkpoints holds `model.json` (the spec) and one folder per kept step with the items
`model` (parameters and statistics), `optimizer`, `progress` and, if the run keeps one, `average`
(the exponential moving average of the model). The latest ones and the best by validation loss are
kept. Orbax writes under a temporary name and renames when everything is written.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from flair_jax.errors import UserError
from flair_jax.inference.loading import (
    MONITOR,
    abstract,
    best_step,
    open_manager,
    read_only_options,
    restore_items,
)
from flair_jax.runtime.sharding import replicated, wait_for_hosts
from flair_jax.training.optimizer import EarlyStop, Plateau
from flair_jax.training.state import TrainState


@dataclasses.dataclass
class Progress:
    """The part of a run's state that is not arrays.

    Attributes:
        epoch: number of epochs finished, validation included.
        loss_sum: sum of the losses of the current epoch's steps so far.
        plateau: state of the learning rate schedule.
        early_stop: state of early stopping.
    """

    epoch: int
    loss_sum: float
    plateau: Plateau
    early_stop: EarlyStop

    def to_json(self) -> dict[str, Any]:
        """As plain numbers."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Progress":
        """The inverse of `to_json`."""
        return cls(
            values["epoch"],
            values["loss_sum"],
            Plateau(**values["plateau"]),
            EarlyStop(**values["early_stop"]),
        )


class Checkpoints:
    """The checkpoints of one run, in one folder.

    Args:
        directory: the folder.
        max_to_keep: how many of the newest are kept beside the best.
        read_only: for evaluation and prediction: nothing is created or deleted.
    """

    def __init__(
        self, directory: epath.PathLike, *, max_to_keep: int = 2, read_only: bool = False
    ) -> None:
        self.directory = epath.Path(directory)
        if read_only:
            options = read_only_options()
        else:
            best = BestN(
                get_metric_fn=MONITOR["best_fn"],
                reverse=True,
                n=1,
                keep_checkpoints_without_metrics=False,
            )
            options = ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy([LatestN(max_to_keep), best]),
                cleanup_tmp_directories=True,
                **MONITOR,
            )
        self._manager = open_manager(self.directory, options)

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step of the lowest validation loss, or None."""
        return best_step(self._manager)

    def save(self, state: TrainState, progress: Progress, metrics: dict[str, float] | None) -> None:
        """Starts saving; the arrays are copied before this returns, the files are written later.

        Args:
            state: what to save, under its step; an earlier one of that step is replaced.
            progress: what goes with it.
            metrics: with the monitored loss, or None between two validations.

        Raises:
            UserError: this one or the one before could not be written.
        """
        step = int(state.step)
        items = {
            "model": ocp.args.StandardSave({"params": state.params, "stats": state.batch_stats}),
            "optimizer": ocp.args.StandardSave(state.opt_state),
            "progress": ocp.args.JsonSave(progress.to_json()),
        }
        if state.ema:
            items["average"] = ocp.args.StandardSave(state.ema)
        with self._writing():
            if step in self._manager.all_steps():
                self._manager.delete(step)
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)

    def wait(self) -> None:
        """Returns when all started saves are on disk.

        Raises:
            UserError: one could not be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            complete = (
                ", ".join(str(step) for step in sorted(self._manager.all_steps())) or "none yet"
            )
            raise UserError(
                f"a checkpoint could not be written to {self.directory}: {error}\n"
                f"Complete checkpoints there: {complete}. Free some space (or fix what the message "
                "reports), then run the same command again: it resumes from the last complete one."
            ) from error

    def close(self) -> None:
        """Waits, then ends Orbax's threads."""
        with self._writing():
            self._manager.close()

    def restore_newest(
        self, like: TrainState, mesh: Mesh
    ) -> tuple[TrainState, Progress, list[str]] | None:
        """Restores the newest readable checkpoint; see `quarantine` for newer, damaged ones.

        Args:
            like, mesh: see `restore`.

        Returns:
            State, progress and a message for each damaged checkpoint; None if nothing was saved.

        Raises:
            UserError: checkpoints are there, and none can be restored.
        """
        messages: list[str] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return *self.restore(step, like, mesh), messages
            except UserError as error:
                messages.append(f"damaged: {error}")
        if messages:
            raise UserError(
                "\n".join(messages) + "\nNo checkpoint of this run can be restored: give another "
                "--workdir, or remove this one to start over."
            )
        return None

    def quarantine(self, after: int) -> None:
        """Moves the folders of all steps after one, which are damaged, out of the way."""
        for step in self._manager.all_steps():
            if step > after and jax.process_index() == 0:
                quarantined = self.directory.parent / "damaged_checkpoints"
                quarantined.mkdir(exist_ok=True)
                (self.directory / str(step)).rename(quarantined / str(step))
        wait_for_hosts("checkpoints: damaged ones quarantined")
        self._manager.reload()

    def restore(self, step: int, like: TrainState, mesh: Mesh) -> tuple[TrainState, Progress]:
        """Restores everything that a run needs to resume from a step.

        Args:
            step: a saved step.
            like: a state of the same shapes.
            mesh: the devices of the arrays; the checkpoint may come from another number of
                devices.
        """
        ema = {"average": ocp.args.StandardRestore(abstract(like.ema, mesh))} if like.ema else {}
        items = restore_items(
            self._manager,
            step,
            model=ocp.args.StandardRestore(
                abstract({"params": like.params, "stats": like.batch_stats}, mesh)
            ),
            optimizer=ocp.args.StandardRestore(abstract(like.opt_state, mesh)),
            progress=ocp.args.JsonRestore(),
            **ema,
        )
        model = items["model"]
        state = TrainState(
            step=jax.device_put(jax.numpy.int32(step), replicated(mesh)),
            params=model["params"],
            batch_stats=model["stats"],
            opt_state=items["optimizer"],
            ema=items["average"] if ema else {},
        )
        return state, Progress.from_json(items["progress"])
