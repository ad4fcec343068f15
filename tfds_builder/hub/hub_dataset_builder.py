"""The TFDS builder of FLAIR-HUB: aerial images, elevation and COSIA's masks."""

import collections
import contextlib
import dataclasses
import os
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence

import tensorflow_datasets as tfds

from tfds_builder.flair.faults import BuildError, Fault, printable
from tfds_builder.flair.files import File, Unreadable
from tfds_builder.flair.patch_builder import PatchBuilder, Plan
from tfds_builder.flair.patches import SYNTHETIC, common_size, gdal, opened
from tfds_builder.flair.reference import BANDS
from tfds_builder.flair.selection import SPLITS, Patch, the_one
from tfds_builder.flair.shards import PatchFormat
from tfds_builder.flair.source import Key
from tfds_builder.hub import flair1
from tfds_builder.hub import source as source_lib
from tfds_builder.hub.patches import read_hub_patch
from tfds_builder.hub.reference import CLASSES, ELEVATION, IMAGE, MASK, NAME, WEIGHTS
from tfds_builder.hub.source import MODALITIES, name_of

SHUFFLE_SEED = 0
NAMED = 5


@dataclasses.dataclass(frozen=True)
class HubSource:
    """Where FLAIR-HUB is, and what is taken of it.

    Attributes:
      root: the folder of the download.
      lists: {split: CSV file} in place of those in the folder; just these splits are built.
      split: "hub", by FLAIR-HUB's lists, or "flair1": FLAIR #1's patches, split as there.
      flair1_metadata: FLAIR #1's metadata, for "flair1".
      shuffle: whether patches are stored in a random order, always the same.
    """

    root: str
    lists: Mapping[str, str] = dataclasses.field(default_factory=dict)
    split: str = "hub"
    flair1_metadata: str | None = None
    shuffle: bool = False


class FlairHub(PatchBuilder):
    """FLAIR-HUB: aerial image patches of France with their height, and COSIA's land cover.

    Paper: https://arxiv.org/abs/2506.07080
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Aerial images, height, COSIA's 19 classes."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="hub", description="Red, green, blue, near infrared, height."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Download FLAIR-HUB's AERIAL_RGBI, DEM_ELEV and AERIAL_LABEL-COSIA and GLOBAL_ALL_MTD.zip from
    https://huggingface.co/datasets/IGNF/FLAIR-HUB into the manual folder, zipped or unpacked.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        is_built = (self.data_path / "features.json").exists()
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict.from_config(self.data_dir)
            if is_built
            else PatchFormat(None).features(),
            supervised_keys=("image", "mask"),
            homepage="https://huggingface.co/datasets/IGNF/FLAIR-HUB",
            license="Etalab Open Licence 2.0 (https://www.etalab.gouv.fr/licence-ouverte-open-licence/)",
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _make_plan(self, source: HubSource | str) -> Plan:
        if isinstance(source, str):  # TFDS's manual folder
            source = HubSource(source)
        scanned = source_lib.scan(source.root)
        source_lib.check_damage(scanned, self._skip)
        _check_modalities(scanned)
        dates = source_lib.read_dates(scanned.dates)
        files: dict[str, str] = {}
        lists: dict[str, int] = {}
        faults: list[Fault] = []
        if source.split == "flair1":
            assert source.flair1_metadata is not None
            matches, faults = _flair1(scanned, source.flair1_metadata, self._progress)
            scanned.notes += matches.notes
            files["flair1.csv"] = matches.as_csv()
            split_of = matches.split_of
        else:
            given = {split: File("", path) for split, path in source.lists.items()}
            chosen = given or source_lib.find_lists(scanned)
            listed = source_lib.read_lists(chosen)
            lists = {split: zlib.crc32(file.read()) for split, file in chosen.items()}
            split_of = _present(scanned, listed, faults)
        splits = _pair(scanned, split_of, dates, faults)
        if not any(splits.values()) and not faults:
            raise BuildError("no patch is left to build")
        if source.shuffle:
            for patches in splits.values():
                random.Random(SHUFFLE_SEED).shuffle(patches)
        return Plan(
            folders=[scanned.root, *(os.path.dirname(path) for path in source.lists.values())],
            splits=splits,
            faults=faults,
            notes=[printable(note) for note in (*scanned.notes, *_notes(splits, scanned))],
            format=PatchFormat(
                common_size([patch for patches in splits.values() for patch in patches]),
                BANDS,
                [name for name, _ in CLASSES.values()],
                read_hub_patch,
            ),
            options={
                "file_format": self.info.file_format.value,
                "shard_mb": self._shard_mb,
                "shuffle": source.shuffle,
                "split": source.split,
                "lists": lists,
            },
            facts={
                "name": NAME,
                "synthetic": _is_synthetic(splits),
                "grouped_by": "domain",
                "source": os.path.basename(scanned.root),
                "split": source.split,
                "bands": list(BANDS),
                "classes": [
                    {"value": value, "name": name, "colour": colour, "weight": WEIGHTS[value]}
                    for value, (name, colour) in CLASSES.items()
                ],
            },
            files=files,
        )


def _is_synthetic(splits: Mapping[str, Sequence[Patch]]) -> bool:
    """Returns whether the first image of a split is tagged as synthetic."""
    for patches in splits.values():
        with contextlib.suppress(Unreadable), gdal(), opened(patches[0].image.read()) as src:
            if src.tags().get(SYNTHETIC) == "YES":
                return True
    return False


def _check_modalities(source: source_lib.Source) -> None:
    """Raises a BuildError if a domain lacks all files of a modality."""
    domains = {modality: {key.domain for key in source.files[modality]} for modality in MODALITIES}
    known = set().union(*domains.values())
    for modality in MODALITIES:
        if lacking := sorted(known - domains[modality]):
            others = " and ".join(other for other in MODALITIES if lacking[0] in domains[other])
            more = f" (and for {len(lacking) - 1:,} more domains)" if len(lacking) > 1 else ""
            raise BuildError(
                f"{source.root} has {others} of {lacking[0]}, but no {modality}: put"
                f" {lacking[0]}_{modality}.zip beside it, zipped or unpacked{more}"
            )


def _present(
    source: source_lib.Source, listed: Mapping[Key, tuple[str, str]], faults: list[Fault]
) -> dict[Key, str]:
    """Returns the split of the listed patches whose domain is here; absent ones are faults."""
    domains = {key.domain for key in source.files[IMAGE]}
    elsewhere: collections.Counter[str] = collections.Counter()
    split_of: dict[Key, str] = {}
    for key, (split, where) in listed.items():
        if key.domain not in domains:
            elsewhere[key.domain] += 1
        elif not any(key in source.files[modality] for modality in MODALITIES):
            faults.append(
                Fault(split, "listed but not found", key.number, f"{where}; not in {source.root}")
            )
        else:
            split_of[key] = split
    if not split_of and not faults:
        raise BuildError(
            f"the lists name {len(listed):,} patches of {len(elsewhere):,} domains, and"
            f" {source.root} has none of them, but {_some(sorted(domains))}"
        )
    if elsewhere:
        source.notes.append(
            f"absent domains of the lists, {len(elsewhere):,}, with {elsewhere.total():,} patches:"
            f" {_some(sorted(elsewhere))}"
        )
    if unlisted := sum(key not in listed for key in source.files[IMAGE]):
        source.notes.append(f"left out {unlisted:,} patches that no list names")
    return split_of


def _flair1(
    source: source_lib.Source, metadata: str, progress: bool
) -> tuple[flair1.Matches, list[Fault]]:
    """Matches FLAIR #1's patches; returns the faults of masks without a position."""
    wanted = flair1.read_metadata(metadata)
    domains = {patch.domain for patch in wanted}
    files = {
        key: file
        for key, of_key in source.files[MASK].items()
        if flair1.domain_in_flair1(key.domain) in domains and (file := the_one(of_key))
    }
    positions, faults = flair1.read_positions(files, progress)
    matches = flair1.match(wanted, positions)
    if not matches.split_of and not faults:
        raise BuildError(
            f"none of the {len(wanted):,} patches in --flair1_metadata={metadata} is in"
            f" {source.root}, by domain and position"
        )
    return matches, faults


