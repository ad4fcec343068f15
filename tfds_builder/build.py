"""Builds FLAIR #1 for training: `python -m tfds_builder.build --source=DIR`."""

import argparse
import contextlib
import fcntl
import logging
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds

from tfds_builder.flags import add_flags
from tfds_builder.flair import flair_dataset_builder as flair
from tfds_builder.flair.faults import BuildError, report

# TFDS names the folder it writes to `incomplete.<6 random characters>_<version>`.
INCOMPLETE = "incomplete.*_{version}"


def build(
    source: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    config: str | None = None,
    *,
    train_csv: str | os.PathLike[str] | None = None,
    val_csv: str | os.PathLike[str] | None = None,
    test_csv: str | os.PathLike[str] | None = None,
    num_workers: int | None = None,
    on_error: str = "fail",
    shard_mb: float = 128,
    beam_runner: str | None = None,
    beam_options: str | None = None,
    progress: bool = True,
) -> pathlib.Path:
    """Builds the data set, unless it is already built.

    Args:
      source: the folder of the download, whose zips may be unopened.
      data_dir: where data sets go; None takes TFDS's own, `~/tensorflow_datasets`.
      config: "published" or "d077"; with lists, any other name, by default "lists".
      train_csv: a list of image and mask paths, as published; takes just these patches.
      val_csv: the same for val.
      test_csv: the same for test.
      num_workers: how many processes write; None takes one for each CPU.
      on_error: "fail", or "skip" to leave faulty patches out and list them in `skipped.csv`.
      shard_mb: the size of a shard's pixels, in MiB.
      beam_runner: writes with this runner of Apache Beam, in place of processes of this machine.
      beam_options: the runner's options, `key=value,...`.
      progress: whether to log to stdout, with a progress bar on stderr.

    Returns:
      The folder of the data set, `<data_dir>/flair/<config>/1.0.0`.

    Raises:
      BuildError: if it cannot be built; no file is left then.
    """
    log = print if progress else _no_log
    if on_error not in ("fail", "skip"):
        raise BuildError(f"on_error is {on_error!r}, neither 'fail' nor 'skip'")
    if not shard_mb > 0 or (num_workers is not None and num_workers < 1):
        raise BuildError("shard_mb must be above 0, and num_workers at least 1")
    for flag, folder in (("source", source), ("data_dir", data_dir)):
        if "://" in str(folder):
            raise BuildError(
                f"{flag} must be a folder of this machine, not {folder}: copy, or mount the bucket"
            )
    beam = _beam(beam_runner, beam_options, num_workers)
    data_dir = pathlib.Path(
        os.path.abspath(os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR))
    )
    builder_config = _config(config, {"train": train_csv, "val": val_csv, "test": test_csv})
    name = builder_config if isinstance(builder_config, str) else builder_config.name
    folder = data_dir / flair.Flair.name / name / str(flair.Flair.VERSION)
    if folder.exists():
        _log_built(log, folder, source)
        return folder

    started = time.monotonic()
    with _quiet(), _interruptible(), _cleanup(folder):
        for note in _remove_incomplete(folder):
            log(note)
        builder = flair.Flair(
            data_dir=data_dir,
            config=builder_config,
            source=source,
            num_workers=num_workers,
            on_error=on_error,
            shard_mb=shard_mb,
            progress=progress,
        )
        log(f"scanning {os.path.abspath(source)}")
        plan = builder.plan()
        log(f"found {_counts(plan.num_patches)} of {_by(plan.patch_size)} pixels")
        for note in plan.notes:
            log(f"note: {note}")
        free = shutil.disk_usage(folder.parent).free
        if plan.nbytes() > free:
            log(f"note: {_size(plan.nbytes())} of pixels, and {_size(free)} free in {data_dir}")
        if beam_runner:
            count = sum(map(len, plan.shards.values()))
            log(f"writing {count:,} shards with Beam's {beam_runner}")
        sys.stdout.flush()
        try:
            # TFDS makes a folder for downloads, of which there are none.
            with tempfile.TemporaryDirectory() as downloads:
                builder.download_and_prepare(
                    download_dir=downloads, file_format="array_record", download_config=beam
                )
        except OSError as error:
            raise BuildError(f"cannot write in {data_dir}: {error}") from error
    _log_done(log, builder, folder, time.monotonic() - started)
    return folder


def _no_log(*_: Any) -> None:
    pass


