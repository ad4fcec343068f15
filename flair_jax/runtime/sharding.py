"""Device mesh, shardings, and conversion between process-local and global arrays."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flair_jax.errors import UserError

DATA_AXIS = "data"
Result = TypeVar("Result")


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh over all devices of all hosts (or over those given), in the order given.

    The devices of a process need not be neighbours in it, and on TPU pods they are not: which rows
    of a batch a process holds is told by `process_rows` alone.
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits an array's first axis over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """Keeps a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, mesh: Mesh, flag: str, parts: int = 1) -> None:
    """Raises a UserError unless the global batch divides over the devices, and so over the hosts.

    Args:
        batch_size: the global batch.
        mesh: the devices.
        flag: what sets it.
        parts: into how many parts it is cut first (`config.accumulate_steps`).
    """
    count = mesh.size * parts
    if batch_size < 1 or batch_size % count:
        near = max(count, round(batch_size / count) * count)
        hosts = f" of {jax.process_count()} hosts" if jax.process_count() > 1 else ""
        each = f", times config.accumulate_steps={parts}" if parts > 1 else ""
        raise UserError(
            f"{flag}={batch_size} is the global batch and must be a multiple of the {mesh.size} "
            f"devices{hosts}{each}: set it to {near}, for example"
        )


def process_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a global batch that this process's devices hold.

    Returns:
        (batch_size / processes,) int64, ascending; not contiguous where the mesh interleaves the
        devices of several processes.
    """
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.sort(np.concatenate([np.arange(batch_size)[index] for index in slices]))


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch -> global arrays split over the devices by the first axis.

    Args:
        batch: arrays of the rows `process_rows`, in that order.
        mesh: the devices.
    """
    sharding = batch_sharding(mesh)
    return {
        key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()
    }


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a full copy of every array of a pytree, the same on all processes, on every device."""
    sharding = replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    # `device_put` would compare the processes' values, with a collective for each array.
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, np.asarray(x).__getitem__), tree
    )


def one_behind(results: Iterable[Result]) -> Iterator[Result]:
    """Yields each result after the next one has been dispatched, so that the device stays busy."""
    previous: list[Result] = []
    for result in results:
        yield from previous
        previous = [result]
    yield from previous


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is split by its first axis: those of `process_rows`."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def gather_texts(texts: np.ndarray, mesh: Mesh) -> np.ndarray:
    """The texts of all processes' rows of some batches, in the order of the global batches.

    Args:
        texts: (steps, rows) str of this process's `process_rows`; every process must call this,
            with the same number of steps.
        mesh: the devices.

    Returns:
        (steps x batch_size,) str, the same on every process.
    """
    if jax.process_count() == 1:
        return texts.reshape(-1)
    encoded = np.char.encode(texts.T, "utf-8")
    width = largest(encoded.dtype.itemsize)
    as_numbers = encoded.astype(f"S{width}").view(np.uint8).reshape(*texts.T.shape, width)
    rows = to_global({"rows": as_numbers}, mesh)["rows"]
    gathered = np.asarray(jax.jit(lambda x: x, out_shardings=replicated(mesh))(rows))
    by_step = np.ascontiguousarray(gathered.swapaxes(0, 1))
    return np.char.decode(by_step.view(f"S{width}").reshape(-1), "utf-8")


def largest(value: int) -> int:
    """The largest of all processes' values, on every process; every process must call this."""
    if jax.process_count() == 1:
        return value
    from jax.experimental.multihost_utils import process_allgather

    return int(process_allgather(np.int32(value)).max())


def from_first(values: Sequence[int]) -> list[int]:
    """The first process's integers, on every process; every process must call this."""
    if jax.process_count() == 1:
        return list(values)
    from jax.experimental.multihost_utils import broadcast_one_to_all

    count = int(broadcast_one_to_all(np.int32(len(values))))
    mine = np.resize(np.asarray([*values, 0], np.int32), count)
    return broadcast_one_to_all(mine).tolist()


def wait_for_hosts(name: str) -> None:
    """Returns when every host has come to the call of this name."""
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(name)
