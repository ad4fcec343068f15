"""Checkpoints of models: find, read and write them, without the state of a training (Orbax).

A folder of checkpoints holds `model.json` (the spec) and one folder per saved step with the items

- `model`: parameters and batch statistics, `{"params": {name: array}, "stats": {name: array}}`;
- `optimizer`: of a training, its optimizer's state by name;
- `average`: their exponential moving average by name, if the run keeps one;
- `progress`: the record, JSON: `checksums` of the others, of a training its progress and `best`
  (`Best.to_json`), and a checksum of its own. Version 0.1 wrote no checksums, and the validation
  loss as an item of its own.

Orbax writes a step under a temporary name and renames it when it is complete; its arrays are Zarr
arrays in an OCDBT database. They are read by TensorStore, on which Orbax stands: of a damaged file
Orbax prints hundreds of lines of tracebacks, and its manager waits for all processes, so that it
hangs where one of them cannot read. Neither of the two notices a flipped bit in an array: that is
what the checksums are for.
"""

import functools
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from jax.sharding import Mesh

from flair_jax.config import is_of_ema
from flair_jax.errors import UserError
from flair_jax.models.functional import Arrays, abstract_model, value_fault
from flair_jax.models.spec import FILE, ModelSpec
from flair_jax.runtime import checksums
from flair_jax.runtime.sharding import replicate
from flair_jax.runtime.storage import is_remote
from flair_jax.weights import published
from flair_jax.weights.published import is_published

T = TypeVar("T")
WAITS = (0.5, 2.0)  # seconds before a failed read is tried again
# What TensorStore says where storage fails, beside the names of errors of the system.
_OUT_OF_REACH = re.compile(
    r"UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|RESOURCE_EXHAUSTED|ABORTED|"
    r"OS error|timed out|connection|input/output error"
)


class DamagedError(UserError):
    """A checkpoint that can be reached, and is not what was saved."""


class OutOfReachError(UserError):
    """A checkpoint that may be intact, and cannot be read now."""


def read(action: Callable[[], T], path: epath.Path) -> T:
    """Reads something of a checkpoint, again after errors that may pass.

    Args:
        action: what to do; it may raise whatever it wants, as Orbax does.
        path: the folder that it reads.

    Raises:
        OutOfReachError: the storage fails.
        DamagedError: the storage works, and what it holds cannot be read.
    """
    for wait in (*WAITS, None):
        try:
            return action()
        except MemoryError:
            raise
        except Exception as error:
            if wait is None:
                _refuse(error, path)
            time.sleep(wait)
    raise AssertionError


