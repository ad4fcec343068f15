"""Writes the shards of a data set, several at a time, each straight to its file."""

import contextlib
import ctypes
import dataclasses
import itertools
import math
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool

import tqdm
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core import example_serializer

from tfds_builder.flair.faults import BuildError, Fault
from tfds_builder.flair.patches import BANDS, Size, features, gdal, read_patch
from tfds_builder.flair.source import Patch
from tfds_builder.flair.workers import follow_parent

WRITE, CHECK_ONLY, STOP = range(3)
# TFDS would compress: aerial images shrink by a quarter at most, and are read at half the speed.
FORMAT = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True)
class Shard:
    """The patches of one shard, and the size that they have."""

    patches: tuple[Patch, ...]
    size: Size | None


def cut(patches: Sequence[Patch], size: Size | None, shard_mb: float) -> list[Shard]:
    """Divides a split into shards of about `shard_mb` MiB of pixels, in order, of even length."""
    rows, columns = size or (512, 512)
    total = len(patches) * rows * columns * (BANDS + 1)
    count = min(len(patches), max(1, math.ceil(total / (shard_mb * 2**20))))
    ends = [len(patches) * i // count for i in range(count + 1)]
    return [Shard(tuple(patches[a:b]), size) for a, b in itertools.pairwise(ends)]


def write_shard(
    shard: Shard,
    path: str,
    *,
    skip: bool,
    state: ctypes.c_byte,
    count: Callable[[], None] = lambda: None,
) -> tuple[int, list[Fault]]:
    """Writes one shard.

    Args:
      shard: what to write.
      path: its file.
      skip: whether to continue writing after a fault.
      state: holds WRITE, CHECK_ONLY or STOP; set to CHECK_ONLY at a fault, unless `skip`.
      count: called after every patch that was checked.

    Returns:
      The number of examples written, and the faults of the patches.

    Raises:
      BuildError: if the file cannot be written.
    """
    serializer = example_serializer.ExampleSerializer(features().get_serialized_info())
    encode = features().encode_example
    faults: list[Fault] = []
    written = 0

    def examples() -> Iterator[bytes]:
        nonlocal written
        for patch in shard.patches:
            example, of_patch = read_patch(patch, shard.size)
            count()
            faults.extend(of_patch)
            if state.value == STOP:
                return
            if of_patch and not skip:
                state.value = CHECK_ONLY
            if example is not None and state.value == WRITE:
                record = serializer.get_tf_example(encode(example))
                # Or else the order of the fields, and so the file, would differ from run to run.
                yield record.SerializeToString(deterministic=True)
                written += 1

    try:
        with gdal():
            writer = ArrayRecordWriter(path, FORMAT)
            for record in examples():
                writer.write(record)
            writer.close()
    except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError when a disk is full
        raise BuildError(f"cannot write {path}: {error}") from error
    return written, faults


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


def _write(shard: Shard, path: str, skip: bool) -> tuple[int, list[Fault]]:
    return write_shard(shard, path, skip=skip, state=_control.state, count=_control.count)


def write_shards(
    shards: Sequence[Shard],
    paths: Sequence[str],
    *,
    num_workers: int,
    skip: bool,
    check_only: bool,
    progress: bool,
) -> list[tuple[int, list[Fault]]]:
    """Writes every shard to its path.

    Args:
      shards: what to write.
      paths: one file for each.
      num_workers: how many processes write; 1 writes in this one.
      skip: whether to continue writing after a fault. If not, the rest is only checked.
      check_only: whether to write nothing from the start.
      progress: whether to show a progress bar.

    Returns:
      For each shard the number of examples written, and the faults of its patches.

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
                    executor.submit(_write, shard, path, skip)
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
