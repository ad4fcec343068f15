"""The TFDS builder of FLAIR #1."""

import contextlib
import dataclasses
import fcntl
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_builder

from tfds_builder.flair import source as source_lib
from tfds_builder.flair.faults import BuildError, Fault, report, write_skipped
from tfds_builder.flair.patches import BANDS, common_size, features
from tfds_builder.flair.shards import Shard, cut, write_shards

# Held by the process that builds; the system releases it when that process dies.
LOCK = "build.lock"
SKIPPED = "skipped.csv"


@dataclasses.dataclass(eq=False, kw_only=True)
class FlairConfig(tfds.core.BuilderConfig):
    """How the patches are split: by domain, or by lists.

    Attributes:
      val_domains: the domains of the validation split; those of test are fixed, train is the rest.
      lists: {"train" | "val" | "test": CSV file of image and mask paths}, instead of the domains.
    """

    val_domains: Iterable[str] = source_lib.VAL_DOMAINS
    lists: Mapping[str, str] | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of a build: the shards of each split, and the faults known before reading."""

    shards: Mapping[str, Sequence[Shard]]
    faults: Sequence[Fault]
    notes: Sequence[str]
    num_patches: Mapping[str, int]
    patch_size: tuple[int, int] | None

    def nbytes(self) -> int:
        """Returns the size of all pixels; the files are somewhat smaller."""
        rows, columns = self.patch_size or (0, 0)
        return sum(self.num_patches.values()) * rows * columns * (BANDS + 1)


class Flair(dataset_builder.FileReaderBuilder):
    """FLAIR #1: aerial image patches of France and their land-cover masks.

    Patches are read from the folder of the download, zipped or unpacked; `README.md` beside
    this file describes the layouts and the features. They are stored in the
    order of domain, zone and number.

    Paper: https://arxiv.org/abs/2211.12979
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "FLAIR #1, 5 bands and 19 classes, with metadata."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        FlairConfig(
            name="published", description="Split by domain as in the published path lists."
        ),
        FlairConfig(
            name="d077",
            description="Validates on D077_2021 in place of D070_2020, as some code bases do.",
            val_domains=source_lib.VAL_DOMAINS_D077,
        ),
    ]

    def __init__(
        self,
        *,
        source: str | os.PathLike[str] | None = None,
        num_workers: int | None = None,
        on_error: str = "fail",
        shard_mb: float = 128,
        progress: bool = True,
        **kwargs: Any,
    ) -> None:
        """Takes TFDS's `data_dir`, `config` and `version`, and options of the build.

        Args:
          source: the folder of the download; not needed to read a built data set.
          num_workers: how many processes write; None takes one for each CPU.
          on_error: "fail", or "skip" to leave faulty patches out and list them in `skipped.csv`.
          shard_mb: the size of a shard's pixels, in MiB.
          progress: whether to show a progress bar.
          **kwargs: `data_dir`, `config`, `version`.
        """
        self._source = source
        self._num_workers = num_workers or os.cpu_count() or 1
        self._skip = on_error == "skip"
        self._shard_mb = shard_mb
        self._progress = progress
        self._plan: Plan | None = None
        self.faults: list[Fault] = []  # of the patches that a build left out
        super().__init__(**kwargs)
        self._original_state.update(  # what TFDS pickles
            source=source,
            num_workers=num_workers,
            on_error=on_error,
            shard_mb=shard_mb,
            progress=progress,
        )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=features(),
            supervised_keys=("image", "mask"),
            homepage="https://ignf.github.io/FLAIR/",
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def plan(self) -> Plan:
        """Scans the source, without reading patches; the result is cached.

        Raises:
          BuildError: if there is nothing to build from.
        """
        if self._plan is None:
            if self._source is None:
                raise BuildError("no source given: give the folder of the FLAIR #1 download")
            config = self.builder_config
            scanned = source_lib.scan(self._source, skip_damaged=self._skip)
            splits, faults = source_lib.select(scanned, config.val_domains, config.lists)
            size = common_size([patch for patches in splits.values() for patch in patches])
            for split in source_lib.SPLITS:
                if config.lists and split not in config.lists:
                    scanned.notes.append(f"no list was given for {split}: it is not built")
                elif split not in splits:
                    scanned.notes.append(f"no patches of {split}: it is not built")
            masks = sum(patch.mask is not None for patch in splits.get("test", ()))
            if masks < len(splits.get("test", ())):
                unlabelled = len(splits["test"]) - masks
                scanned.notes.append(f"{unlabelled:,} test patches have no mask; has_mask is false")
            self._plan = Plan(
                shards={split: cut(p, size, self._shard_mb) for split, p in splits.items()},
                faults=faults,
                notes=scanned.notes,
                num_patches={split: len(patches) for split, patches in splits.items()},
                patch_size=size,
            )
        return self._plan

    def _download_and_prepare(
        self,
        dl_manager: tfds.download.DownloadManager,
        download_config: tfds.download.DownloadConfig | None = None,
    ) -> None:
        del dl_manager
        plan = self.plan()
        folder = pathlib.Path(self.data_dir)  # the incomplete one, until it is renamed
        with _locked(folder / LOCK):
            shards = list(itertools.chain.from_iterable(plan.shards.values()))
            paths = [
                str(self._shard_path(split, index, len(of_split)))
                for split, of_split in plan.shards.items()
                for index in range(len(of_split))
            ]
            check_only = bool(plan.faults) and not self._skip
            if download_config and download_config.beam_runner:
                from tfds_builder.flair import beam  # an extra, which need not be installed

                results = beam.write_shards_with_beam(
                    shards,
                    paths,
                    runner=download_config.beam_runner,
                    options=download_config.beam_options,
                    source=os.path.abspath(self._source or ""),
                    skip=self._skip,
                    check_only=check_only,
                    progress=self._progress,
                )
            else:
                results = write_shards(
                    shards,
                    paths,
                    num_workers=self._num_workers,
                    skip=self._skip,
                    check_only=check_only,
                    progress=self._progress,
                )
            faults = [*plan.faults, *(fault for _, of_shard in results for fault in of_shard)]
            self.faults = faults
            if faults and not self._skip:
                raise BuildError(self._failure(plan, faults))
            if not any(written for written, _ in results):
                raise BuildError(f"every patch is faulty; nothing was built.\n{report(faults)}")
            if faults:
                write_skipped(folder / SKIPPED, faults)
            lengths = iter([written for written, _ in results])
            infos = [
                self._finish_split(split, [next(lengths) for _ in shards])
                for split, shards in plan.shards.items()
            ]
            self.info.set_splits(tfds.core.splits.SplitDict([info for info in infos if info]))
            self._describe(plan)

    def _shard_path(self, split: str, index: int, count: int) -> pathlib.Path:
        template = self._get_filename_template(split_name=split)
        return pathlib.Path(template.sharded_filepath(shard_index=index, num_shards=count))

    def _finish_split(self, split: str, lengths: Sequence[int]) -> tfds.core.SplitInfo | None:
        """Describes a written split, without the shards whose every patch was left out."""
        kept = [index for index, length in enumerate(lengths) if length]
        size = 0
        for index in range(len(lengths)):
            path = self._shard_path(split, index, len(lengths))
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
            shard_lengths=[lengths[index] for index in kept],
            num_bytes=size,
            filename_template=self._get_filename_template(split_name=split),
        )

    def _describe(self, plan: Plan) -> None:
        self.info.metadata.update(
            source=os.path.abspath(self._source or ""),
            patch_size=list(plan.patch_size or ()),
            num_patches={name: info.num_examples for name, info in self.info.splits.items()},
            num_faults_skipped=len(self.faults),
            notes=list(plan.notes),
        )

    def _failure(self, plan: Plan, faults: Sequence[Fault]) -> str:
        patches = sum(plan.num_patches.values()) + len(plan.faults)
        return (
            f"{len(faults):,} fault{'s' * (len(faults) > 1)} in {patches:,} patches;"
            f" nothing was built.\n{report(faults)}\n"
            "fix these files, or build with --on_error=skip to leave the patches out and list"
            f" them in {SKIPPED}"
        )

    def _log_download_bytes(self) -> None:
        """Logs nothing: TFDS would log a download of unknown size."""

    def _log_download_done(self) -> None:
        """Logs nothing: `tfds_builder.build` does."""


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    with open(path, "w") as file:
        # Some network file systems have no locks; incomplete folders are only reported there.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
        path.unlink()