def _refuse(error: Exception, path: epath.Path) -> NoReturn:
    causes = list(_causes(error))
    reason = (str(causes[-1]).strip() or repr(causes[-1])).splitlines()[0][:300]
    if any(_is_of_storage(cause, str(path)) for cause in causes) or not _can_be_read(path):
        raise OutOfReachError(
            f"{path} cannot be read: {reason}\nIt may be intact: see that the disk or the network "
            "works, and give the same command again."
        ) from error
    raise DamagedError(f"{path} is damaged: {reason}") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_of_storage(error: BaseException, path: str) -> bool:
    """Whether an error is of the storage, and not of what it holds."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return False
    if isinstance(error, OSError):
        return True
    return bool(_OUT_OF_REACH.search(str(error).replace(path, "")))


def _can_be_read(path: epath.Path) -> bool:
    """Whether every byte of every file in a folder can be read, whatever it means."""
    try:
        for entry in path.iterdir():
            if entry.is_dir():
                if not _can_be_read(entry):
                    return False
                continue
            with entry.open("rb") as stream:
                while stream.read(1 << 24):
                    pass
    except FileNotFoundError:
        return True
    except Exception:  # of gcsfs or aiohttp too
        return False
    return True


def saved_steps(directory: epath.Path) -> list[int]:
    """The steps of a folder of checkpoints that are complete, ascending.

    Raises:
        OutOfReachError: the folder cannot be read.
    """
    directory = absolute(directory)
    return sorted(read(lambda: ocp.path.step.checkpoint_steps(directory), directory))


def absolute(directory: epath.PathLike) -> epath.Path:
    """The path of a folder as Orbax wants it."""
    directory = epath.Path(directory)
    return directory if is_remote(directory) else directory.resolve()


def read_record(folder: epath.Path) -> dict[str, Any]:
    """The record of a step; {} for a model without one, which version 0.1 imported.

    Raises:
        OutOfReachError, DamagedError: it cannot be read.
    """
    return read(lambda: _read_record(folder), folder)


def _read_record(folder: epath.Path) -> dict[str, Any]:
    if not (folder / "progress").exists():
        (folder / "model").stat()  # or the folder is not there
        return {}
    record = json.loads((folder / "progress" / "metadata").read_text())
    if not isinstance(record, dict) or not checksums.is_intact(record):
        raise ValueError("the file progress/metadata is not as it was written")
    return record


def read_arrays(folder: epath.Path, item: str, like: Any, checksum: int | None) -> Any:
    """The arrays of an item of a step.

    Args:
        folder: of the step.
        item: "model", "optimizer" or "average".
        like: a pytree of mappings by name whose leaves have the shapes and dtypes.
        checksum: of the arrays, or None where version 0.1 wrote none.

    Returns:
        The pytree, with NumPy arrays.

    Raises:
        OutOfReachError, DamagedError: they cannot be read, or are not those that were saved.
    """
    return read(lambda: _read_arrays(folder, item, like, checksum), folder)


def _read_arrays(folder: epath.Path, item: str, like: Any, checksum: int | None) -> Any:
    context = tensorstore.Context()

    def start_opening(path: tuple, wanted: Any) -> Any:
        name = ".".join(str(key.key) for key in path)
        database = {"driver": "ocdbt", "base": _storage(folder / item), "path": f"{name}/"}
        return tensorstore.open({"driver": "zarr", "kvstore": database}, context=context, open=True)

    def start_reading(path: tuple, wanted: Any, opening: Any) -> Any:
        store = opening.result()
        if store.shape != wanted.shape:
            raise ValueError(
                f"{path[-1].key} has the shape {store.shape} in {item}/, and {wanted.shape} in the "
                "model"
            )
        return store.read()

    opening = jax.tree.map_with_path(start_opening, like)
    reading = jax.tree.map_with_path(start_reading, like, opening)
    arrays = jax.tree.map(lambda x, future: future.result().astype(x.dtype), like, reading)
    if checksum is not None and checksums.of_arrays(by_name(arrays)) != checksum:
        raise ValueError(f"the arrays of {item}/ are not those that were saved (their CRC differs)")
    return arrays


def _storage(folder: epath.Path) -> dict[str, str]:
    """A folder as TensorStore names it."""
    if not is_remote(folder):
        return {"driver": "file", "path": f"{absolute(folder)}/"}
    bucket, _, path = os.fspath(folder).removeprefix("gs://").partition("/")
    return {"driver": "gcs", "bucket": bucket, "path": f"{path}/"}


def model_item(params: Mapping[str, Any], batch_stats: Mapping[str, Any]) -> dict[str, Any]:
    """What is saved of a model as the item `model`."""
    return {"params": dict(params), "stats": dict(batch_stats)}


def item_checksum(item: Mapping[str, Any]) -> int:
    """The checksum of the arrays of an item."""
    return checksums.of_arrays(by_name(item))


def by_name(tree: Any) -> dict[str, Any]:
    """The arrays of a pytree by their dotted paths, in its order."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def best_step(directory: epath.Path) -> int | None:
    """The step of a folder of checkpoints that was best in validation, or None if none was.

    It is told by the record of the newest step, so that it is known also where it has been lost.

    Raises:
        OutOfReachError, DamagedError: a record cannot be read.
    """
    directory = absolute(directory)
    steps = saved_steps(directory)
    if not steps:
        return None
    record = read_record(directory / str(steps[-1]))
    if "best" in record:
        return record["best"]["step"] if record["best"] else None
    losses = {}
    for step in steps:  # as version 0.1 wrote them
        file = directory / str(step) / "metrics" / "metrics"
        if file.exists():
            losses[step] = read(functools.partial(_read_loss, file), file)
    return min(losses, key=lambda step: (losses[step], step)) if losses else None


def _read_loss(file: epath.Path) -> float:
    return json.loads(file.read_text())["val_loss"]


def watches_ema(path: epath.PathLike) -> bool:
    """Whether a run's best step is that of the moving average of its weights (config.monitor).

    Args:
        path: see `load`; False for a published model.

    Raises:
        UserError: there is no checkpoint, or it cannot be read.
    """
    if is_published(path):
        return False
    directory, step = find(path)
    directory = absolute(directory)
    steps = saved_steps(directory)
    if step is None and not steps:
        return False
    record = read_record(directory / str(steps[-1] if step is None else step))
    return is_of_ema(record.get("monitor", ""))


