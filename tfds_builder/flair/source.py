"""Finds the patches of FLAIR #1 in a folder and its zips, and their metadata."""

import collections
import dataclasses
import functools
import json
import os
import re
from typing import Any, NamedTuple

from tfds_builder.flair.faults import BuildError
from tfds_builder.flair.files import Damage, File, Listing, Unreadable
from tfds_builder.flair.reference import NAME, NAME_2, TEST_DOMAINS

_TIFF = re.compile(r"(IMG|MSK)_(\d+)\.tiff?", re.IGNORECASE | re.ASCII)
_DOMAIN = re.compile(r"D\d{3}_\d{4}", re.ASCII)
_ZONE = re.compile(r"Z\d+_[A-Z]+", re.ASCII)
_METADATA = re.compile(r".*metadata.*\.json", re.IGNORECASE | re.DOTALL)
# `flair#2-test` of the mirror, `flair_2_aerial_test` of the download: another data set's test.
_FLAIR_2_TEST = re.compile(r"flair[^a-z0-9]*2(?!\d).*test", re.IGNORECASE)
KINDS_SHOWN, FILES_SHOWN = 6, 3


class Key(NamedTuple):
    """Identifies a patch; the number is as in the file name, with its leading zeros."""

    domain: str
    zone: str
    number: str

    def __str__(self) -> str:
        return "/".join(self)


@dataclasses.dataclass
class Source:
    """The files found in a folder and its zips.

    Attributes:
      root: the folder.
      images: by patch; more than one file is a fault, or an unpacked file beside a zipped one.
      masks: by patch.
      metadata: `IMG_000717` -> its different entries, each with its file.
      test_2: the patches of FLAIR #2's test set, if it was asked for.
      synthetic: whether a metadata file states that the images are synthetic.
      damage: zips and metadata files that cannot be read.
      notes: what was left out and why.
      kinds: number of all files by suffix.
      first: some of the files, for the message that there is no image.
    """

    root: str
    images: dict[Key, list[File]] = dataclasses.field(default_factory=dict)
    masks: dict[Key, list[File]] = dataclasses.field(default_factory=dict)
    metadata: dict[str, list[tuple[File, Any]]] = dataclasses.field(default_factory=dict)
    test_2: set[Key] = dataclasses.field(default_factory=set)
    synthetic: bool = False
    damage: list[Damage] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    kinds: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    first: list[File] = dataclasses.field(default_factory=list)


class Location(NamedTuple):
    """What the path of a file tells; empty where it tells nothing."""

    domain: str
    zone: str
    kind: str  # "IMG" or "MSK"
    number: str
    is_flair_2: bool  # in the test set of FLAIR #2


def locate(archive: str, path: str) -> Location:
    """Returns what the path of a file tells of its patch.

    Args:
      archive: the path of the zip that it is in, or "".
      path: its path in the zip, or in the file system, or in a list.
    """
    folder, name = os.path.split(path)
    tiff = _TIFF.fullmatch(name)
    kind, number = (tiff[1].upper(), tiff[2]) if tiff else ("", "")
    domain, zone, is_flair_2 = _place(archive, folder)
    return Location(domain, zone, kind, number, is_flair_2)


@functools.lru_cache(maxsize=65536)
def _place(archive: str, folder: str) -> tuple[str, str, bool]:
    # The mirror names the domain in the zip's name alone.
    parts = [*os.path.splitext(archive)[0].split("/"), *folder.split("/")]
    domain = next(filter(_DOMAIN.fullmatch, reversed(parts)), "")
    zone = next(filter(_ZONE.fullmatch, reversed(parts)), "")
    return domain, zone, any(map(_FLAIR_2_TEST.search, parts))


