"""Writes the shards of a data set, several at a time, each straight to its file."""

import contextlib
import ctypes
import dataclasses
import importlib.util
import itertools
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
import tqdm
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core import file_adapters, writer

from tfds_builder.flags import FORMATS
from tfds_builder.flair.faults import BuildError, Fault
from tfds_builder.flair.patches import Outcome, Size, gdal, read_patch
from tfds_builder.flair.records import CLASS_NAMES, Serializer, features
from tfds_builder.flair.reference import BANDS
from tfds_builder.flair.selection import Patch
from tfds_builder.flair.workers import follow_parent

WRITE, CHECK_ONLY, STOP = range(3)
# What TFDS needs to write them.
_MODULES = {"tfrecord": ("tensorflow",), "riegeli": ("tensorflow", "riegeli")}
# Bytes of a record besides its pixels and the headers of the mask's rows; of the block headers of
# ArrayRecord, which are 24 bytes in 64 KiB; and of a shard's index and the rest of its last block.
RECORD_OVERHEAD = 700
FORMAT_OVERHEAD = 1 + 24 / 2**16
SHARD_OVERHEAD = 2**17


@dataclasses.dataclass(frozen=True)
class PatchFormat:
    """How the patches of a data set are read and stored.

    Attributes:
      size: rows and columns of all; None if no image can be read.
      bands: names of their bands.
      labels: the meaning of each mask value, or how many values there are; see `records.features`.
      read: reads and checks a patch; it is pickled.
    """

    size: Size | None
    bands: tuple[str, ...] = BANDS
    labels: Sequence[str] | int = dataclasses.field(default_factory=lambda: CLASS_NAMES)
    read: Callable[[Patch, Size | None], Outcome] = dataclasses.field(
        default_factory=lambda: read_patch
    )

    def features(self) -> tfds.features.FeaturesDict:
        """Returns TFDS's features of a patch."""
        return features(self.size, self.bands, self.labels)


@dataclasses.dataclass(frozen=True)
class Shard:
    """The patches of one shard, and their format."""

    patches: tuple[Patch, ...]
    format: PatchFormat


class ShardResult(NamedTuple):
    """What was written of a shard, and what was found in its patches.

    Attributes:
      written: number of examples.
      faults: of patches that were not written.
      warnings: of patches that were written.
      crcs: of the files of each patch, see `patches.Outcome`.
      skipped: indices of the patches that were not written.
      ranges: the lowest and the highest value of each band, of the patches that were read.
    """

    written: int
    faults: list[Fault]
    warnings: list[Fault]
    crcs: list[tuple[int | None, ...]]
    skipped: list[int]
    ranges: list[tuple[int, int]]


def _num_shards(patches: int, form: PatchFormat, shard_mb: float) -> int:
    rows, columns = form.size or (512, 512)
    total = patches * rows * columns * (len(form.bands) + 1)
    return min(patches, max(1, math.ceil(total / (shard_mb * 2**20))))


