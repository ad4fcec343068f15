"""Input pipeline: ArrayRecord records -> each process's share of global batches of uint8.

The samples of a batch are a pure function of (seed, epoch, step): no iterator state needs saving,
and one device, eight, or several hosts train on the same batches.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grain
import ml_collections
import numpy as np
from absl import flags
from jax.sharding import Mesh

from flair_jax.data import metadata
from flair_jax.data.bands import band_indices
from flair_jax.data.dataset import Split, as_text
from flair_jax.errors import UserError
from flair_jax.runtime import console
from flair_jax.runtime.sharding import process_rows
from tfds_builder.flair.workers import available_cpus

Batch = dict[str, np.ndarray]
PADDING = -1  # the index that stands for no sample
THREADS = 4  # by default at most
PREFETCH_BATCHES = 8  # at most, but for more threads

# The fields that are copied to the device; the others stay on the host.
DEVICE_FIELDS = ("image", "mask", "metadata", "valid")


@dataclasses.dataclass(frozen=True)
class Reading:
    """How patches are read; what is read does not depend on it.

    Attributes:
        workers: processes that read; 0 reads in threads of this one.
        threads: threads of each process that read; 0 for one per CPU, but four at most. The
            interpreter's lock is held for about a quarter of the work, so that more than four are
            of use with slow disks only.
        prefetch_mb: MiB of batches that are read ahead, but one batch at least. A thread reads a
            batch, so that large batches need more for all threads to work.
    """

    workers: int = 0
    threads: int = 0
    prefetch_mb: int = 256

    @classmethod
    def of(cls, config: ml_collections.ConfigDict) -> "Reading":
        """As a configuration has it."""
        return cls(config.num_workers, config.num_threads, config.prefetch_mb)


DEFAULT_READING = Reading()


class _ReadPatch:
    """Index of a sample -> the fields that the training and scoring steps need."""

    def __init__(
        self,
        split: Split,
        metadata_encoding: str,
        refused_values: Sequence[int],
        keep: Sequence[str],
        bands: Sequence[str],
    ) -> None:
        self._records = split.records
        self._refused = np.isin(np.arange(256), refused_values)
        self._metadata_encoding = metadata_encoding
        self._keep = keep
        # The same bands in the same order are not copied.
        chosen = band_indices(bands, split.data.bands)
        self._bands = None if chosen == list(range(len(split.data.bands))) else chosen

    def __call__(self, index: np.integer) -> dict[str, Any]:
        record = self._records[max(int(index), 0)]
        image = record["image"]
        patch = {
            "image": image if self._bands is None else image[..., self._bands],
            "mask": record["mask"],
            "sample": np.bool_(index != PADDING),
            "valid": np.bool_(index != PADDING and record["has_mask"]),
        }
        if self._refused.any() and record["has_mask"]:
            self._check_values(record)
        if self._metadata_encoding:
            texts = (as_text(record[key]) for key in ("date", "time", "camera"))
            numbers = metadata.encode(self._metadata_encoding, record["centroid"], *texts)
            patch["metadata"] = numbers.astype(np.float32)
        for key in self._keep:
            value = record[key]
            patch[key] = value if isinstance(value, np.ndarray) else as_text(value)
        return patch

    def _check_values(self, record: dict[str, Any]) -> None:
        refused = self._refused[record["mask"]]
        if refused.any():
            values = np.unique(record["mask"][refused]).tolist()
            raise UserError(
                f"the mask of patch {as_text(record['id'])} has the values {values}, which map to "
                "no class of the nomenclature: add them to a class of config.classes, or set "
                "config.unlisted_values='ignore' to ignore such pixels"
            )


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Number of whole batches in a split; the rest of an epoch's shuffle is left out.

    Raises:
        UserError: the split is smaller than one batch.
    """
    if len(split) < batch_size:
        raise UserError(
            f"config.batch_size={batch_size} is more than the {len(split)} patches of the split "
            f"{split.name!r} in {split.directory}"
        )
    return len(split) // batch_size


