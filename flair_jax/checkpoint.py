"""Checkpoints: every call to Orbax is made here.

A folder of checkpoints holds `model.json` (the card) and one folder per kept step with the items
`model` (parameters and statistics), `optimizer`, `progress` and, if the run keeps one, `average`
(the moving average of the model). The latest ones and the best by validation loss are kept. Orbax
writes under a temporary name and renames when all is written.
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
from flair_jax.model_card import FILE, ModelCard
from flair_jax.optimizer import EarlyStop, Plateau
from flair_jax.places import is_remote
from flair_jax.sharding import replicated, wait_for_hosts
from flair_jax.train_state import Arrays, TrainState, split_model

MONITORED = "val_loss"


@dataclasses.dataclass
class Progress:
    """What a run knows beside its arrays.

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
        keep_latest: how many of the newest are kept beside the best.
        read_only: for evaluation and prediction: nothing is created or deleted.
    """

    def __init__(
        self, directory: epath.PathLike, *, keep_latest: int = 2, read_only: bool = False
    ) -> None:
        self.directory = epath.Path(directory)
        monitor: dict[str, Any] = {
            "best_fn": lambda metrics: metrics[MONITORED],  # without it metrics are not written
            "best_mode": "min",
        }
        if read_only:
            options = ocp.CheckpointManagerOptions(
                read_only=True, save_interval_steps=0, create=False, **monitor
            )
        else:
            best = BestN(
                get_metric_fn=monitor["best_fn"],
                reverse=True,
                n=1,
                keep_checkpoints_without_metrics=False,
            )
            options = ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy([LatestN(keep_latest), best]),
                cleanup_tmp_directories=True,
                **monitor,
            )
        self._manager = ocp.CheckpointManager(
            self.directory if is_remote(self.directory) else self.directory.resolve(),
            options=options,
            item_names=("model", "optimizer", "progress", "average"),
            item_handlers={
                "model": ocp.StandardCheckpointHandler(),
                "optimizer": ocp.StandardCheckpointHandler(),
                "progress": ocp.JsonCheckpointHandler(),
                "average": ocp.StandardCheckpointHandler(),
            },
        )

    def latest(self) -> int | None:
        """The newest step that was saved whole, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step of the lowest validation loss, or None."""
        losses = {}
        for step in self._manager.all_steps():
            metrics = self._manager.metrics(step)
            if metrics:
                losses[step] = metrics[MONITORED]
        return min(losses, key=lambda step: (losses[step], step)) if losses else None

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
            "model": ocp.args.StandardSave({"params": state.params, "stats": state.stats}),
            "optimizer": ocp.args.StandardSave(state.opt_state),
            "progress": ocp.args.JsonSave(progress.to_json()),
        }
        if state.average:
            items["average"] = ocp.args.StandardSave(state.average)
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
            whole = ", ".join(str(step) for step in sorted(self._manager.all_steps())) or "none yet"
            raise UserError(
                f"a checkpoint could not be written to {self.directory}: {error}\n"
                f"Whole checkpoints there: {whole}. Make room (or mend what the message says), and "
                "give the same command again: it goes on from the last whole one."
            ) from error

    def close(self) -> None:
        """Waits, then ends Orbax's threads."""
        with self._writing():
            self._manager.close()

    def newest_whole(
        self, like: TrainState, mesh: Mesh
    ) -> tuple[TrainState, Progress, list[str]] | None:
        """The newest checkpoint that can be restored; `put_aside` is for damaged newer ones.

        Args:
            like, mesh: see `restore`.

        Returns:
            State, progress and what to say of damaged ones; None if nothing has been saved.

        Raises:
            UserError: checkpoints are there, and none can be restored.
        """
        said: list[str] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return *self.restore(step, like, mesh), said
            except UserError as error:
                said.append(f"damaged: {error}")
        if said:
            raise UserError(
                "\n".join(said) + "\nNo checkpoint of this run can be restored: give another "
                "--workdir, or remove this one to start afresh."
            )
        return None

    def put_aside(self, after: int) -> None:
        """Renames the folders of all steps after one: they are damaged, and would be in the way."""
        for step in self._manager.all_steps():
            if step > after and jax.process_index() == 0:
                aside = self.directory.parent / "damaged_checkpoints"
                aside.mkdir(exist_ok=True)
                (self.directory / str(step)).rename(aside / str(step))
        wait_for_hosts("checkpoints: damaged ones put aside")
        self._manager.reload()

    def restore(self, step: int, like: TrainState, mesh: Mesh) -> tuple[TrainState, Progress]:
        """Everything that a run needs to go on from a step.

        Args:
            step: a saved step.
            like: a state of the same shapes.
            mesh: where the arrays shall lie; the checkpoint may come from another number of
                devices.
        """
        average = (
            {"average": ocp.args.StandardRestore(_abstract(like.average, mesh))}
            if like.average
            else {}
        )
        items = self._restore(
            step,
            model=ocp.args.StandardRestore(
                _abstract({"params": like.params, "stats": like.stats}, mesh)
            ),
            optimizer=ocp.args.StandardRestore(_abstract(like.opt_state, mesh)),
            progress=ocp.args.JsonRestore(),
            **average,
        )
        model = items["model"]
        state = TrainState(
            step=jax.device_put(jax.numpy.int32(step), replicated(mesh)),
            params=model["params"],
            stats=model["stats"],
            opt_state=items["optimizer"],
            average=items["average"] if average else {},
        )
        return state, Progress.from_json(items["progress"])

    def restore_model(
        self, step: int, card: ModelCard, mesh: Mesh, *, averaged: bool = False
    ) -> tuple[Arrays, Arrays]:
        """Parameters and statistics alone, for inference; `averaged`: their moving average."""
        _, params, stats = split_model(card.abstract_model())
        if averaged:
            both = {**params, **stats}
            items = self._restore(step, average=ocp.args.StandardRestore(_abstract(both, mesh)))
            average = items["average"]
            return {k: average[k] for k in params}, {k: average[k] for k in stats}
        items = self._restore(
            step,
            model=ocp.args.StandardRestore(_abstract({"params": params, "stats": stats}, mesh)),
        )
        return items["model"]["params"], items["model"]["stats"]

    def _restore(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, OSError) as error:
            raise UserError(
                f"the checkpoint {self.directory / str(step)} cannot be restored: {error}"
            ) from error


