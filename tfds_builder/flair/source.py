"""Finds the patches of FLAIR #1 in a folder and its zips, and assigns them to splits."""

import collections
import dataclasses
import functools
import json
import os
import pathlib
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from tfds_builder.flair.faults import BuildError, Fault
from tfds_builder.flair.lists import read_list

SPLITS = ("train", "val", "test")
# fmt: off
TEST_DOMAINS = frozenset({
    "D012_2019", "D022_2021", "D026_2020", "D064_2021", "D068_2021",
    "D071_2020", "D075_2021", "D076_2019", "D083_2020", "D085_2019",
})
VAL_DOMAINS = frozenset({
    "D004_2021", "D014_2020", "D029_2021", "D031_2019",
    "D058_2020", "D066_2021", "D067_2021", "D070_2020",
})
# fmt: on
# Several public code bases validate on D077_2021 in place of D070_2020.
VAL_DOMAINS_D077 = VAL_DOMAINS - {"D070_2020"} | {"D077_2021"}

_TIFF = re.compile(r"(IMG|MSK)_(\d+)\.tiff?", re.IGNORECASE)
_DOMAIN = re.compile(r"D\d{3}_\d{4}")
_ZONE = re.compile(r"Z\d+_[A-Z]+")
_METADATA = re.compile(r".*metadata.*\.json", re.IGNORECASE)
# `flair#2-test` of the mirror, `flair_2_aerial_test` of the download: another data set's test.
_FLAIR_2_TEST = re.compile(r"flair[^a-z0-9]*2(?!\d).*test", re.IGNORECASE)


class File(NamedTuple):
    """A file in a folder (`archive` is empty) or in a zip."""

    archive: str
    path: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.path}" if self.archive else self.path

    def for_gdal(self) -> str | pathlib.Path:
        """Returns what `rasterio.open` takes; zipped files are read in place."""
        if not self.archive:
            return pathlib.Path(self.path)  # as a string, '#' or ':' would make it a URL
        if "{" in self.archive or "}" in self.archive:
            return f"/vsizip/{self.archive}/{self.path}"
        return f"/vsizip/{{{self.archive}}}/{self.path}"


class Key(NamedTuple):
    """What names a patch; the number is as in the file name, with its leading zeros."""

    domain: str
    zone: str
    number: str


@dataclasses.dataclass(frozen=True)
class Patch:
    """One patch of a split: its files, and its entry in the metadata file."""

    split: str
    key: Key
    image: File
    mask: File | None
    metadata: Any


@dataclasses.dataclass
class Source:
    """The files found in a folder and its zips."""

    root: str
    images: dict[Key, list[File]]
    masks: dict[Key, list[File]]
    metadata: dict[str, list[tuple[File, Any]]]  # `IMG_000717` -> its different entries
    notes: list[str]
    damaged: list[str]  # zips and metadata files that were left out, each with the reason


def scan(root: str | os.PathLike[str], skip_damaged: bool = False, inspect: bool = False) -> Source:
    """Scans a folder and the zips in it.

    Args:
      root: the folder. Links are followed, hidden files are ignored.
      skip_damaged: whether a zip that cannot be listed is left out with a note.
      inspect: whether to accept a source without metadata or with damaged files, for a check
        that reports all faults.

    Raises:
      BuildError: if there is nothing to build from, or a zip or metadata file is damaged.
    """
    source = Source(os.path.abspath(root), {}, {}, {}, [], [])
    if not os.path.isdir(source.root):
        problem = "is not a folder" if os.path.exists(source.root) else "does not exist"
        raise BuildError(f"the source {source.root} {problem}; give the folder of the download")
    found: list[File] = []
    damaged = source.damaged
    unplaced: list[File] = []
    flair_2 = 0
    for file in _files(source.root, damaged):
        found.append(file)
        name = os.path.basename(file.path)
        tiff = _TIFF.fullmatch(name)
        if not tiff and not _METADATA.fullmatch(name):
            continue
        domain, zone, is_flair_2 = _locate(file.archive, os.path.dirname(file.path))
        if is_flair_2:
            flair_2 += 1
        elif not tiff:
            try:
                _add_metadata(source, file)
            except BuildError as error:
                if not inspect:
                    raise
                damaged.append(str(error))
        elif not domain or not zone:
            unplaced.append(file)
        else:
            files = source.images if tiff[1].upper() == "IMG" else source.masks
            files.setdefault(Key(domain, zone, tiff[2]), []).append(file)
    if damaged and not (skip_damaged or inspect):
        raise BuildError(
            "damaged or incomplete zip files (download them again, or remove them):"
            + "".join(f"\n  {zip_and_reason}" for zip_and_reason in damaged)
        )
    if not inspect:
        source.notes += [f"left out a damaged zip: {zip_and_reason}" for zip_and_reason in damaged]
    if flair_2:
        source.notes.append(f"left out {flair_2:,} files of the test set of FLAIR #2")
    if unplaced:
        source.notes.append(
            f"left out {len(unplaced):,} files outside any domain and zone folder,"
            f" the first: {unplaced[0]}"
        )
    if not source.images:
        raise BuildError(_nothing_found(source, found))
    if not source.metadata and not inspect:
        raise BuildError(
            f"no metadata in {source.root}: {len(source.images):,} images were found, but no"
            " *metadata*.json with entries such as IMG_000717, in a folder or a zip. Put"
            " flair-1_metadata_aerial.zip beside the images, zipped or unpacked"
        )
    return source


