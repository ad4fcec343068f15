"""Builds FLAIR, FLAIR-HUB or a user's own images for training: `python -m tfds_builder.build`."""

import argparse
import contextlib
import fcntl
import functools
import logging
import os
import pathlib
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds

from tfds_builder.flags import OF_FLAIR, OF_HUB, OF_OWN, SHARD_MB, add_flags
from tfds_builder.flair import fingerprint
from tfds_builder.flair import flair_dataset_builder as flair
from tfds_builder.flair.built import open_built
from tfds_builder.flair.faults import BuildError, printable, report
from tfds_builder.flair.patch_builder import SKIPPED, PatchBuilder, Plan
from tfds_builder.flair.patches import by
from tfds_builder.flair.reference import NAME, NAME_2
from tfds_builder.flair.shards import check_format
from tfds_builder.hub import reference as hub_reference
from tfds_builder.hub.hub_dataset_builder import FlairHub, HubSource
from tfds_builder.own.own_dataset_builder import OwnData, OwnSource

DIFFERENCES_SHOWN = 8
STRIDE = 32  # of the network: the sides of its images are multiples
HUB = FlairHub.BUILDER_CONFIGS[0].name
# By name of the data set: the configuration to train with, its data_config, its batch size.
RECIPES = {
    NAME: ("baseline", flair.Flair.BUILDER_CONFIGS[0].name, 10),
    NAME_2: ("baseline", flair.Flair.BUILDER_CONFIGS[0].name, 10),
    hub_reference.NAME: ("hub", HUB, 5),
}
OWN_RECIPE = ("own_data", "", 10)
Log = Callable[[str], None]


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
    shard_mb: float = SHARD_MB,
    shuffle: bool = False,
    split: str | None = None,
    flair1_metadata: str | os.PathLike[str] | None = None,
    file_format: str = "array_record",
    overwrite: bool = False,
    beam_runner: str | None = None,
    beam_options: str | None = None,
    progress: bool = True,
) -> pathlib.Path:
    """Builds the data set, unless it is already built from this source with these options.

    Args:
      source: the folder of the download, whose zips may be unopened.
      data_dir: where data sets go; None takes TFDS's own, `~/tensorflow_datasets`.
      config: "published" or "d077"; with lists, any other name, by default "lists"; "flair2", with
        the test split of FLAIR #2; or "hub", FLAIR-HUB.
      train_csv: a list of image and mask paths, as published; takes just these patches. Of
        FLAIR-HUB a list with a header and a column `patch_id`, in place of that in the source.
      val_csv: the same for val.
      test_csv: the same for test.
      num_workers: how many processes write; None takes one for each CPU.
      on_error: "fail", or "skip" to leave faulty patches out and list them in `skipped.csv`.
      shard_mb: the size of a shard's pixels, in MiB.
      shuffle: whether patches are stored in a random order, always the same, so that a part such
        as `train[:10%]` is from all domains; without it, in the order of their domains.
      split: of FLAIR-HUB: "hub" (None), by its lists; or "flair1", FLAIR #1's own patches.
      flair1_metadata: FLAIR #1's metadata, for "flair1", by which its patches are found.
      file_format: one of TFDS's; training reads array_record.
      overwrite: whether to replace a data set that is already built, once the new one is complete.
      beam_runner: writes with this runner of Apache Beam, in place of processes of this machine.
      beam_options: the runner's options, `key=value,...`.
      progress: whether to log to stdout, with a progress bar on stderr.

    Returns:
      The folder of the data set, `<data_dir>/flair/<config>/1.1.0`, or
      `<data_dir>/flair_hub/hub/1.0.0`.

    Raises:
      BuildError: if it cannot be built, or is built from another source or with other options;
        files are as before then.
    """
    if "://" in str(source):
        raise BuildError(
            f"source must be a folder of this machine, not {source}: copy, or mount the bucket"
        )
    lists = {
        name: os.path.abspath(os.path.expanduser(path))
        for name, path in (("train", train_csv), ("val", val_csv), ("test", test_csv))
        if path
    }
    common: dict[str, Any] = {
        "data_dir": data_dir, "num_workers": num_workers, "on_error": on_error,
        "shard_mb": shard_mb, "file_format": file_format, "overwrite": overwrite,
        "beam": _beam(beam_runner, beam_options, num_workers), "progress": progress,
    }  # fmt: skip
    root = os.path.abspath(source)
    if config == HUB:
        hub = HubSource(
            root, lists, split or "hub",
            os.path.abspath(os.path.expanduser(flair1_metadata)) if flair1_metadata else None,
            shuffle,
        )  # fmt: skip
        _check_hub(hub)
        subfolder = f"{FlairHub.name}/{HUB}/{FlairHub.VERSION}"
        return _build(functools.partial(FlairHub, config=HUB), subfolder, hub, root, **common)
    for flag, value in (("split", split), ("flair1_metadata", flair1_metadata)):
        if value:
            raise BuildError(f"--{flag} is for FLAIR-HUB, --config={HUB}")
    builder_config = _config(config, lists)
    name = builder_config if isinstance(builder_config, str) else builder_config.name
    make_builder = functools.partial(flair.Flair, config=builder_config, shuffle=shuffle)
    return _build(
        make_builder, f"{flair.Flair.name}/{name}/{flair.Flair.VERSION}", root, root, **common
    )


