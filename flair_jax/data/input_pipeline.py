"""Input pipeline: ArrayRecord records -> each process's share of global batches of uint8.

The samples of a batch are a pure function of (seed, epoch, step): no iterator state needs saving,
and one device, eight, or several hosts train on the same batches.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags
from etils import epath
from jax.sharding import Mesh

from flair_jax.data import metadata
from flair_jax.data.bands import BANDS
from flair_jax.errors import UserError
from flair_jax.runtime import console
from flair_jax.runtime.sharding import process_rows
from flair_jax.runtime.storage import check_reachable

Batch = dict[str, np.ndarray]
PADDING = -1  # the index that stands for no sample

# The fields that are copied to the device; the others stay on the host.
DEVICE_FIELDS = ("image", "mask", "metadata", "valid")


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a built data set.

    Attributes:
        name: "train", "val" or "test".
        directory: the data set's version directory.
        records: random access to the decoded records.
        patch_size: (height, width) of every patch in pixels.
        bands: number of bands.
    """

    name: str
    directory: str
    records: Sequence[dict[str, Any]]
    patch_size: tuple[int, int]
    bands: int

    def __len__(self) -> int:
        return len(self.records)


def dataset_directory(data_dir: str, data_config: str) -> epath.Path:
    """The directory of the built data set.

    Args:
        data_dir: the `--data_dir` of the build ("" is TFDS's default), or a version directory.
        data_config: the `--config` of the build, such as "published".

    Raises:
        UserError: it has not been built; the message gives the command.
    """
    import tensorflow_datasets as tfds

    check_reachable(data_dir, "config.data_dir")
    root = epath.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    if (root / "dataset_info.json").exists():
        return root
    versions = sorted((root / "flair" / data_config).glob("*/dataset_info.json"))
    if versions:
        return versions[-1].parent
    flags = f" --data_dir={root}" if data_dir else ""
    flags += "" if data_config == "published" else f" --config={data_config}"
    raise UserError(
        f"the data set is not built: there is no {root / 'flair' / data_config}/*/"
        "dataset_info.json.\nBuild it once from the downloaded files with\n"
        f"  flair-jax build --source=DOWNLOAD_FOLDER{flags}\n"
        "or point config.data_dir to where you built it."
    )


def open_split(directory: epath.Path, name: str) -> Split:
    """Opens a split of a built data set.

    Raises:
        UserError: the data set has no such split, or cannot be read.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(directory)
    if name not in builder.info.splits:
        raise UserError(
            f"the data set {directory} has no split {name!r}; it has "
            f"{', '.join(builder.info.splits) or 'none'}"
        )
    records = builder.as_data_source(split=name)
    height, width, bands = records[0]["image"].shape
    return Split(name, str(directory), records, (height, width), bands)


def check_bands(split: Split) -> None:
    """Raises a UserError unless the patches have FLAIR's bands, of which models use a selection."""
    if split.bands != len(BANDS):
        raise UserError(
            f"the patches of {split.directory} have {split.bands} bands, not FLAIR's {len(BANDS)}: "
            f"{', '.join(BANDS)}"
        )


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
        bands: Sequence[int],
    ) -> None:
        self._records = split.records
        self._refused = np.isin(np.arange(256), refused_values)
        self._metadata_encoding = metadata_encoding
        self._keep = keep
        self._bands = None if list(bands) == list(range(split.bands)) else list(bands)

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
                f"the mask MSK_{as_text(record['id'])}.tif has the values {values}, which map to "
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


def batches(
    split: Split,
    order: np.ndarray,
    *,
    metadata_encoding: str = "",
    refused_values: Sequence[int] = (),
    keep: Sequence[str] = (),
    bands: Sequence[int] | None = None,
    num_workers: int = 0,
    num_threads: int | None = None,
) -> Iterator[Batch]:
    """The batches in `order`.

    Args:
        split: where to read.
        order: (steps, n) sample indices, one batch a row; `PADDING` makes a sample with `valid`
            False. Of several processes, each takes the columns `sharding.process_rows`.
        metadata_encoding: add `metadata` (n, numbers) float32, see `metadata.encode`.
        refused_values: mask values that raise an error.
        keep: further features of the data set to add unchanged, such as `id` or `transform`.
        bands: indices of the bands to take, in this order; all if None.
        num_workers: processes that read; 0 reads in threads of this one.
        num_threads: threads of each process that read; one per core, but four at most, if None.
            The interpreter's lock is held for about a quarter of the work, so that more than four
            are of use with slow disks only.

    Raises:
        UserError: a mask has one of the refused values; the message names it.

    Yields:
        `image` (n, H, W, bands) uint8, `mask` (n, H, W) uint8, `sample` (n,) bool (False for
        padding), `valid` (n,) bool (False for padding and for patches without mask).
    """
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads flags, which are not parsed in a notebook
    bands = range(split.bands) if bands is None else bands
    threads = num_threads or min(4, os.cpu_count() or 1)
    read = _ReadPatch(split, metadata_encoding, refused_values, keep, bands)
    data = (
        grain.MapDataset.source(order.reshape(-1))
        .map(read)
        .batch(order.shape[1])
        .to_iter_dataset(grain.ReadOptions(threads, prefetch_buffer_size=max(8, threads)))
    )
    if num_workers:
        data = data.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
    return iter(data)


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