def _files(root: str, damaged: list[str]) -> Iterator[File]:
    """Yields the files below a folder and in its zips, in a fixed order."""
    seen = set()

    def fail(error: OSError) -> None:
        raise BuildError(f"cannot list {error.filename}: {error.strerror}")

    for folder, subfolders, names in os.walk(root, onerror=fail, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a parent, or a second one to the same folder
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not _hidden(name))
        for name in sorted(names):
            path = os.path.join(folder, name)
            if _hidden(name):
                continue
            yield File("", path)
            if not name.lower().endswith(".zip"):
                continue
            try:
                with zipfile.ZipFile(path) as archive:
                    inside = sorted(archive.namelist())
            except (zipfile.BadZipFile, OSError) as error:
                damaged.append(f"{path}: {error}")
                continue
            for inner in inside:
                if not inner.endswith("/") and not any(map(_hidden, inner.split("/"))):
                    yield File(path, inner)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


@functools.lru_cache(maxsize=65536)
def _locate(archive: str, folder: str) -> tuple[str, str, bool]:
    """Returns the domain, the zone, and whether it is the test set of FLAIR #2."""
    # The mirror names the domain in the zip's name alone.
    parts = [*os.path.splitext(archive)[0].split("/"), *folder.split("/")]
    domain = next(filter(_DOMAIN.fullmatch, reversed(parts)), "")
    zone = next(filter(_ZONE.fullmatch, reversed(parts)), "")
    return domain, zone, any(map(_FLAIR_2_TEST.search, parts))


def _add_metadata(source: Source, file: File) -> None:
    try:
        if file.archive:
            with zipfile.ZipFile(file.archive) as archive:
                text = archive.read(file.path)
        else:
            text = pathlib.Path(file.path).read_bytes()
        entries = json.loads(text)
    except (OSError, ValueError, zipfile.BadZipFile, RuntimeError) as error:
        raise BuildError(f"cannot read the metadata file {file}: {error}") from error
    if not isinstance(entries, dict):
        return
    for name, entry in entries.items():
        if name.startswith("IMG_"):
            known = source.metadata.setdefault(name, [])
            if all(entry != other for _, other in known):
                known.append((file, entry))


def _nothing_found(source: Source, found: list[File]) -> str:
    kinds = collections.Counter(os.path.splitext(f.path)[1].lower() or "no suffix" for f in found)
    listing = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(6)) or "no files"
    tiffs = [f for f in found if f.path.lower().endswith((".tif", ".tiff"))]
    first = "".join(f"\n    {file}" for file in (tiffs or found)[:3])
    notes = "".join(f"\n  {note}" for note in source.notes)
    masks = f"\n  {len(source.masks):,} masks, but no image" if source.masks else ""
    return (
        f"no FLAIR patches in {source.root}\n"
        "  expected: images named like D004_2021/Z10_AU/img/IMG_000826.tif, in folders and zips\n"
        f"  found: {listing}{', the first:' if first else ''}{first}{masks}{notes}\n"
        "  give the folder of the FLAIR #1 download (flair_aerial_train.zip,"
        " flair_labels_train.zip, ..., or the toy data set), zipped or unpacked"
    )