def build_own(
    name: str,
    *,
    images: str | os.PathLike[str] | None = None,
    masks: str | os.PathLike[str] | None = None,
    pairs: str | os.PathLike[str] | None = None,
    classes: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    num_workers: int | None = None,
    on_error: str = "fail",
    shard_mb: float = SHARD_MB,
    file_format: str = "array_record",
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> pathlib.Path:
    """Builds a data set of a user's own images, unless it is already built so.

    Args:
      name: of the data set.
      images: folder of images, or folders with wildcards.
      masks: the same for the masks; None if there are none, to predict only.
      pairs: a CSV file in place of both.
      classes: a CSV file that names values or colours of the masks.
      data_dir, num_workers, on_error, shard_mb, file_format, overwrite, progress: see `build`.
      options: the other fields of `OwnSource`.

    Returns:
      The folder of the data set, `<data_dir>/own_data/<name>/1.0.0`.

    Raises:
      BuildError: if it cannot be built; files are as before then.
    """
    paths: dict[str, Any] = {
        key: os.path.abspath(os.path.expanduser(path))
        for key, path in (
            ("images", images), ("masks", masks), ("pairs", pairs), ("classes", classes),
        )
        if path
    }  # fmt: skip
    source = OwnSource(**paths, **options)
    _check_own(source, name)
    where = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    if (where / flair.Flair.name / name).exists():
        raise BuildError(f"{where / flair.Flair.name / name} has this name: give another --name")
    config = tfds.core.BuilderConfig(name=name, description="Images of a user.")
    return _build(
        functools.partial(OwnData, config=config), f"{OwnData.name}/{name}/{OwnData.VERSION}",
        source, source.pairs or source.images or "", data_dir=data_dir, num_workers=num_workers,
        on_error=on_error, shard_mb=shard_mb, file_format=file_format, overwrite=overwrite,
        beam=tfds.download.DownloadConfig(), progress=progress,
    )  # fmt: skip


def _check_hub(source: HubSource) -> None:
    """Raises a BuildError for options that contradict each other."""
    if source.split not in ("hub", "flair1"):
        raise BuildError(f"split is {source.split!r}; expected hub or flair1")
    if source.split == "hub" and source.flair1_metadata:
        raise BuildError("--flair1_metadata is for --split=flair1")
    if source.split == "flair1" and not source.flair1_metadata:
        raise BuildError(
            "--split=flair1 finds FLAIR #1's patches by their position: give"
            " --flair1_metadata=flair-1_metadata_aerial.json, or the zip of it"
        )
    if source.split == "flair1" and source.lists:
        raise BuildError(
            f"--split=flair1 is split as FLAIR #1: leave --{min(source.lists)}_csv out"
        )


def _check_own(source: OwnSource, name: str) -> None:
    """Raises a BuildError for options that contradict each other."""
    taken = (
        *(config.name for config in flair.Flair.BUILDER_CONFIGS), HUB,
        "baseline", "full", "cosia", "data",
    )  # fmt: skip
    if not name.replace("_", "").replace("-", "").isalnum() or name in taken:
        raise BuildError(
            f"--name={name} names a folder and a set of classes: use letters, digits, _ and -, but"
            f" none of {', '.join(taken)}"
        )
    if bool(source.pairs) == bool(source.images) or (source.pairs and source.masks):
        raise BuildError("give either --images=DIR and --masks=DIR, or --pairs=pairs.csv")
    side = source.patch_size
    if side < 2 * STRIDE or side % STRIDE:
        near = max(2 * STRIDE, round(side / STRIDE) * STRIDE)
        raise BuildError(
            f"--patch_size={side} is no multiple of {STRIDE} from {2 * STRIDE}, as the network"
            f" needs: {near}, for example"
        )
    if not 0 <= source.overlap < side:
        raise BuildError(f"--overlap={source.overlap}: expected 0 to {side - 1}")
    if source.block_size is not None and not (
        0 < source.block_size < float("inf") and source.split_by == "blocks"
    ):
        raise BuildError("--block_size is more than 0, and goes with --split_by=blocks")
    for low, high in source.stretch:
        if not -float("inf") < low < high < float("inf"):
            raise BuildError(f"--stretch={low:g},{high:g}: expected a lower and a higher value")
    stored = [band for band in source.bands if band != "-"]
    if any(not band.strip() for band in stored) or len(set(stored)) < len(stored):
        raise BuildError(f"--bands={','.join(source.bands)}: expected names, each once")
    shares = (source.val_share, source.test_share)
    if min(shares) < 0 or sum(shares) >= 1:
        raise BuildError("--val_share and --test_share are shares from 0, less than 1 together")
    for key, values in (("unlisted", ("error", "ignore")), ("remainder", ("pad", "drop")),
                        ("masks_by", ("auto", "values", "colours"))):  # fmt: skip
        if getattr(source, key) not in values:
            raise BuildError(f"{key} is {getattr(source, key)!r}; expected {' or '.join(values)}")


def _build(
    make_builder: Callable[..., PatchBuilder],
    subfolder: str,
    source: Any,
    source_name: str,
    *,
    data_dir: str | os.PathLike[str] | None,
    num_workers: int | None,
    on_error: str,
    shard_mb: float,
    file_format: str,
    overwrite: bool,
    beam: tfds.download.DownloadConfig,
    progress: bool,
) -> pathlib.Path:
    """Builds a data set, see `build`.

    Args:
      make_builder: makes its builder, given the options of `PatchBuilder`.
      subfolder: of the data set in `data_dir`: builder, configuration and version.
      source: what the builder takes.
      source_name: the source in words.
      data_dir, num_workers, on_error, shard_mb, file_format, overwrite, progress: see `build`.
      beam: of the runner of Apache Beam, if there is one.
    """
    log = _print if progress else _no_log
    if on_error not in ("fail", "skip"):
        raise BuildError(f"on_error is {on_error!r}, neither 'fail' nor 'skip'")
    if not 0 < shard_mb < float("inf") or (num_workers is not None and num_workers < 1):
        raise BuildError("shard_mb must be above 0, and num_workers at least 1")
    if "://" in str(data_dir):
        raise BuildError(
            f"data_dir must be a folder of this machine, not {data_dir}: copy, or mount the bucket"
        )
    check_format(file_format)
    data_dir = pathlib.Path(
        os.path.abspath(os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR))
    )
    if printable(str(data_dir)) != str(data_dir):
        raise BuildError(f"data_dir must have a name in UTF-8: {data_dir}")
    folder = data_dir / subfolder
    started = time.monotonic()
    with _quiet(), _interruptible(), _parents(folder), _locked(folder):
        incomplete = _incomplete(folder, log)
        builder = make_builder(
            data_dir=incomplete, file_format=file_format, source=source, num_workers=num_workers,
            on_error=on_error, shard_mb=shard_mb, progress=progress,
        )  # fmt: skip
        log(f"scanning {source_name}")
        plan = builder.plan(source)
        size = by(plan.format.size) if plan.format.size else "unreadable"
        log(f"found {_counts(plan.num_patches())} of {size} pixels")
        for note in plan.notes:
            log(f"note: {note}")
        if folder.exists() and not overwrite:
            _check_built(folder, plan, on_error, log)
            return folder
        try:
            if beam.beam_runner:
                log(f"writing shards with Beam's {beam.beam_runner}")
            sys.stdout.flush()
            # TFDS makes a folder for downloads, of which there are none.
            with tempfile.TemporaryDirectory() as downloads:
                builder.download_and_prepare(download_dir=downloads, download_config=beam)
            _replace(folder, pathlib.Path(builder.data_dir))
            # Names the default configuration, for `tfds.load` without this package.
            named = data_dir / builder.name / ".config"
            made = incomplete / builder.name / ".config"
            if made.exists() and not named.exists():
                made.rename(named)
        except OSError as error:
            raise BuildError(f"cannot write in {data_dir}: {error}") from error
        finally:
            shutil.rmtree(incomplete, ignore_errors=True)
    _log_done(log, builder, folder, time.monotonic() - started)
    return folder


