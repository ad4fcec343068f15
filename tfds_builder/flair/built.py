"""Opens a data set that was built, and its records; damage is reported with the file's name."""

import bisect
import dataclasses
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath
from tensorflow_datasets.core import dataset_info as dataset_info_lib
from tensorflow_datasets.core import decode, file_adapters

from tfds_builder.flair import fingerprint as fingerprint_lib
from tfds_builder.flair.faults import BuildError
from tfds_builder.flair.fingerprint import Fingerprint
from tfds_builder.flair.records import FIELDS, parse


@dataclasses.dataclass(frozen=True)
class Built:
    """A built data set.

    Attributes:
      folder: its version directory.
      builder: TFDS's, which can read it.
      metadata: the content of metadata.json.
      fingerprint: None for data sets of version 1.0.0.
    """

    folder: epath.Path
    builder: tfds.core.DatasetBuilder
    metadata: Mapping[str, Any]
    fingerprint: Fingerprint | None

    @property
    def num_patches(self) -> dict[str, int]:
        """Number of patches by split."""
        return {name: split.num_examples for name, split in self.builder.info.splits.items()}

    @property
    def num_shards(self) -> int:
        """Number of shards of all splits."""
        return sum(split.num_shards for split in self.builder.info.splits.values())

    def damage(self, split: str) -> list[str]:
        """Returns a message for each shard of a split whose damage shows without reading it.

        Shards in a bucket are not looked at.
        """
        if "://" in os.fspath(self.folder):
            return []
        info = self.builder.info.splits[split]
        paths = [epath.Path(path) for path in info.filepaths]
        if self.fingerprint is not None:
            shards = self.fingerprint.shards.get(split, {})
            messages = fingerprint_lib.damaged_shards(self.folder, shards)
        else:
            messages = [f"{path}: not found" for path in paths if not path.exists()]
        if messages or self.builder.info.file_format is not file_adapters.FileFormat.ARRAY_RECORD:
            return messages
        for path, length in zip(paths, info.shard_lengths, strict=True):
            try:
                reader = ArrayRecordReader(os.fspath(path))
                count = reader.num_records()
                reader.close()
            except (RuntimeError, ValueError, OSError) as error:
                messages.append(f"{path}: {_first_line(error)}")
                continue
            if count != length:
                messages.append(f"{path}: {count:,} records, where {length:,} were written")
        return messages


def open_built(directory: str | os.PathLike[str]) -> Built:
    """Opens the folder of a built data set.

    Raises:
      BuildError: if one of its JSON files is missing or damaged; the message names it.
    """
    folder = epath.Path(directory)

    def damaged(name: str, error: Exception) -> BuildError:
        if isinstance(error, FileNotFoundError):
            return BuildError(f"{folder / name} is missing")
        return BuildError(f"{folder / name} is damaged: {_first_line(error)}")

    # TFDS's errors are of many kinds, by the damage, and some name no file.
    try:
        info = dataset_info_lib.read_from_json(folder / "dataset_info.json")
        lengths = [length for split in info.splits for length in split.shard_lengths]
        if not info.version or not lengths or min(lengths) < 1:
            raise ValueError("it names no version or no records")
    except Exception as error:
        cause = error.__cause__ if isinstance(error.__cause__, FileNotFoundError) else error
        raise damaged("dataset_info.json", cause) from error
    try:
        (folder / "features.json").read_text()
        features = tfds.features.FeaturesDict.from_config(os.fspath(folder))
        if missing := FIELDS - features.keys():
            raise ValueError(f"it has no {min(missing)}")
    except Exception as error:
        raise damaged("features.json", error) from error
    try:
        metadata = json.loads((folder / "metadata.json").read_text())
        if not isinstance(metadata, dict):
            raise ValueError("it is not an object")
    except Exception as error:
        raise damaged("metadata.json", error) from error
    fingerprint = fingerprint_lib.load(folder)
    try:
        builder = tfds.builder_from_directory(folder)
        _ = [split.filepaths for split in builder.info.splits.values()]
    except Exception as error:
        raise BuildError(
            f"{folder / 'dataset_info.json'} is damaged: TFDS cannot read the data set"
            f" ({_first_line(error)})"
        ) from error
    return Built(folder, builder, metadata, fingerprint)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


class Records:
    """Random access to the decoded records of a split; see `records.parse` for the fields."""

    def __init__(self, built: Built, split: str) -> None:
        """Opens a split of a data set in ArrayRecord files; files are opened when first read.

        Raises:
          BuildError: if it is in other files.
        """
        info = built.builder.info
        if info.file_format is not file_adapters.FileFormat.ARRAY_RECORD:
            raise BuildError(
                f"{built.folder} is in {info.file_format.value} files, and only array_record is"
                " read here: build it with --file_format=array_record"
            )
        self._size: tuple[int, int] | None = None
        method = decode.DeserializeMethod.DESERIALIZE_AND_DECODE
        if isinstance(info.features["mask"], tfds.features.LabeledImage):
            rows, columns, self._bands = info.features["image"].shape
            self._size = (rows, columns)
            method = decode.DeserializeMethod.RAW_BYTES
        self._source = built.builder.as_data_source(split, deserialize_method=method)
        self._paths = [os.fspath(path) for path in info.splits[split].filepaths]
        self._ends = list(itertools.accumulate(info.splits[split].shard_lengths))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns a record.

        Raises:
          BuildError: if it is damaged; the message names the shard.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        try:
            record = self._source[index]
            return record if self._size is None else parse(record, self._size, self._bands)
        except Exception as error:  # its kind depends on the damage
            path = self._paths[bisect.bisect_right(self._ends, index)]
            raise BuildError(
                f"{path} is damaged: record {index} of its split cannot be read"
                f" ({_first_line(error)})"
            ) from error

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))
