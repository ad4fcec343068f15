"""Checkpoints for inference: find, read and write a model without its training state (Orbax)."""

from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

from flair_jax.errors import UserError
from flair_jax.models.functional import Arrays, split_model
from flair_jax.models.spec import FILE, ModelSpec
from flair_jax.runtime.sharding import replicated
from flair_jax.runtime.storage import is_remote

MONITORED = "val_loss"
# What Orbax is told of the metrics that are saved with a step.
MONITOR: dict[str, Any] = {
    "best_fn": lambda metrics: metrics[MONITORED],  # without it metrics are not written
    "best_mode": "min",
}


def read_only_options() -> ocp.CheckpointManagerOptions:
    """Options under which nothing is created or deleted."""
    return ocp.CheckpointManagerOptions(
        read_only=True, save_interval_steps=0, create=False, **MONITOR
    )


def open_manager(
    directory: epath.Path, options: ocp.CheckpointManagerOptions
) -> ocp.CheckpointManager:
    """Orbax's manager of a folder of checkpoints, with the items that a step may have."""
    return ocp.CheckpointManager(
        directory if is_remote(directory) else directory.resolve(),
        options=options,
        item_names=("model", "optimizer", "progress", "average"),
        item_handlers={
            "model": ocp.StandardCheckpointHandler(),
            "optimizer": ocp.StandardCheckpointHandler(),
            "progress": ocp.JsonCheckpointHandler(),
            "average": ocp.StandardCheckpointHandler(),
        },
    )


def best_step(manager: ocp.CheckpointManager) -> int | None:
    """The step of the lowest validation loss, or None."""
    losses = {}
    for step in manager.all_steps():
        metrics = manager.metrics(step)
        if metrics:
            losses[step] = metrics[MONITORED]
    return min(losses, key=lambda step: (losses[step], step)) if losses else None


def restore_items(manager: ocp.CheckpointManager, step: int, **items: Any) -> Any:
    """Restores some items of a step.

    Raises:
        UserError: the step cannot be read, or does not fit.
    """
    try:
        return manager.restore(step, args=ocp.args.Composite(**items))
    except (ValueError, KeyError, OSError) as error:
        raise UserError(
            f"the checkpoint {manager.directory / str(step)} cannot be restored: {error}"
        ) from error


def abstract(tree: Any, mesh: Mesh) -> Any:
    """A pytree's shapes and dtypes, replicated over a mesh: what Orbax restores into."""
    sharding = replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _restore_model(
    manager: ocp.CheckpointManager,
    step: int,
    spec: ModelSpec,
    mesh: Mesh,
    *,
    ema: bool = False,
) -> tuple[Arrays, Arrays]:
    """Parameters and statistics alone, for inference; `averaged`: their moving average."""
    _, params, batch_stats = split_model(spec.abstract_model())
    if ema:
        both = {**params, **batch_stats}
        items = restore_items(manager, step, average=ocp.args.StandardRestore(abstract(both, mesh)))
        average = items["average"]
        return {k: average[k] for k in params}, {k: average[k] for k in batch_stats}
    items = restore_items(
        manager,
        step,
        model=ocp.args.StandardRestore(abstract({"params": params, "stats": batch_stats}, mesh)),
    )
    return items["model"]["params"], items["model"]["stats"]


def save_model(
    directory: epath.PathLike, spec: ModelSpec, params: Arrays, batch_stats: Arrays
) -> None:
    """Writes a folder of checkpoints with one model and its spec, as step 0, to load or start from.

    It gets its name when all is written.
    """
    directory = epath.Path(directory)
    partial = directory.with_name(directory.name + ".partial")
    if partial.exists():
        partial.rmtree()
    partial.mkdir(parents=True)
    manager = open_manager(partial, ocp.CheckpointManagerOptions())
    arrays = ocp.args.StandardSave({"params": params, "stats": batch_stats})
    manager.save(0, args=ocp.args.Composite(model=arrays))
    manager.close()
    spec.save(partial)
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
    path: epath.PathLike, mesh: Mesh, step: int | None = None, *, ema: bool = False
) -> tuple[ModelSpec, Arrays, Arrays, int]:
    """Card, parameters, statistics and step of a checkpoint, for inference.

    Args:
        path: see `find`.
        mesh: where the arrays shall lie.
        step: which step; by default the one that the path names, or else the best.
        ema: the moving average of the weights in place of the weights themselves.

    Raises:
        UserError: there is no checkpoint, or it cannot be read.
    """
    directory, named = find(path)
    spec = ModelSpec.load(directory)
    manager = open_manager(directory, read_only_options())
    try:
        step = step if step is not None else named
        if step is None:
            step = best_step(manager)
        if step is None:
            step = manager.latest_step()
        if step is None:
            raise UserError(f"no step has been saved in {directory} yet")
        if ema and not (directory / str(step) / "average").exists():
            raise UserError(
                f"{directory / str(step)} has no moving average of the weights: the run had "
                "config.ema_decay=0"
            )
        params, batch_stats = _restore_model(manager, step, spec, mesh, ema=ema)
    finally:
        manager.close()
    return spec, params, batch_stats, step