def _print(line: str) -> None:
    print(printable(line))


def _no_log(line: str) -> None:
    pass


def _config(name: str | None, lists: dict[str, str]) -> str | flair.FlairConfig:
    """Returns the name of one of the builder's configurations, or a new one with lists."""
    known = [config.name for config in flair.Flair.BUILDER_CONFIGS]
    if not lists:
        name = name or known[0]
        if name not in known:
            raise BuildError(
                f"no config {name!r}: there are {', '.join((*known, HUB))}; or give lists with"
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
        name=name, lists=lists, description="Split by lists given by the user."
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
    """Keeps the log lines and warnings of TFDS off the console: errors are raised."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
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
def _parents(folder: pathlib.Path) -> Iterator[None]:
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
            with contextlib.suppress(OSError):  # not empty: another build is there
                parent.rmdir()
        raise


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a data set; the system releases it when this process dies.

    Raises:
      BuildError: if another process is building the same data set.
    """
    path = folder.parent / f".{folder.name}.lock"
    while True:
        with open(path, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BuildError(
                    f"another process is building this data set: it holds {path}"
                ) from None
            except OSError as error:
                raise BuildError(
                    f"cannot lock {path}: {error}; build on another disk, and copy {folder}"
                ) from error
            try:
                # The process that held it may have removed it since it was opened here.
                if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    continue
            except FileNotFoundError:
                continue
            try:
                yield
            finally:
                path.unlink()
            return


def _incomplete(folder: pathlib.Path, log: Log) -> pathlib.Path:
    """Returns the path to build in, without what a build that was killed left there."""
    incomplete = folder.parent / f".{folder.name}.incomplete"
    replaced = _replaced(folder)
    if replaced.exists():
        if folder.exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(folder)
    if incomplete.exists():
        nbytes = sum(path.stat().st_size for path in incomplete.rglob("*") if path.is_file())
        shutil.rmtree(incomplete)
        log(f"removed {_size(nbytes)} left by a killed build in {incomplete}")
    return incomplete


def _replaced(folder: pathlib.Path) -> pathlib.Path:
    return folder.parent / f".{folder.name}.replaced"


def _replace(folder: pathlib.Path, built: pathlib.Path) -> None:
    """Moves a new data set to its folder, in place of an old one if there is one."""
    replaced = _replaced(folder)
    if folder.exists():
        folder.rename(replaced)
    try:
        built.rename(folder)
    except BaseException:
        if replaced.exists():
            replaced.rename(folder)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _check_built(folder: pathlib.Path, plan: Plan, on_error: str, log: Log) -> None:
    """Raises a BuildError unless a data set is built from this source with these options."""
    try:
        built = open_built(folder)
        lines = [message for split in built.num_patches for message in built.damage(split)]
    except BuildError as error:
        lines = [str(error)]
    if lines:
        problem = "but it is damaged"
    elif built.fingerprint is None:
        problem, lines = "but not from what", [f"it has no {fingerprint.FILE}"]
    else:
        problem = "but not from this source with these options"
        lines = fingerprint.differences(built.fingerprint, plan.options, plan.splits)
        skipped = sum(map(len, built.fingerprint.skipped.values()))
        if skipped and on_error == "fail":
            lines.append(f"{skipped:,} faulty patches were left out, see {SKIPPED}")
    if not lines:
        log(f"already built in {folder}: {_counts(built.num_patches)}. Nothing was done.")
        return
    shown = "".join(f"\n  {line}" for line in lines[:DIFFERENCES_SHOWN])
    if len(lines) > DIFFERENCES_SHOWN:
        shown += f"\n  ... and {len(lines) - DIFFERENCES_SHOWN:,} more"
    raise BuildError(
        f"{folder} is already built, {problem}:{shown}\n"
        "build it anew with --overwrite, or give another --data_dir"
    )


def _log_done(log: Log, builder: PatchBuilder, folder: pathlib.Path, seconds: float) -> None:
    splits = builder.info.splits
    shards = ", ".join(f"{split.num_shards} {name}" for name, split in splits.items())
    log(f"built {folder}")
    log(f"  patches: {_counts(builder.info.metadata['num_patches'])}")
    log(f"  shards:  {shards}, {_size(builder.info.dataset_size)}, in {seconds:.0f} s")
    if builder.faults:
        log(f"  left out for {len(builder.faults):,} faults, listed in {folder / SKIPPED}:")
        log(report(builder.faults))
    if builder.warnings:
        log(f"  {len(builder.warnings):,} warnings; these patches were stored:")
        log(report(builder.warnings))
    metadata = builder.info.metadata
    if constant := metadata["constant_bands"]:
        log(
            f"  warning: constant in all patches, so that nothing can be learnt from it:"
            f" {', '.join(constant)}; leave it out with --config.bands=..."
        )
    for line in _next_step(builder.info, folder):
        log(line)


def _next_step(info: tfds.core.DatasetInfo, folder: pathlib.Path) -> Iterator[str]:
    """Yields how to train on a data set, or why that is not possible."""
    if info.file_format.value != "array_record":
        yield f"training reads array_record files, and these are {info.file_format.value}"
        return
    counts, size = info.metadata["num_patches"], info.metadata["patch_size"]
    if missing := [split for split in ("train", "val") if split not in counts]:
        yield f"it has no patches of {' and '.join(missing)}: it can be predicted, not trained on"
        return
    if any(side % STRIDE for side in size):
        yield f"{by(size)} pixels are no multiple of {STRIDE}: no model can be trained on them"
        return
    if info.metadata["synthetic"]:
        yield "these data are synthetic: a model of them says so, and is of no use on real images"
    recipe, data_config, batch_size = RECIPES.get(info.metadata["name"], OWN_RECIPE)
    flags = {
        "config": recipe,
        "config.data_dir": str(folder.parents[2]),
        "config.data_config": folder.parent.name,
        "config.batch_size": str(counts["train"]),
    }
    if folder.parent.name == data_config:
        del flags["config.data_config"]
    if counts["train"] >= batch_size:
        del flags["config.batch_size"]
    yield "train with:"
    yield "  flair-jax train " + " ".join(f"--{k}={shlex.quote(v)}" for k, v in flags.items())


def _counts(num_patches: Any) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in num_patches.items()) + " patches"


def _size(nbytes: float) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tfds_builder.build", description=__doc__)
    add_flags(parser)
    return run(parser.parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """Builds as the flags ask; returns the exit status."""
    flags = vars(args)
    own = {name: flags.pop(name) for name in OF_OWN}
    own = {name: value for name, value in own.items() if value is not None}
    try:
        if not own:
            if not args.source:
                raise BuildError(
                    "give --source=DIR, a download of FLAIR, or --images=DIR --masks=DIR"
                    " --classes=classes.csv --name=NAME, your own images"
                )
            build(**flags)
            return 0
        if both := [name for name in (*OF_FLAIR, *OF_HUB) if flags.pop(name)]:
            raise BuildError(f"--{both[0]} is for FLAIR, and --{min(own)} for your own images")
        if "name" not in own:
            raise BuildError("your own images need a --name=NAME for the data set")
        build_own(**_parsed(own), **flags)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was kept", file=sys.stderr)
        return 130
    return 0


def _parsed(own: dict[str, Any]) -> dict[str, Any]:
    """Returns the flags of own images as the values that `build_own` takes."""
    parsed = dict(own)
    for name in ("bands", "val_groups", "test_groups"):
        if name in own:
            parsed[name] = tuple(part.strip() for part in own[name].split(","))
    if "stretch" in own:
        parsed["stretch"] = tuple(own["stretch"])
    return parsed


if __name__ == "__main__":
    sys.exit(main())