def scan(root: str | os.PathLike[str], flair_2: bool = False) -> Source:
    """Finds all files of patches in a folder and its zips, and reads the metadata.

    Args:
      root: the folder. Links are followed, hidden files are ignored.
      flair_2: whether to take FLAIR #2's test set in place of FLAIR #1's.

    Raises:
      BuildError: if there is no such folder. All other faults are in the result.
    """
    source = Source(os.path.abspath(root))
    if not os.path.isdir(source.root):
        problem = "is not a folder" if os.path.exists(source.root) else "does not exist"
        raise BuildError(f"the source {source.root} {problem}; give the folder of the download")
    listing = Listing(source.root)
    other_test = 0
    unplaced: list[File] = []
    tiffs: list[File] = []
    for file in listing:
        suffix = os.path.splitext(file.path)[1].lower()
        source.kinds[suffix or "no suffix"] += 1
        examples = tiffs if suffix in (".tif", ".tiff") else source.first
        if len(examples) < FILES_SHOWN:
            examples.append(file)
        where = locate(file.archive, file.path)
        has_metadata = is_metadata(file.path)
        if not where.kind and not has_metadata:
            continue
        if where.is_flair_2 and not flair_2:
            other_test += 1
        elif has_metadata:
            try:
                add_metadata(source, file)
            except Unreadable as error:
                source.damage.append(Damage(str(file), f"cannot read the metadata: {error}"))
        elif not where.domain or not where.zone:
            unplaced.append(file)
        elif flair_2 and not where.is_flair_2 and where.domain in TEST_DOMAINS:
            other_test += 1
        else:
            files = source.images if where.kind == "IMG" else source.masks
            key = Key(where.domain, where.zone, where.number)
            if where.is_flair_2:
                source.test_2.add(key)
            files.setdefault(key, []).append(file)
    source.damage += listing.damage
    source.first = (tiffs or source.first)[:FILES_SHOWN]
    for what, left_out in (
        (f"files of the test set of {NAME if flair_2 else NAME_2}", range(other_test)),
        ("files outside any domain and zone folder", unplaced),
        ("zips inside zips, which must be unpacked", listing.nested),
        ("pipes, sockets and devices", listing.special),
    ):
        if left_out:
            first = "" if isinstance(left_out, range) else f", the first: {left_out[0]}"
            source.notes.append(f"left out {len(left_out):,} {what}{first}")
    return source


def is_metadata(path: str) -> bool:
    """Returns whether a path is that of a metadata file."""
    return _METADATA.fullmatch(os.path.basename(path)) is not None


def add_metadata(source: Source, file: File) -> None:
    """Adds the entries of a metadata file.

    Raises:
      Unreadable: if it is damaged.
    """
    try:
        entries = json.loads(file.read(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise Unreadable(str(error)) from error
    if not isinstance(entries, dict):
        return
    source.synthetic |= entries.get("synthetic") is True
    for name, entry in entries.items():
        if name.startswith("IMG_"):
            known = source.metadata.setdefault(name, [])
            if all(entry != other for _, other in known):
                known.append((file, entry))


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        counts = collections.Counter(key for key, _ in pairs)
        raise ValueError(f"the key {counts.most_common(1)[0][0]!r} is given twice")
    return entries


def check_buildable(source: Source, skip_damaged: bool = False) -> None:
    """Raises a BuildError for a source that cannot be built from.

    Args:
      source: the result of `scan`; gets notes on damaged files that are left out.
      skip_damaged: whether damaged zips and metadata files are left out.

    Raises:
      BuildError: if a file is damaged, or there is no image or no metadata.
    """
    damage = "".join(f"\n  {damaged}" for damaged in source.damage)
    if not source.images:
        raise BuildError(_nothing_found(source) + (damage and f"\n  damaged files:{damage}"))
    if damage and not skip_damaged:
        raise BuildError(
            f"damaged or incomplete files (download them again, or remove them):{damage}"
        )
    source.notes += [f"left out a damaged file: {damaged}" for damaged in source.damage]
    if not source.metadata:
        raise BuildError(
            f"no metadata in {source.root}: {len(source.images):,} images were found, but no"
            " *metadata*.json with entries such as IMG_000717, in a folder or a zip. Put"
            " flair-1_metadata_aerial.zip beside the images, zipped or unpacked"
        )


def _nothing_found(source: Source) -> str:
    kinds = source.kinds.most_common(KINDS_SHOWN)
    found = ", ".join(f"{count:,} {kind}" for kind, count in kinds) or "no files"
    first = "".join(f"\n    {file}" for file in source.first)
    notes = "".join(f"\n  {note}" for note in source.notes)
    masks = f"\n  {len(source.masks):,} masks, but no image" if source.masks else ""
    return (
        f"no FLAIR patches in {source.root}\n"
        "  expected: images named like D004_2021/Z10_AU/img/IMG_000826.tif, in folders and zips\n"
        f"  found: {found}{', the first:' if first else ''}{first}{masks}{notes}\n"
        "  give the folder of the FLAIR #1 download (flair_aerial_train.zip,"
        " flair_labels_train.zip, ..., or the toy data set), zipped or unpacked; FLAIR-HUB is built"
        " with --config=hub, images of your own with --images"
    )
