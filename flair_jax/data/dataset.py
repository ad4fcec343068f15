"""A built data set: its folder, its splits, and their records."""

import dataclasses
import re
import resource
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from flair_jax.data.description import DataDescription
from flair_jax.errors import UserError
from flair_jax.runtime.storage import check_reachable
from tfds_builder.flair.built import Records, open_built
from tfds_builder.flair.faults import BuildError

# Folders of TFDS's builders: FLAIR #1 and #2, users' own images, FLAIR-HUB.
BUILDERS = ("flair", "own_data", "flair_hub")
OTHER_FILES = 256  # that a process has open besides shards, generously


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


def as_text(value: bytes | str) -> str:
    """A text feature of a record, which TFDS gives as bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)