def cut(patches: Sequence[Patch], form: PatchFormat, shard_mb: float) -> list[Shard]:
    """Divides a split into shards of about `shard_mb` MiB of pixels, in order, of even length."""
    count = _num_shards(len(patches), form, shard_mb)
    ends = [len(patches) * i // count for i in range(count + 1)]
    return [Shard(tuple(patches[a:b]), form) for a, b in itertools.pairwise(ends)]


def files_bytes(patches: int, form: PatchFormat, shard_mb: float) -> int:
    """Returns about the size of the files of a split, rather too much than too little."""
    rows, columns = form.size or (0, 0)
    record = rows * (columns * (len(form.bands) + 1) + 6) + RECORD_OVERHEAD
    shards = _num_shards(patches, form, shard_mb)
    return int(patches * record * FORMAT_OVERHEAD) + shards * SHARD_OVERHEAD


def joint_ranges(ranges: Iterable[Sequence[tuple[int, int]]]) -> list[tuple[int, int]]:
    """Returns the lowest and the highest value of each band over several patches or shards."""
    by_band = zip(*(one for one in ranges if one), strict=True)
    return [(min(low for low, _ in band), max(high for _, high in band)) for band in by_band]


def check_format(file_format: str) -> None:
    """Raises a BuildError for a file format that is unknown, or cannot be written here."""
    if file_format not in FORMATS:
        raise BuildError(f"no file format {file_format!r}: there are {', '.join(FORMATS)}")
    for module in _MODULES.get(file_format, ()):
        if importlib.util.find_spec(module) is None:
            raise BuildError(
                f"file_format {file_format!r} needs the package {module}, which is not installed;"
                " training reads array_record, which needs no other package"
            )


class _UncompressedArrayRecords(writer.ExampleWriter):
    """Writes ArrayRecord files as TFDS does, but without its compression.

    Aerial images shrink by a quarter at most, and would be read at half the speed.
    """

    def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> None:
        array_records = ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
        for _, record in examples:
            array_records.write(record)
        array_records.close()


def _example_writer(file_format: str) -> writer.ExampleWriter:
    of_tfds = file_adapters.FileFormat.from_value(file_format)
    if of_tfds is file_adapters.FileFormat.ARRAY_RECORD:
        return _UncompressedArrayRecords(of_tfds)
    return writer.ExampleWriter(of_tfds)


def write_shard(
    shard: Shard,
    path: str,
    file_format: str,
    *,
    skip: bool,
    state: ctypes.c_byte,
    count: Callable[[], None] = lambda: None,
) -> ShardResult:
    """Writes one shard.

    Args:
      shard: what to write.
      path: its file.
      file_format: one of `FORMATS`.
      skip: whether to continue writing after a fault.
      state: holds WRITE, CHECK_ONLY or STOP; set to CHECK_ONLY at a fault, unless `skip`.
      count: called after every patch that was checked.

    Raises:
      BuildError: if the file cannot be written.
    """
    form = shard.format
    serialize = Serializer(form.size, form.bands, form.labels)
    result = ShardResult(0, [], [], [], [], [])
    ranges: list[Sequence[tuple[int, int]]] = []
    written = 0

    def examples() -> Iterator[tuple[int, bytes]]:
        nonlocal written
        for index, patch in enumerate(shard.patches):
            outcome = form.read(patch, form.size)
            count()
            ranges.append(outcome.ranges)
            result.faults.extend(outcome.faults)
            result.warnings.extend(outcome.warnings)
            result.crcs.append(outcome.crcs)
            if state.value == STOP:
                return
            if outcome.faults and not skip:
                state.value = CHECK_ONLY
            if outcome.example is None:
                result.skipped.append(index)
            elif state.value == WRITE:
                yield index, serialize(outcome.example)
                written += 1

    try:
        with gdal():
            records: Iterable[tuple[int, bytes]] = examples()
            if file_format == file_adapters.FileFormat.PARQUET.value:
                # TFDS takes batches of an iterator by their index from its start, and so would
                # leave out every other batch.
                records = list(records)
            _example_writer(file_format).write(path, records)
    # ArrayRecord raises RuntimeError when a disk is full, the others errors of their own.
    except (OSError, RuntimeError) as error:
        raise BuildError(f"cannot write {path}: {error}") from error
    return result._replace(written=written, ranges=joint_ranges(ranges))


class _Control:
    """State shared by the writer processes and their parent."""

    def __init__(self, state: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.checked = context.Value("q", 0)  # patches, over all writers
        self.state = context.RawValue("b", state)

    def count(self) -> None:
        with self.checked.get_lock():
            self.checked.value += 1


_control: _Control


def _start(control: _Control) -> None:
    global _control
    _control = control


def _start_process(control: _Control) -> None:
    _start(control)
    follow_parent()


def _write(shard: Shard, path: str, file_format: str, skip: bool) -> ShardResult:
    return write_shard(
        shard, path, file_format, skip=skip, state=_control.state, count=_control.count
    )


def write_shards(
    shards: Sequence[Shard],
    paths: Sequence[str],
    file_format: str,
    *,
    num_workers: int,
    skip: bool,
    check_only: bool,
    progress: bool,
) -> list[ShardResult]:
    """Writes every shard to its path.

    Args:
      shards: what to write.
      paths: one file for each.
      file_format: one of `FORMATS`.
      num_workers: how many processes write; 1 writes in this one.
      skip: whether to continue writing after a fault. If not, the rest is only checked.
      check_only: whether to write nothing from the start.
      progress: whether to show a progress bar.

    Raises:
      BuildError: if a shard cannot be written or a process dies.
    """
    control = _Control(CHECK_ONLY if check_only else WRITE)
    num_workers = max(1, min(num_workers, len(shards)))
    executor: Executor
    if num_workers == 1:
        executor = ThreadPoolExecutor(1, initializer=_start, initargs=(control,))
    else:
        # Not fork: the caller may hold threads, GDAL or an accelerator.
        context = multiprocessing.get_context("spawn")
        executor = ProcessPoolExecutor(
            num_workers, context, initializer=_start_process, initargs=(control,)
        )
    bar = tqdm.tqdm(
        total=sum(len(shard.patches) for shard in shards),
        unit="patch",
        disable=not progress,
        mininterval=0.2 if sys.stderr.isatty() else 10,
    )
    with executor, bar:
        try:
            # Blocked in the processes too, until they ignore it.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                futures = [
                    executor.submit(_write, shard, path, file_format, skip)
                    for shard, path in zip(shards, paths, strict=True)
                ]
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            pending = set(futures)
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                bar.update(control.checked.value - bar.n)
                for future in done:
                    future.result()
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise BuildError(
                "a process that wrote shards was killed (out of memory?) or could not start;"
                " try with fewer, down to --num_workers=1"
            ) from error
        finally:
            control.state.value = STOP
            with contextlib.suppress(BrokenProcessPool):
                executor.shutdown(wait=True, cancel_futures=True)
