"""Writes the shards of a data set on an Apache Beam runner, one shard an element."""

import contextlib
import csv
import ctypes
import difflib
import io
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import pickle
import signal
import socket
import sys
import threading
import zlib
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import tensorflow_datasets as tfds
import tqdm
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.runners.runner import create_runner

from tfds_builder.flair.faults import BuildError, Fault
from tfds_builder.flair.shards import CHECK_ONLY, WRITE, Shard, ShardResult, write_shard

# Beside the shards while they are written: a pipeline returns nothing itself.
RESULTS = "results.json"
STOP_SECONDS = 30  # for a cluster to cancel a job


def pipeline_options(runner: str, text: str | None = None) -> PipelineOptions:
    """Checks a runner's name and its options; Beam itself drops those that it does not know.

    Args:
      runner: a name that Beam knows (`DirectRunner`, or `direct`), or a class with its modules.
      text: `key=value,flag,...`; one with a comma in it in double quotes, `"key=a,b"`.

    Raises:
      BuildError: for an unknown runner or option, or a value of the wrong kind.
    """
    try:
        portable = isinstance(create_runner(runner), PortableRunner)
    except ImportError as error:
        raise BuildError(f"--beam_runner={runner} cannot be loaded: {error}") from error
    except (AttributeError, ValueError) as error:
        known = ", ".join(StandardOptions.KNOWN_RUNNER_NAMES)
        raise BuildError(
            f"no Beam runner {runner!r}: there are {known}, and any class as module.Class"
        ) from error
    flags = [f"--{flag.strip().lstrip('-')}" for flag in next(csv.reader([text or ""]), [])]
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            options = PipelineOptions(flags)
            known_options = options.get_all_options()
            unknown = options.get_all_options(retain_unknown_options=True).keys() - known_options
    except SystemExit as error:  # argparse's way, after all the usage
        raise BuildError(f"--beam_options: {stderr.getvalue().split('error: ')[-1]}") from error
    for name in sorted(unknown):
        near = difflib.get_close_matches(name, known_options, 1, 0.8)
        # The job servers of Spark and Flink know options that the Python part of Beam does not.
        if near or not portable:
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise BuildError(f"--beam_options: Beam has no option {name!r}{hint}")
    if known_options["runner"]:
        raise BuildError("--beam_options: give the runner as --beam_runner")
    options.view_as(StandardOptions).runner = runner
    return options


def write_shards_with_beam(
    shards: Sequence[Shard],
    paths: Sequence[str],
    file_format: str,
    *,
    runner: Any,
    options: PipelineOptions | None,
    source: str,
    skip: bool,
    check_only: bool,
    progress: bool,
) -> list[ShardResult]:
    """Writes every shard to its path, in folders that all workers see.

    Args:
      shards: what to write.
      paths: one file for each, all in one folder.
      file_format: one of `shards.FORMATS`.
      runner: a Beam runner or the name of one; None takes that of the options.
      options: its options.
      source: the folder that the patches are in.
      skip: whether to continue writing after a fault; if not, the rest is only checked.
      check_only: whether to write nothing from the start.
      progress: whether to show a progress bar.

    Raises:
      BuildError: if the pipeline fails.
    """
    folder = pathlib.Path(paths[0]).parent
    # Compressed: some services accept jobs of at most 20 MB, and all of FLAIR #1 would be 30.
    elements = [
        zlib.compress(pickle.dumps(element))
        for element in zip(
            range(len(shards)),
            shards,
            paths,
            itertools.repeat(file_format, len(shards)),
            strict=True,
        )
    ]
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    # A separate process: interrupted runners may hang, and leave processes and threads running.
    process = context.Process(
        target=_run,
        args=(sender, elements, str(folder / RESULTS), runner, options, source, skip, check_only),
    )
    names = {os.path.basename(path) for path in paths}
    bar = tqdm.tqdm(
        total=len(paths),
        unit="shard",
        disable=not progress,
        mininterval=0.2 if sys.stderr.isatty() else 10,
    )
    with bar:
        # Blocked in that process too: only this one handles Ctrl-C.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        sender.close()
        try:
            while not receiver.poll(1):
                bar.update(len(names.intersection(os.listdir(folder))) - bar.n)
            failure = receiver.recv()
            bar.update(len(names.intersection(os.listdir(folder))) - bar.n)
        except EOFError:
            failure = "its process was killed (out of memory?)"
        except BaseException:
            process.terminate()
            raise
        finally:
            process.join(STOP_SECONDS)
            if process.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    if failure:
        raise BuildError(f"the Beam pipeline failed: {failure}")
    try:
        saved = json.loads((folder / RESULTS).read_text())
    except OSError as error:
        raise BuildError(
            f"the Beam pipeline ended, but its workers wrote nothing to {folder}: --data_dir must"
            " be a folder that they share with this machine"
        ) from error
    (folder / RESULTS).unlink()
    return [
        ShardResult(
            written,
            [Fault(*fault) for fault in faults],
            [Fault(*warning) for warning in warnings],
            [tuple(of_patch) for of_patch in crcs],
            skipped,
            [(low, high) for low, high in ranges],
        )
        for _, written, faults, warnings, crcs, skipped, ranges in sorted(saved)
    ]


def _run(
    sender: multiprocessing.connection.Connection,
    elements: list[bytes],
    results: str,
    runner: Any,
    options: PipelineOptions | None,
    source: str,
    skip: bool,
    check_only: bool,
) -> None:
    """Runs the pipeline, in a separate process; sends the error message, or an empty one."""
    os.setsid()  # one group with all that the runner starts
    result: Any = None

    def stop(*_: Any) -> None:
        with contextlib.suppress(Exception):  # or a cluster would continue the job
            if result is not None:
                result.cancel()
        os.killpg(0, signal.SIGKILL)

    def stop_with_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            stop()

    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=stop_with_parent, daemon=True).start()
    try:
        pipeline = beam.Pipeline(runner=runner, options=options)
        (
            pipeline
            | "Shards" >> beam.Create(elements)  # each goes to whichever worker is free
            | "Write" >> beam.Map(_write, source=source, skip=skip, check_only=check_only)
            | "Collect" >> beam.CombineGlobally(beam.combiners.ToListCombineFn())
            | "Results" >> beam.Map(_save, path=results)
        )
        result = pipeline.run()
        result.wait_until_finish()
        result = None
    except Exception as error:
        sender.send(_last_line(error))
    else:
        sender.send("")


def _write(element: bytes, source: str, skip: bool, check_only: bool) -> list[Any]:
    """Writes a shard on a worker; returns its index and its result, as JSON can hold them."""
    index: int
    shard: Shard
    index, shard, path, file_format = pickle.loads(zlib.decompress(element))
    for flag, folder in (("source", source), ("data_dir", os.path.dirname(path))):
        if not os.path.isdir(folder):
            raise BuildError(
                f"the worker on {socket.gethostname()} has no folder {folder}: --{flag} must be a"
                " folder that all workers share with this machine"
            )
    state = ctypes.c_byte(CHECK_ONLY if check_only else WRITE)
    # A runner may have a shard written twice, even at the same time.
    with tfds.core.utils.incomplete_file(tfds.core.Path(path)) as incomplete:
        result = write_shard(shard, str(incomplete), file_format, skip=skip, state=state)
    return [index, *result]


def _save(results: list[list[Any]], path: str) -> None:
    with tfds.core.utils.incomplete_file(tfds.core.Path(path)) as incomplete:
        incomplete.write_text(json.dumps(results))


def _last_line(error: Exception) -> str:
    """Returns the last line of a message that may contain a worker's whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)