def _pair(
    source: source_lib.Source,
    split_of: Mapping[Key, str],
    dates: Mapping[str, str],
    faults: list[Fault],
) -> dict[str, list[Patch]]:
    """Returns the patches of each split by domain, region and cell."""
    splits: dict[str, list[Patch]] = {split: [] for split in SPLITS}
    unpacked = 0
    for key in sorted(split_of, key=_order):
        split = split_of[key]
        files: dict[str, File] = {}
        for modality in MODALITIES:
            of_key = source.files[modality].get(key, [])
            file = the_one(of_key)
            if file is not None:
                files[modality] = file
            elif of_key:
                also = ", ".join(map(str, of_key[1:]))
                faults.append(Fault(split, "patch twice", str(of_key[0]), f"also {also}"))
            else:
                detail = f"there is no {name_of(key, modality)}"
                faults.append(Fault(split, f"{modality} missing", key.number, detail))
        if len(files) < len(MODALITIES):
            continue
        unpacked += any(len(source.files[modality][key]) > 1 for modality in MODALITIES)
        entry = {"date": dates.get(key.number, "")}
        splits[split].append(Patch(split, key, files[IMAGE], files[MASK], entry, files[ELEVATION]))
    if unpacked:
        source.notes.append(f"took {unpacked:,} patches unpacked that are in a zip as well")
    return {split: patches for split, patches in splits.items() if patches}


def _order(key: Key) -> tuple[str, str, list[int]]:
    cell = key.number.rpartition("_")[2]
    return key.domain, key.zone, [int(number) for number in cell.split("-")]


def _notes(splits: Mapping[str, Sequence[Patch]], source: source_lib.Source) -> Iterator[str]:
    """Yields what is missing of the splits and of the dates."""
    for split in SPLITS:
        if split not in splits:
            yield f"no patches of {split}: it is not built"
    undated = sum(not patch.metadata["date"] for of_split in splits.values() for patch in of_split)
    if not source.dates:
        yield "no GLOBAL_AERIAL_MTD_DATES.gpkg (in GLOBAL_ALL_MTD.zip): the patches have no dates"
    elif undated:
        yield f"{undated:,} patches have no date"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