def composite_handler() -> ocp.CompositeCheckpointHandler:
    """Orbax's handler of a step with its items, in the layout that `read_arrays` reads."""
    return ocp.CompositeCheckpointHandler(
        model=ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False),
        optimizer=ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False),
        average=ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False),
        progress=ocp.JsonCheckpointHandler(),
    )


def save_model(
    directory: epath.PathLike, spec: ModelSpec, params: Arrays, batch_stats: Arrays
) -> None:
    """Writes a folder of checkpoints with one model and its spec, as step 0, to load or start from.

    It gets its name when everything is written.
    """
    directory = epath.Path(directory)
    partial = directory.with_name(directory.name + ".partial")
    if partial.exists():
        partial.rmtree()
    partial.mkdir(parents=True)
    item = model_item(params, batch_stats)
    record = checksums.seal({"checksums": {"model": item_checksum(item)}})
    with ocp.Checkpointer(composite_handler()) as checkpointer:
        checkpointer.save(
            absolute(partial) / "0",
            args=ocp.args.Composite(
                model=ocp.args.PyTreeSave(item), progress=ocp.args.JsonSave(record)
            ),
        )
    spec.save(partial)
    partial.rename(directory)


def find(path: epath.PathLike) -> tuple[epath.Path, int | None]:
    """Finds a checkpoint of this package from any of the paths that a user may give.

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
        "a folder of checkpoints, or the folder of one step; or a published model: "
        "hf://organisation/repository, a folder with its files, or a file of weights"
    )


def load(
    path: epath.PathLike, mesh: Mesh, step: int | None = None, *, ema: bool | None = None
) -> tuple[ModelSpec, Arrays, Arrays, int]:
    """Spec, parameters, batch statistics and step of a model, for inference.

    Args:
        path: a checkpoint, see `find`; or a published model, see `published.read`.
        mesh: the devices, each of which gets a copy.
        step: which step; by default the one that the path names, or else the best.
        ema: the moving average of the weights in place of the weights themselves; None: the one
            of the two that the run has watched (config.monitor).

    Raises:
        UserError: there is no checkpoint, or it cannot be read; or `step` or `ema` is asked of a
            published model.
    """
    if is_published(path):
        if step is not None or ema:
            raise UserError(
                f"{path} is a published model and no run: it has one step, and no moving average "
                "of the weights beside them"
            )
        spec, *arrays, step = published.load(path)
        params, batch_stats = (replicate(each, mesh) for each in arrays)
        return spec, params, batch_stats, step
    directory, named = find(path)
    spec = ModelSpec.load(directory)
    steps = saved_steps(directory)
    if not steps:
        raise UserError(f"no step has been saved in {directory} yet")
    step = step if step is not None else named
    try:
        if step is None:
            step = best_step(directory)
            if step is not None and step not in steps:
                raise DamagedError(f"{directory / str(step)}, the best checkpoint, is missing")
        step = steps[-1] if step is None else step
        ema = watches_ema(path) if ema is None else ema
        params, batch_stats = _load_step(directory, step, spec, ema)
    except DamagedError as error:
        others = ", ".join(str(other) for other in steps if other != step) or "none"
        raise DamagedError(
            f"{error}\nOther steps in {directory}: {others}. Give the folder of one to use it; a "
            "run can be resumed with its training command, which looks for the newest intact one."
        ) from error
    return spec, replicate(params, mesh), replicate(batch_stats, mesh), step


def _load_step(
    directory: epath.Path, step: int, spec: ModelSpec, ema: bool
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    folder = absolute(directory) / str(step)
    if not folder.exists():
        raise UserError(f"there is no checkpoint {folder}")
    _, params, batch_stats = abstract_model(spec)
    record = read_record(folder)
    known = record.get("checksums", {})
    if not ema:
        model = read_arrays(folder, "model", model_item(params, batch_stats), known.get("model"))
        both = {**model["params"], **model["stats"]}
    elif (folder / "average").exists() or "average" in known:
        both = read_arrays(folder, "average", {**params, **batch_stats}, known.get("average"))
    else:
        raise UserError(
            f"{folder} has no moving average of the weights: the run had config.ema_decay=0"
        )
    faults = [f"{name}: {fault}" for name in both if (fault := value_fault(name, both[name]))]
    if faults:
        raise DamagedError(
            f"{folder} holds no weights of a network, in {len(faults)} arrays:\n  "
            + "\n  ".join(faults[:20])
        )
    return {k: both[k] for k in params}, {k: both[k] for k in batch_stats}