def select(
    source: Source,
    val_domains: Iterable[str] = VAL_DOMAINS,
    lists: Mapping[str, str] | None = None,
    inspect: bool = False,
) -> tuple[dict[str, list[Patch]], list[Fault]]:
    """Pairs the files of each patch and assigns the patches to splits.

    Args:
      source: what `scan` found. Notes are added to it.
      val_domains: the domains of the validation split.
      lists: {split: CSV file}; takes just the listed patches instead of splitting by domain.
      inspect: whether a split may lack all of its masks.

    Returns:
      {split: patches by domain, zone and number}, and the faults of those that cannot be paired.

    Raises:
      BuildError: if a list cannot be read, no patch is left, or all masks of train or val are
        missing.
    """
    faults: list[Fault] = []
    keys: dict[str, list[Key]] = {split: [] for split in SPLITS}
    if lists:
        keys, faults = _listed(source, lists)
    else:
        val = frozenset(val_domains)
        for key in sorted(source.images.keys() | source.masks.keys()):
            test = key.domain in TEST_DOMAINS
            keys["test" if test else "val" if key.domain in val else "train"].append(key)
    numbers = collections.defaultdict(set)
    for key in (key for split in keys.values() for key in split if key in source.images):
        numbers[key.number].add(key)

    splits: dict[str, list[Patch]] = {split: [] for split in SPLITS}
    unpacked = 0
    for split, key in ((name, key) for name in SPLITS for key in keys[name]):
        images, masks = source.images.get(key, []), source.masks.get(key, [])
        image, mask = _one(images), _one(masks)
        unpacked += len(images) > 1 and image is not None
        entries = source.metadata.get(f"IMG_{key.number}", [])
        others = [source.images[other][0] for other in sorted(numbers[key.number] - {key})]
        if not images:
            faults.append(Fault(split, "mask without image", str(masks[0]), "no image was found"))
        elif not image or others:
            also = ", ".join(map(str, others or images[1:]))
            faults.append(Fault(split, "number twice", str(images[0]), f"also {also}"))
        elif masks and not mask:
            also = ", ".join(map(str, masks[1:]))
            faults.append(Fault(split, "number twice", str(masks[0]), f"also {also}"))
        elif len(entries) > 1:
            where = " and ".join(str(file) for file, _ in entries)
            faults.append(Fault(split, "contradictory metadata", str(image), where))
        else:
            metadata = entries[0][1] if entries else None
            splits[split].append(Patch(split, key, image, mask, metadata))
    if unpacked:
        source.notes.append(f"took {unpacked:,} patches unpacked that are in a zip as well")
    for split, patches in splits.items():
        unlabelled = patches and all(patch.mask is None for patch in patches)
        if split != "test" and unlabelled and not inspect:
            raise BuildError(
                f"none of the {len(patches):,} {split} patches in {source.root} has a mask: put"
                " flair_labels_train.zip beside the images, zipped or unpacked"
            )
    splits = {split: patches for split, patches in splits.items() if patches}
    if not splits and not faults:
        raise BuildError("no patch is left to build: the lists are empty")
    return splits, faults


def _one(files: list[File]) -> File | None:
    """Returns the only file, or the only unpacked one, or None."""
    for candidates in (files, [file for file in files if not file.archive]):
        if len(candidates) == 1:
            return candidates[0]
    return None


def _listed(source: Source, lists: Mapping[str, str]) -> tuple[dict[str, list[Key]], list[Fault]]:
    """Returns the keys that the lists name, sorted, and the faults of those it cannot take."""
    by_number = collections.defaultdict(list)
    for key in source.images:
        by_number[key.number].append(key)
    faults = []
    lines_of: dict[Key, list[str]] = {}
    split_of: dict[Key, str] = {}
    for split, path in lists.items():
        for line, listed in read_list(path):
            domain, zone, _ = _locate("", os.path.dirname(listed))
            number = _TIFF.fullmatch(os.path.basename(listed))
            if number is None:
                raise BuildError(
                    f"{path}, line {line}: {listed!r} is not the path of an image IMG_<number>.tif"
                    " (two columns, image and mask, no header)"
                )
            keys = [
                key
                for key in by_number[number[2]]
                if domain in ("", key.domain) and zone in ("", key.zone)
            ]
            if not keys:
                where = f"line {line} of {path}; not in {source.root}"
                faults.append(Fault(split, "listed but not found", listed, where))
            for key in keys:
                split_of.setdefault(key, split)
                lines_of.setdefault(key, []).append(f"line {line} of {path}")
    chosen: dict[str, list[Key]] = {split: [] for split in SPLITS}
    for key, lines in sorted(lines_of.items()):
        if len(lines) > 1:
            image = str(source.images[key][0])
            faults.append(Fault(split_of[key], "listed twice", image, " and ".join(lines)))
        else:
            chosen[split_of[key]].append(key)
    return chosen, faults
