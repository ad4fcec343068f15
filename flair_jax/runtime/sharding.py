"""Device mesh, shardings, and conversion between process-local and global arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flair_jax.errors import UserError

DATA_AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh over all devices of all hosts (or over those given)."""
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh(
        (len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices
    )


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


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch -> global arrays split over the devices by the first axis."""
    sharding = batch_sharding(mesh)
    return {
        key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()
    }


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a full copy of every array of a pytree on every device."""
    return jax.device_put(tree, replicated(mesh))


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is split by its first axis, in order."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def gather_hosts(texts: np.ndarray) -> np.ndarray:
    """The texts of every host's shares of some batches, in the order of the global batches.

    Args:
        texts: (steps, share) str, this host's; every host must call, with the same steps.

    Returns:
        (steps x share x hosts,) str, the same on every host.
    """
    if jax.process_count() == 1:
        return texts.reshape(-1)
    from jax.experimental.multihost_utils import process_allgather

    encoded = np.char.encode(texts, "utf-8")
    width = int(process_allgather(np.int32(encoded.dtype.itemsize)).max())
    as_numbers = encoded.astype(f"S{width}").view(np.uint8).reshape(*texts.shape, width)
    gathered = np.ascontiguousarray(process_allgather(as_numbers).swapaxes(0, 1))
    return np.char.decode(gathered.view(f"S{width}").reshape(-1), "utf-8")


def wait_for_hosts(name: str) -> None:
    """Returns when every host has come to the call of this name."""
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(name)