def _abstract(tree: Any, mesh: Mesh) -> Any:
    sharding = replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def save_model(directory: epath.PathLike, card: ModelCard, params: Arrays, stats: Arrays) -> None:
    """Writes a folder of checkpoints with one model and its card, as step 0, to load or start from.

    It gets its name when all is written.
    """
    directory = epath.Path(directory)
    partial = directory.with_name(directory.name + ".partial")
    if partial.exists():
        partial.rmtree()
    partial.mkdir(parents=True)
    checkpoints = Checkpoints(partial)
    arrays = ocp.args.StandardSave({"params": params, "stats": stats})
    checkpoints._manager.save(0, args=ocp.args.Composite(model=arrays))
    checkpoints.close()
    card.save(partial)
    partial.rename(directory)


def find(path: epath.PathLike) -> tuple[epath.Path, int | None]:
    """Where a checkpoint lies, from any of the paths a user may give.

    Args:
        path: a workdir, its folder of checkpoints, or the folder of one step.

    Returns:
        The folder of checkpoints, and the step if the path names one.

    Raises:
        UserError: there is no checkpoint.
    """
    path = epath.Path(path).expanduser()
    for directory, step in (
        (path / "checkpoints", None),
        (path, None),
        (path.parent, int(path.name) if path.name.isdigit() else None),
    ):
        if (directory / FILE).exists() and (step is None or path.exists()):
            return directory, step
    raise UserError(
        f"there is no checkpoint at {path}: expected a workdir with checkpoints/{FILE} in it, "
        "a folder of checkpoints, or the folder of one step"
    )


def load(
    path: epath.PathLike, mesh: Mesh, step: int | None = None, *, averaged: bool = False
) -> tuple[ModelCard, Arrays, Arrays, int]:
    """Card, parameters, statistics and step of a checkpoint, for inference.

    Args:
        path: see `find`.
        mesh: where the arrays shall lie.
        step: which step; by default the one that the path names, or else the best.
        averaged: the moving average of the weights in place of the weights themselves.

    Raises:
        UserError: there is no checkpoint, or it cannot be read.
    """
    directory, named = find(path)
    card = ModelCard.load(directory)
    checkpoints = Checkpoints(directory, read_only=True)
    try:
        step = step if step is not None else named
        if step is None:
            step = checkpoints.best()
        if step is None:
            step = checkpoints.latest()
        if step is None:
            raise UserError(f"no step has been saved in {directory} yet")
        if averaged and not (directory / str(step) / "average").exists():
            raise UserError(
                f"{directory / str(step)} has no moving average of the weights: the run had "
                "config.ema_decay=0"
            )
        params, stats = checkpoints.restore_model(step, card, mesh, averaged=averaged)
    finally:
        checkpoints.close()
    return card, params, stats, step
