"""Input pipeline: ArrayRecord records -> each process's share of global batches of uint8.

The samples of a batch are a pure function of (seed, epoch, step): no iterator state needs saving,
and one device, eight, or several hosts train on the same batches.
"""

import dataclasses
import functools
import re
import resource
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grain
import ml_collections
import numpy as np
from absl import flags
from etils import epath
from jax.sharding import Mesh

from flair_jax.data import metadata
from flair_jax.data.bands import band_indices
from flair_jax.data.description import DataDescription
from flair_jax.errors import UserError
from flair_jax.runtime import console
from flair_jax.runtime.sharding import process_rows
from flair_jax.runtime.storage import check_reachable
from tfds_builder.flair.built import Records, open_built
from tfds_builder.flair.faults import BuildError
from tfds_builder.flair.workers import available_cpus

Batch = dict[str, np.ndarray]
# Folders of TFDS's builders: FLAIR #1 and #2, users' own images, FLAIR-HUB.
BUILDERS = ("flair", "own_data", "flair_hub")
PADDING = -1  # the index that stands for no sample
THREADS = 4  # by default at most
PREFETCH_BATCHES = 8  # at most, but for more threads
OTHER_FILES = 256  # that a process has open besides shards, generously

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


class PatchRecords:
    """Random access to the decoded records of a split; a damaged one raises a UserError.

    A record has `image` (H, W, bands) uint8 and `mask` (H, W) uint8, both read-only, `has_mask`
    bool, `centroid` (3,) and `transform` (6,) float64, and bytes of UTF-8 text: `id`, `domain`,
    `zone`, `date`, `time`, `camera`, `crs`.
    """

    def __init__(self, records: Records, directory: str) -> None:
        self._records = records
        self._directory = directory

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return self._records[index]
        except BuildError as error:
            raise _damaged(error, self._directory) from error

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))


class _Subset(PatchRecords):
    """Some of the records of a split."""

    def __init__(self, records: PatchRecords, indices: Sequence[int] | np.ndarray) -> None:
        self._all, self._indices = records, np.asarray(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._all[int(self._indices[index])]


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a built data set.

    Attributes:
        name: "train", "val" or "test".
        directory: the data set's version directory.
        records: random access to the decoded records.
        patch_size: (height, width) of every patch in pixels.
        data: the description of the data set: bands, classes.
    """

    name: str
    directory: str
    records: PatchRecords
    patch_size: tuple[int, int]
    data: DataDescription

    def __len__(self) -> int:
        return len(self.records)

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Split":
        """The split with some of its patches only, in this order."""
        return dataclasses.replace(self, records=_Subset(self.records, indices))


def dataset_directory(data_dir: str, data_config: str) -> epath.Path:
    """The directory of the built data set.

    Args:
        data_dir: the `--data_dir` of the build ("" is TFDS's default), or a version directory.
        data_config: the `--config` of the build, such as "published".

    Returns:
        The version directory; of several versions, the newest.

    Raises:
        UserError: it has not been built; the message gives the command.
    """
    import tensorflow_datasets as tfds

    check_reachable(data_dir, "config.data_dir")
    root = epath.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    if any((root / name).exists() for name in ("dataset_info.json", "features.json")):
        return root
    parent = root / ("flair_hub" if data_config == "hub" else "flair") / data_config
    found = [newest for name in BUILDERS if (newest := _newest(root / name / data_config))]
    if len(found) > 1:
        raise UserError(
            f"config.data_config={data_config!r} is the name of two data sets: give one of them as "
            f"config.data_dir, {found[0]} or {found[1]}"
        )
    if found and data_config:
        return found[0]
    if names := [p.name for name in BUILDERS for p in _folders(root / name) if _newest(p)]:
        raise UserError(
            f"there is no data set {data_config!r} in {root}; set config.data_config to one that "
            f"is there: {', '.join(sorted(names))}"
        )
    if not data_config:
        raise UserError(
            f"there is no data set of your own images in {root}. Build one with\n"
            "  flair-jax build --images=DIR --masks=DIR --classes=classes.csv --name=NAME\n"
            "and set config.data_config=NAME; docs/own_data.md shows how"
        )
    flags = f" --data_dir={root}" if data_dir else ""
    flags += "" if data_config == "published" else f" --config={data_config}"
    raise UserError(
        f"the data set is not built: there is no {parent}/*/"
        "dataset_info.json.\nBuild it once from the downloaded files with\n"
        f"  flair-jax build --source=DOWNLOAD_FOLDER{flags}\n"
        "or point config.data_dir to where you built it."
    )


def _folders(parent: epath.Path) -> list[epath.Path]:
    return [path for path in parent.iterdir() if path.is_dir()] if parent.exists() else []


def _newest(parent: epath.Path) -> epath.Path | None:
    """The newest version of a data set, if there is one."""
    versions = {
        tuple(map(int, path.name.split("."))): path
        for path in _folders(parent)
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name, re.ASCII)
    }
    return versions[max(versions)] if versions else None


def open_split(directory: epath.PathLike, name: str) -> Split:
    """Opens a split of a built data set.

    Raises:
        UserError: the data set has no such split, a file of it is missing or damaged, or it has
            more shards than this process may open.
    """
    directory = str(directory)
    try:
        built = open_built(directory)
        if name not in built.num_patches:
            raise UserError(
                f"the data set {directory} has no split {name!r}; it has "
                f"{', '.join(built.num_patches) or 'none'}"
            )
        if damage := built.damage(name):
            more = f" (and {len(damage) - 1:,} more)" if len(damage) > 1 else ""
            raise BuildError(f"{damage[0]}{more}")
        allow_open_files(built.num_shards, directory)
        records = PatchRecords(Records(built, name), directory)
    except BuildError as error:
        raise _damaged(error, directory) from error
    height, width, bands = records[0]["image"].shape
    try:
        data = DataDescription.from_metadata(built.metadata)
        if len(data.bands) != bands:
            raise ValueError(f"it names {len(data.bands)} bands, and the patches have {bands}")
    except ValueError as error:
        raise UserError(f"{directory}/metadata.json is damaged: {error}") from error
    return Split(name, directory, records, (height, width), data)


def _damaged(error: BuildError, directory: str) -> UserError:
    return UserError(
        f"{error}\nCheck all of the data set with\n  flair-jax doctor --data_dir={directory}"
    )


def allow_open_files(shards: int, directory: str) -> None:
    """Raises this process's limit of open files so that all shards of a data set can be read.

    Each shard that was read stays open.

    Raises:
        UserError: the system's limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = shards + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (ValueError, OSError) as error:
        raise UserError(
            f"the data set {directory} has {shards:,} shards, which stay open while they are read, "
            f"and this process may open {hard:,} files: raise the limit (ulimit -n {needed}), or "
            "build the data set anew with a larger --shard_mb"
        ) from error


def check_masks(split: Split) -> None:
    """Raises a UserError if no patch of a split has a mask, so that there is nothing to learn.

    It reads up to the first patch with a mask.
    """
    if not any(split.records[i]["has_mask"] for i in range(len(split))):
        raise UserError(
            f"no patch of the split {split.name!r} in {split.directory} has a mask: build the data "
            "set with the masks of this split"
        )


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


def as_text(value: bytes | str) -> str:
    """A text feature of a record, which TFDS gives as bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


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
