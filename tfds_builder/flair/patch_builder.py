"""A TFDS builder of patches that are read from files: what FLAIR's and users' own share."""

import abc
import dataclasses
import itertools
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_builder

from tfds_builder.flags import SHARD_MB
from tfds_builder.flair import fingerprint as fingerprint_lib
from tfds_builder.flair.faults import BuildError, Fault, relative, report, write_skipped
from tfds_builder.flair.selection import Patch
from tfds_builder.flair.shards import (
    PatchFormat,
    Shard,
    ShardResult,
    check_format,
    cut,
    files_bytes,
    joint_ranges,
    write_shards,
)
from tfds_builder.flair.workers import available_cpus

SKIPPED = "skipped.csv"
PATCHES_OF_A_WORKER = 32  # at least: a process takes seconds to start


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of a build.

    Attributes:
      folders: that of the source, and those of lists.
      splits: the patches of each split, in the order in which they are stored.
      faults: those that are known before patches are read.
      notes: what the user should know of the source.
      format: how the patches are read and stored.
      options: of the build, see `fingerprint.Fingerprint`.
      facts: what metadata.json states of the data set, besides counts.
      files: lists that are stored beside the shards, by name.
    """

    folders: Sequence[str]
    splits: Mapping[str, Sequence[Patch]]
    faults: Sequence[Fault]
    notes: Sequence[str]
    format: PatchFormat
    options: Mapping[str, Any]
    facts: Mapping[str, Any]
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def num_patches(self) -> dict[str, int]:
        """Returns the number of patches by split."""
        return {split: len(patches) for split, patches in self.splits.items()}

    def nbytes(self) -> int:
        """Returns about the size of the data set on disk, rather too much than too little."""
        return sum(
            files_bytes(len(patches), self.format, self.options["shard_mb"])
            for patches in self.splits.values()
        )


class PatchBuilder(dataset_builder.FileReaderBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Checks patches and writes them in shards, with a fingerprint of their source."""

    def __init__(
        self,
        *,
        source: Any = None,
        num_workers: int | None = None,
        on_error: str = "fail",
        shard_mb: float = SHARD_MB,
        progress: bool = True,
        **kwargs: Any,
    ) -> None:
        """Takes TFDS's `data_dir`, `config`, `version`, `file_format`, and options of the build.

        Args:
          source: where the patches are, see `plan`.
          num_workers: how many processes write; None takes one for each CPU, but fewer for few
            patches.
          on_error: "fail", or "skip" to leave faulty patches out and list them in `skipped.csv`.
          shard_mb: the size of a shard's pixels, in MiB.
          progress: whether to show a progress bar.
          **kwargs: `data_dir`, `config`, `version`, `file_format`.
        """
        self._source = source
        self._num_workers = num_workers
        self._skip = on_error == "skip"
        self._shard_mb = shard_mb
        self._progress = progress
        self._plan: Plan | None = None
        self.faults: list[Fault] = []  # of the patches that a build left out
        self.warnings: list[Fault] = []  # of patches that it stored
        super().__init__(**kwargs)
        self._original_state.update(  # what TFDS pickles
            source=source,
            num_workers=num_workers,
            on_error=on_error,
            shard_mb=shard_mb,
            progress=progress,
        )

    def plan(self, source: Any) -> Plan:
        """Scans a source, without reading patches; the result is kept for the build.

        Args:
          source: where the patches are.

        Raises:
          BuildError: if there is nothing to build from.
        """
        if self._plan is None:
            self._plan = self._make_plan(source)
        return self._plan

    @abc.abstractmethod
    def _make_plan(self, source: Any) -> Plan:
        """Scans a source."""

    def _download_and_prepare(
        self,
        dl_manager: tfds.download.DownloadManager,
        download_config: tfds.download.DownloadConfig | None = None,
    ) -> None:
        check_format(self.info.file_format.value)
        if download_config and (
            download_config.num_shards or download_config.max_examples_per_split
        ):
            raise BuildError(
                "num_shards and max_examples_per_split are not supported: use shard_mb"
            )
        plan = self.plan(self._source or str(dl_manager.manual_dir))
        folder = pathlib.Path(self.data_dir)  # the incomplete one, until it is renamed
        _check_space(plan, folder)
        # TFDS has no other way to set the shapes once they are known.
        self.info._features = plan.format.features()
        shards = {
            split: cut(patches, plan.format, self._shard_mb)
            for split, patches in plan.splits.items()
        }
        results = self._write(plan, shards, download_config)
        of_all = list(itertools.chain.from_iterable(results.values()))
        faults = [*plan.faults, *(fault for result in of_all for fault in result.faults)]
        if faults and not self._skip:
            raise BuildError(_failure(plan, faults))
        if not any(result.written for result in of_all):
            raise BuildError(f"every patch is faulty; nothing was built.\n{report(faults)}")
        if faults:
            write_skipped(folder / SKIPPED, faults, plan.folders)
        self.faults = faults
        self.warnings = [warning for result in of_all for warning in result.warnings]
        infos = [self._finish_split(split, of_split) for split, of_split in results.items()]
        self.info.set_splits(tfds.core.splits.SplitDict([info for info in infos if info]))
        for name, text in plan.files.items():
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
        ranges = joint_ranges(result.ranges for result in of_all)
        self.info.metadata.update(
            plan.facts,
            patch_size=list(plan.format.size or ()),
            num_patches={name: info.num_examples for name, info in self.info.splits.items()},
            num_faults_skipped=len(self.faults),
            num_warnings=len(self.warnings),
            constant_bands=[
                name
                for name, (low, high) in zip(plan.format.bands, ranges, strict=True)
                if low == high
            ],
            notes=[relative(note, plan.folders) for note in plan.notes],
        )
        fingerprint_lib.save(self._fingerprint(plan, shards, results), self.data_path)

    def _write(
        self,
        plan: Plan,
        shards: Mapping[str, Sequence[Shard]],
        download_config: tfds.download.DownloadConfig | None,
    ) -> dict[str, list[ShardResult]]:
        """Writes all shards; returns the results by split."""
        paths = [
            str(self._shard_path(split, index, len(of_split)))
            for split, of_split in shards.items()
            for index in range(len(of_split))
        ]
        options: dict[str, Any] = {
            "skip": self._skip,
            "check_only": bool(plan.faults) and not self._skip,
            "progress": self._progress,
        }
        of_all = list(itertools.chain.from_iterable(shards.values()))
        file_format = self.info.file_format.value
        if download_config and (download_config.beam_runner or download_config.beam_options):
            from tfds_builder.flair import beam  # an extra, which need not be installed

            results = beam.write_shards_with_beam(
                of_all,
                paths,
                file_format,
                runner=download_config.beam_runner,
                options=download_config.beam_options,
                source=plan.folders[0],
                **options,
            )
        else:
            most = sum(plan.num_patches().values()) // PATCHES_OF_A_WORKER
            num_workers = self._num_workers or min(available_cpus(), most)
            results = write_shards(of_all, paths, file_format, num_workers=num_workers, **options)
        remaining = iter(results)
        return {split: [next(remaining) for _ in of_split] for split, of_split in shards.items()}

    def _shard_path(self, split: str, index: int, count: int) -> pathlib.Path:
        template = self._get_filename_template(split_name=split)
        return pathlib.Path(template.sharded_filepath(shard_index=index, num_shards=count))

    def _finish_split(
        self, split: str, results: Sequence[ShardResult]
    ) -> tfds.core.SplitInfo | None:
        """Describes a written split, without the shards whose every patch was left out."""
        kept = [index for index, result in enumerate(results) if result.written]
        size = 0
        for index in range(len(results)):
            path = self._shard_path(split, index, len(results))
            if index in kept:
                # Files name the number of shards, which may have shrunk.
                path = path.rename(self._shard_path(split, kept.index(index), len(kept)))
                size += path.stat().st_size
            else:
                path.unlink()
        if not kept:
            return None
        return tfds.core.SplitInfo(
            name=split,
            shard_lengths=[results[index].written for index in kept],
            num_bytes=size,
            filename_template=self._get_filename_template(split_name=split),
        )

    def _fingerprint(
        self,
        plan: Plan,
        shards: Mapping[str, Sequence[Shard]],
        results: Mapping[str, Sequence[ShardResult]],
    ) -> fingerprint_lib.Fingerprint:
        patches: dict[str, dict[str, Any]] = {}
        skipped: dict[str, list[str]] = {}
        files: dict[str, dict[str, list[int]]] = {}
        for split, of_split in shards.items():
            patches[split], skipped[split] = {}, []
            for shard, result in zip(of_split, results[split], strict=True):
                keys = [str(patch.key) for patch in shard.patches]
                for key, patch, crcs in zip(keys, shard.patches, result.crcs, strict=True):
                    patches[split][key] = fingerprint_lib.entry_of(patch, crcs)
                skipped[split] += [keys[index] for index in result.skipped]
        for split, info in self.info.splits.items():
            files[split] = {
                pathlib.Path(path).name: [length, pathlib.Path(path).stat().st_size]
                for path, length in zip(info.filepaths, info.shard_lengths, strict=True)
            }
        return fingerprint_lib.Fingerprint(plan.options, patches, skipped, files)

    def _log_download_bytes(self) -> None:
        """Logs nothing: TFDS would log a download of unknown size."""

    def _log_download_done(self) -> None:
        """Logs nothing: `tfds_builder.build` does."""


def _check_space(plan: Plan, folder: pathlib.Path) -> None:
    free = shutil.disk_usage(folder).free
    if plan.nbytes() > free:
        raise BuildError(
            f"the data set needs {plan.nbytes() / 1e9:,.4g} GB, and the disk of data_dir has"
            f" {free / 1e9:,.4g} GB free"
        )


def _failure(plan: Plan, faults: Sequence[Fault]) -> str:
    patches = sum(plan.num_patches().values()) + len(plan.faults)
    return (
        f"{len(faults):,} fault{'s' * (len(faults) > 1)} in {patches:,} patches;"
        f" nothing was built.\n{report(faults)}\n"
        "fix these files, or build with --on_error=skip to leave the patches out and list"
        f" them in {SKIPPED}"
    )