def train_order(num_samples: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Indices of an epoch's batches: (steps, batch_size) int64, a new shuffle every epoch."""
    order = np.random.default_rng((seed, epoch)).permutation(num_samples)
    steps = num_samples // batch_size
    return order[: steps * batch_size].reshape(steps, batch_size)


def eval_order(num_samples: int, batch_size: int) -> np.ndarray:
    """Indices of every sample once, in order, the last batch padded: (steps, batch_size)."""
    steps = -(-num_samples // batch_size)
    order = np.full(steps * batch_size, PADDING)
    order[:num_samples] = np.arange(num_samples)
    return order.reshape(steps, batch_size)


class TrainOrder(Sequence[np.ndarray]):
    """The batches of a training, one epoch after the other, each in the order of `train_order`.

    A row is an array of sample indices, made when it is needed.

    Args:
        num_samples, batch_size, seed: see `train_order`.
        epochs: their number.
        first: the step from which on it begins, counted from 0 over all epochs.
        columns: which indices of each batch; all if None.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        epochs: int,
        *,
        first: int = 0,
        columns: np.ndarray | None = None,
    ) -> None:
        self._arguments = num_samples, batch_size, seed
        self._steps, self._epochs, self._first = num_samples // batch_size, epochs, first
        self._columns = np.arange(batch_size) if columns is None else columns

    def __len__(self) -> int:
        return self._epochs * self._steps - self._first

    def __getitem__(self, index: Any) -> Any:
        epoch, step = divmod(self._first + index, self._steps)
        return _cached_train_order(*self._arguments, epoch)[step, self._columns]


@functools.lru_cache(maxsize=2)  # reading ahead goes from one epoch into the next
def _cached_train_order(num_samples: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    return train_order(num_samples, batch_size, seed, epoch)


class _Samples:
    """The indices of an order, one after the other."""

    def __init__(self, order: Sequence[np.ndarray] | np.ndarray) -> None:
        self._order, self._columns = order, len(order[0])

    def __len__(self) -> int:
        return len(self._order) * self._columns

    def __getitem__(self, index: int) -> np.integer:
        step, column = divmod(int(index), self._columns)
        return self._order[step][column]


def batches(
    split: Split,
    order: Sequence[np.ndarray] | np.ndarray,
    *,
    metadata_encoding: str = "",
    refused_values: Sequence[int] = (),
    keep: Sequence[str] = (),
    bands: Sequence[str] | None = None,
    reading: Reading = DEFAULT_READING,
    times: int = 1,
) -> Iterator[Batch]:
    """The batches in `order`.

    Args:
        split: where to read.
        order: (steps, n) sample indices, one batch a row; `PADDING` makes a sample with `valid`
            False. Of several processes, each takes the columns `sharding.process_rows`.
        metadata_encoding: add `metadata` (n, numbers) float32, see `metadata.encode`.
        refused_values: mask values that raise an error.
        keep: further features of the data set to add unchanged, such as `id` or `transform`.
        bands: names of the bands to take, in this order; all if None.
        reading: threads and processes, and how far ahead they read.
        times: how often all of them come, one time after the other.

    Raises:
        UserError: a mask has one of the refused values; the message names it.

    Yields:
        `image` (n, H, W, bands) uint8, `mask` (n, H, W) uint8, `sample` (n,) bool (False for
        padding), `valid` (n,) bool (False for padding and for patches without mask).
    """
    if not len(order):
        return iter(())
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads flags, which are not parsed in a notebook
    bands = split.data.bands if bands is None else bands
    threads = reading.threads or min(THREADS, available_cpus())
    read = _ReadPatch(split, metadata_encoding, refused_values, keep, bands)
    height, width = split.patch_size
    batch_size = len(order[0])
    batch_bytes = batch_size * height * width * (len(bands) + 1)
    buffer = prefetch_batches(batch_bytes, reading.prefetch_mb, threads, max(1, reading.workers))
    data = (
        grain.MapDataset.source(_Samples(order))
        .map(read)
        .batch(batch_size)
        .repeat(times)
        .to_iter_dataset(grain.ReadOptions(min(threads, buffer), prefetch_buffer_size=buffer))
    )
    if reading.workers:
        data = data.mp_prefetch(grain.MultiprocessingOptions(num_workers=reading.workers))
    return iter(data)


def prefetch_batches(batch_bytes: int, prefetch_mb: int, threads: int, processes: int) -> int:
    """Batches that each process reads ahead: at most `prefetch_mb` MiB in all, at least one."""
    within = prefetch_mb * 2**20 // (batch_bytes * processes)
    return max(1, min(within, max(PREFETCH_BATCHES, threads)))


def split_batches(split: Split, batch_size: int, mesh: Mesh, **options: Any) -> Iterable[Batch]:
    """All patches of a split once, in order, in batches padded to `batch_size`, with a bar.

    Each process reads its own rows of the batches.

    Args:
        split: where to read.
        batch_size: the global batch.
        mesh: the devices that share each batch.
        options: keyword arguments of `batches`.
    """
    order = eval_order(len(split), batch_size)
    data = batches(split, order[:, process_rows(mesh, batch_size)], **options)
    return console.progress_bar(data, total=len(order), desc=split.name, unit="batch")


def on_device(batch: Batch, stop: bool = False) -> Batch:
    """The fields of a batch for the device; `stop` tells all processes that this one is to stop."""
    fields = {key: batch[key] for key in DEVICE_FIELDS if key in batch}
    return fields | {"stop": np.full(len(batch["valid"]), stop)}