def _config(name: str | None, lists: dict[str, Any]) -> str | flair.FlairConfig:
    """Returns the name of one of the builder's configurations, or a new one with lists."""
    known = [config.name for config in flair.Flair.BUILDER_CONFIGS]
    given = {
        split: os.path.abspath(os.path.expanduser(path)) for split, path in lists.items() if path
    }
    if not given:
        name = name or known[0]
        if name not in known:
            raise BuildError(
                f"no config {name!r}: there are {', '.join(known)}; or give lists with"
                " --train_csv, --val_csv, --test_csv"
            )
        return name
    name = name or "lists"
    if name in known:
        raise BuildError(
            f"config {name!r} is split by domain; choose another name for the one with lists"
        )
    if not name.replace("_", "").replace("-", "").isalnum():
        raise BuildError(f"config {name!r} names a folder: use letters, digits, _ and -")
    return flair.FlairConfig(
        name=name, lists=given, description="Split by lists given by the user."
    )


def _beam(
    runner: str | None, options: str | None, num_workers: int | None
) -> tfds.download.DownloadConfig:
    """Returns the configuration by which TFDS takes a Beam runner."""
    if not runner:
        if options:
            raise BuildError("beam_options are given, but no beam_runner")
        return tfds.download.DownloadConfig()
    if num_workers is not None:
        raise BuildError(
            "num_workers is for a build without Beam; with DirectRunner, give"
            " --beam_options=direct_num_workers=N,direct_running_mode=multi_processing"
        )
    try:
        from tfds_builder.flair.beam import pipeline_options
    except ModuleNotFoundError as error:
        if error.name != "apache_beam":
            raise
        raise BuildError(
            '--beam_runner needs Apache Beam, which is not installed: pip install -e ".[beam]"'
        ) from error
    return tfds.download.DownloadConfig(
        beam_runner=runner, beam_options=pipeline_options(runner, options)
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the log lines of TFDS off the console."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Makes SIGTERM end a build as Ctrl-C does, so that it cleans up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _cleanup(folder: pathlib.Path) -> Iterator[None]:
    """Makes the folder's parents; on failure removes those that it made."""
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(folder.parent, os.W_OK | os.X_OK):
            raise PermissionError("no permission")
    except OSError as error:
        reason = error.strerror or error
        raise BuildError(
            f"cannot write in {folder.parent}: {reason}; give another --data_dir"
        ) from error
    try:
        yield
    except BaseException:
        for parent in made:
            if [path.name for path in parent.iterdir()] == [".config"]:  # written by TFDS
                shutil.rmtree(parent / ".config")
            with contextlib.suppress(OSError):  # not empty: another build is there
                parent.rmdir()
        raise


def _remove_incomplete(folder: pathlib.Path) -> list[str]:
    """Removes the incomplete folders of killed builds; returns a message for each.

    Raises:
      BuildError: if another process is building the same data set.
    """
    notes = []
    for incomplete in sorted(folder.parent.glob(INCOMPLETE.format(version=folder.name))):
        size = _size(sum(path.stat().st_size for path in incomplete.rglob("*") if path.is_file()))
        try:
            with open(incomplete / flair.LOCK) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BuildError(
                f"another process is building this data set, in {incomplete}"
            ) from None
        except OSError:
            notes.append(
                f"note: an unfinished build of {size} is in {incomplete}; remove it if unused"
            )
            continue
        shutil.rmtree(incomplete)
        notes.append(f"removed {size} left by a killed build in {incomplete}")
    return notes


def _log_built(log: Any, folder: pathlib.Path, source: str | os.PathLike[str]) -> None:
    try:
        info = tfds.builder_from_directory(folder).info
    except Exception as error:
        raise BuildError(
            f"{folder} exists, but is not a data set that TFDS can read: remove it"
        ) from error
    counts = {name: split.num_examples for name, split in info.splits.items()}
    log(f"already built in {folder}: {_counts(counts)}. Nothing was done.")
    built_from = (info.metadata or {}).get("source")
    if built_from and built_from != os.path.abspath(source):
        log(f"It was built from {built_from}. Remove it to build it anew.")


def _log_done(log: Any, builder: flair.Flair, folder: pathlib.Path, seconds: float) -> None:
    splits = builder.info.splits
    shards = ", ".join(f"{split.num_shards} {name}" for name, split in splits.items())
    log(f"built {folder}")
    log(f"  patches: {_counts(builder.info.metadata['num_patches'])}")
    log(f"  shards:  {shards}, {_size(builder.info.dataset_size)}, in {seconds:.0f} s")
    if builder.faults:
        log(f"  left out for {len(builder.faults):,} faults, listed in {folder / flair.SKIPPED}:")
        log(report(builder.faults))
    name = folder.parent.name
    config = "" if name == "published" else f" --config.data_config={name}"
    log("train with:")
    log(f"  flair-jax train --config=baseline --config.data_dir={folder.parents[2]}{config}")


def _counts(num_patches: Any) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in num_patches.items()) + " patches"


def _by(size: tuple[int, int] | None) -> str:
    return f"{size[0]} x {size[1]}" if size else "unreadable"


def _size(nbytes: float) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tfds_builder.build", description=__doc__)
    add_flags(parser)
    return run(parser.parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """Builds as the flags ask; returns the exit status."""
    try:
        build(**vars(args))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
