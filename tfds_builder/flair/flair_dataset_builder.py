"""The TFDS builder of FLAIR #1."""

import collections
import dataclasses
import itertools
import pathlib
import random
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_builder

from tfds_builder.flags import SHARD_MB
from tfds_builder.flair import fingerprint as fingerprint_lib
from tfds_builder.flair import source as source_lib
from tfds_builder.flair.faults import BuildError, Fault, printable, relative, report, write_skipped
from tfds_builder.flair.patches import Size, common_size
from tfds_builder.flair.records import features
from tfds_builder.flair.reference import (
    BANDS,
    CLASSES,
    DOMAIN_PATCHES,
    DOMAINS,
    VAL_DOMAINS,
    VAL_DOMAINS_D077,
)
from tfds_builder.flair.selection import SPLITS, Patch, check_masks, select
from tfds_builder.flair.shards import (
    Shard,
    ShardResult,
    check_format,
    cut,
    files_bytes,
    write_shards,
)
from tfds_builder.flair.workers import available_cpus

SKIPPED = "skipped.csv"
SHUFFLE_SEED = 0
PATCHES_OF_A_WORKER = 32  # at least: a process takes seconds to start
DOMAINS_NAMED = 5


@dataclasses.dataclass(eq=False, kw_only=True)
class FlairConfig(tfds.core.BuilderConfig):
    """How the patches are split: by domain, or by lists.

    Attributes:
      val_domains: the domains of the validation split; those of test are fixed, train is the rest.
      lists: {"train" | "val" | "test": CSV file of image and mask paths}, instead of the domains.
    """

    val_domains: Iterable[str] = VAL_DOMAINS
    lists: Mapping[str, str] | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of a build.

    Attributes:
      folders: that of the source, and those of lists.
      splits: the patches of each split, in the order in which they are stored.
      faults: those that are known before patches are read.
      notes: what the user should know of the source.
      patch_size: rows and columns of all patches; None if no image can be read.
      options: of the build, see `fingerprint.Fingerprint`.
    """

    folders: Sequence[str]
    splits: Mapping[str, Sequence[Patch]]
    faults: Sequence[Fault]
    notes: Sequence[str]
    patch_size: Size | None
    options: Mapping[str, Any]

    def num_patches(self) -> dict[str, int]:
        """Returns the number of patches by split."""
        return {split: len(patches) for split, patches in self.splits.items()}

    def nbytes(self) -> int:
        """Returns about the size of the data set on disk, rather too much than too little."""
        return sum(
            files_bytes(len(patches), self.patch_size, self.options["shard_mb"])
            for patches in self.splits.values()
        )


class Flair(dataset_builder.FileReaderBuilder):
    """FLAIR #1: aerial image patches of France and their land-cover masks.

    Patches are read from the folder of the download, zipped or unpacked, and stored in the order
    of domain, zone and number.

    Paper: https://arxiv.org/abs/2211.12979
    """

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {  # noqa: RUF012
        "1.0.0": "FLAIR #1, 5 bands and 19 classes, with metadata.",
        "1.1.0": "One patch size in the shapes, names of classes, a fingerprint of the source.",
    }
    BUILDER_CONFIGS = [  # noqa: RUF012
        FlairConfig(
            name="published", description="Split by domain as in the published path lists."
        ),
        FlairConfig(
            name="d077",
            description="Validates on D077_2021 in place of D070_2020, as some code bases do.",
            val_domains=VAL_DOMAINS_D077,
        ),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Download FLAIR #1 from https://ignf.github.io/FLAIR/ into the manual folder, zipped or
    unpacked: flair_aerial_train.zip, flair_1_aerial_test.zip, flair_labels_train.zip,
    flair_1_labels_test.zip and flair-1_metadata_aerial.zip; or flair_1_toy_dataset.zip.
    """

    def __init__(
        self,
        *,
        source: str | None = None,
        num_workers: int | None = None,
        on_error: str = "fail",
        shard_mb: float = SHARD_MB,
        shuffle: bool = False,
        progress: bool = True,
        **kwargs: Any,
    ) -> None:
        """Takes TFDS's `data_dir`, `config`, `version`, `file_format`, and options of the build.

        Args:
          source: the folder of the download; None for TFDS's manual folder.
          num_workers: how many processes write; None takes one for each CPU, but fewer for few
            patches.
          on_error: "fail", or "skip" to leave faulty patches out and list them in `skipped.csv`.
          shard_mb: the size of a shard's pixels, in MiB.
          shuffle: whether patches are stored in a random order, always the same, so that a part
            such as `train[:10%]` is from all domains.
          progress: whether to show a progress bar.
          **kwargs: `data_dir`, `config`, `version`, `file_format`.
        """
        self._source = source
        self._num_workers = num_workers
        self._skip = on_error == "skip"
        self._shard_mb = shard_mb
        self._shuffle = shuffle
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
            shuffle=shuffle,
            progress=progress,
        )

    def _info(self) -> tfds.core.DatasetInfo:
        # The patches' size is known once the data set is built, or its source is scanned.
        is_built = (self.data_path / "features.json").exists()
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict.from_config(self.data_dir)
            if is_built
            else features(None),
            supervised_keys=("image", "mask"),
            homepage="https://ignf.github.io/FLAIR/",
            license="Etalab Open Licence 2.0 (https://www.etalab.gouv.fr/licence-ouverte-open-licence/)",
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def plan(self, source: str) -> Plan:
        """Scans a source, without reading patches; the result is kept for the build.

        Args:
          source: the folder of the download.

        Raises:
          BuildError: if there is nothing to build from.
        """
        if self._plan is None:
            self._plan = self._make_plan(source)
        return self._plan

    def _make_plan(self, source: str) -> Plan:
        config = self.builder_config
        lists = config.lists or {}
        scanned = source_lib.scan(source)
        source_lib.check_buildable(scanned, skip_damaged=self._skip)
        splits, faults = select(scanned, config.val_domains, lists)
        check_masks(scanned, splits)
        if not splits and not faults:
            raise BuildError("no patch is left to build: the lists are empty")
        if self._shuffle:
            for patches in splits.values():
                random.Random(SHUFFLE_SEED).shuffle(patches)
        options = {
            "file_format": self.info.file_format.value,
            "shard_mb": self._shard_mb,
            "shuffle": self._shuffle,
            "lists": {
                split: zlib.crc32(pathlib.Path(path).read_bytes()) for split, path in lists.items()
            },
        }
        return Plan(
            folders=[scanned.root, *(str(pathlib.Path(path).parent) for path in lists.values())],
            splits=splits,
            faults=faults,
            notes=[printable(note) for note in (*scanned.notes, *_notes(splits, lists))],
            patch_size=common_size([patch for patches in splits.values() for patch in patches]),
            options=options,
        )

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
        plan = self.plan(str(self._source or dl_manager.manual_dir))
        folder = pathlib.Path(self.data_dir)  # the incomplete one, until it is renamed
        _check_space(plan, folder)
        # TFDS has no other way to set the shapes once they are known.
        self.info._features = features(plan.patch_size)
        shards = {
            split: cut(patches, plan.patch_size, self._shard_mb)
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
        self._describe(plan)
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

    def _describe(self, plan: Plan) -> None:
        self.info.metadata.update(
            bands=list(BANDS),
            classes=[
                {"value": value, "name": name, "colour": colour}
                for value, (name, colour) in CLASSES.items()
            ],
            patch_size=list(plan.patch_size or ()),
            num_patches={name: info.num_examples for name, info in self.info.splits.items()},
            num_faults_skipped=len(self.faults),
            num_warnings=len(self.warnings),
            notes=[relative(note, plan.folders) for note in plan.notes],
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


def _notes(splits: Mapping[str, Sequence[Patch]], lists: Mapping[str, str] | None) -> Iterable[str]:
    """Yields what is missing of the splits and of the published data set."""
    for split in SPLITS:
        if lists and split not in lists:
            yield f"no list was given for {split}: it is not built"
        elif split not in splits:
            yield f"no patches of {split}: it is not built"
    unlabelled = sum(patch.mask is None for patch in splits.get("test", ()))
    if unlabelled:
        yield f"{unlabelled:,} test patches have no mask; has_mask is false"
    if lists:
        return
    here = collections.Counter(
        patch.key.domain for of_split in splits.values() for patch in of_split
    )
    if absent := sorted(DOMAINS - here.keys()):
        yield f"absent domains of FLAIR #1, {len(absent)} of {len(DOMAINS)}: {_some(absent)}"
    incomplete = [
        f"{domain} ({here[domain]:,} of {count:,} patches)"
        for of_split in DOMAIN_PATCHES.values()
        for domain, count in of_split.items()
        if 0 < here[domain] < count
    ]
    if incomplete:
        yield f"incomplete domains of val and test, {len(incomplete)}: {_some(incomplete)}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - DOMAINS_NAMED} more" if len(names) > DOMAINS_NAMED else ""
    return ", ".join(names[:DOMAINS_NAMED]) + more


def _failure(plan: Plan, faults: Sequence[Fault]) -> str:
    patches = sum(plan.num_patches().values()) + len(plan.faults)
    return (
        f"{len(faults):,} fault{'s' * (len(faults) > 1)} in {patches:,} patches;"
        f" nothing was built.\n{report(faults)}\n"
        "fix these files, or build with --on_error=skip to leave the patches out and list"
        f" them in {SKIPPED}"
    )
