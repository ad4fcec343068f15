"""Finds FLAIR #1's own patches among those of FLAIR-HUB, by their position."""

import collections
import csv
import dataclasses
import io
import os
import sys
import zipfile
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

import numpy as np
import tqdm

from tfds_builder.flair.faults import BuildError, Fault
from tfds_builder.flair.files import File, Listing, Unreadable
from tfds_builder.flair.patches import (
    LAMBERT_93,
    NONE,
    UNNAMED,
    centre,
    crs_name,
    gdal,
    header_of,
    opened,
    pixel_width,
)
from tfds_builder.flair.selection import SPLITS, split_of
from tfds_builder.flair.source import Key, Source, add_metadata, is_metadata

WITHIN = 1.01  # pixels: FLAIR #1's positions are rounded to a pixel


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A patch of FLAIR #1: its name, such as IMG_000717, domain and centre in metres."""

    name: str
    domain: str
    x: float
    y: float


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a patch of FLAIR-HUB is: centre, in metres, and the width of a pixel."""

    x: float
    y: float
    pixel: float


@dataclasses.dataclass
class Matches:
    """The patches of FLAIR #1 that are in FLAIR-HUB.

    Attributes:
      split_of: the split in FLAIR #1 of each patch of FLAIR-HUB that is one of them.
      rows: of every patch of FLAIR #1 in a domain that is here: split, name, `patch_id` ("" if it
        has none), the nearest `patch_id`, and the distance to its centre in metres.
      notes: how many have none, and which domains are not here.
    """

    split_of: dict[Key, str]
    rows: list[tuple[str, str, str, str, str]]
    notes: list[str]

    def as_csv(self) -> str:
        """Returns the rows as a CSV file."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("split", "flair1", "patch_id", "nearest_patch_id", "metres"))
        writer.writerows(self.rows)
        return text.getvalue()


def read_metadata(path: str) -> list[Wanted]:
    """Reads FLAIR #1's metadata.

    Args:
      path: flair-1_metadata_aerial.json, or the zip or the folder that it is in.

    Raises:
      BuildError: if there is none, it is damaged, or it states two positions for a patch.
    """
    source = Source(path)
    try:
        files = _metadata_files(path)
        for file in files:
            add_metadata(source, file)
    except (Unreadable, OSError, zipfile.BadZipFile) as error:
        raise BuildError(f"--flair1_metadata={path} cannot be read: {error}") from error
    if not source.metadata:
        raise BuildError(
            f"--flair1_metadata={path}: expected FLAIR #1's metadata,"
            " flair-1_metadata_aerial.json, or the zip or folder that it is in, with entries such"
            " as IMG_000717"
        )
    return [_wanted(path, name, entries) for name, entries in sorted(source.metadata.items())]


def _metadata_files(path: str) -> list[File]:
    if os.path.isdir(path):
        return [file for file in Listing(path) if is_metadata(file.path)]
    if path.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            return [File(path, name) for name in archive.namelist() if is_metadata(name)]
    return [File("", path)]


def _wanted(path: str, name: str, entries: list[tuple[File, Any]]) -> Wanted:
    entry = entries[0][1]
    if len(entries) > 1:
        raise BuildError(f"--flair1_metadata={path}: {name} has different entries")
    try:
        x, y = (float(entry[f"patch_centroid_{axis}"]) for axis in "xy")
        domain = str(entry["domain"])
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise BuildError(
            f"--flair1_metadata={path}: {name} has no domain or no position ({error!r})"
        ) from error
    if not (isfinite(x) and isfinite(y)):
        raise BuildError(f"--flair1_metadata={path}: the position of {name} is {x:g}, {y:g}")
    return Wanted(name, domain, x, y)


def domain_in_flair1(domain: str) -> str:
    """Returns D012_2019 for FLAIR-HUB's D012-2019."""
    return domain.replace("-", "_")


def read_positions(
    files: Mapping[Key, File], progress: bool
) -> tuple[dict[Key, Position], list[Fault]]:
    """Reads the positions of patches from their GeoTIFFs.

    Args:
      files: one of each patch; masks are the smallest.
      progress: whether to show a bar.

    Returns:
      The positions in Lambert-93, and the faults of the patches that have none.
    """
    positions: dict[Key, Position] = {}
    faults = []
    bar = tqdm.tqdm(
        sorted(files.items()), unit="position", disable=not progress,
        mininterval=0.2 if sys.stderr.isatty() else 10,
    )  # fmt: skip
    with gdal():
        for key, file in bar:
            try:
                with opened(file.read()) as src:
                    header = header_of(src)
            except Unreadable as error:
                faults.append(Fault("", "mask unreadable", str(file), str(error)))
                continue
            crs = crs_name(header.crs)
            if not header.has_position or crs not in (LAMBERT_93, UNNAMED, NONE):
                detail = "no coordinates" if not header.has_position else f"it is in {crs}"
                faults.append(Fault("", "mask without a position in Lambert-93", str(file), detail))
                continue
            x, y = centre(header.transform, header.shape)
            positions[key] = Position(x, y, pixel_width(header.transform))
    return positions, faults


def match(wanted: Iterable[Wanted], positions: Mapping[Key, Position]) -> Matches:
    """Finds the patch of FLAIR-HUB at the position of each patch of FLAIR #1.

    It is of the same domain, and the centres are at most a pixel apart along x and y.

    Args:
      wanted: FLAIR #1's patches.
      positions: of FLAIR-HUB's.

    Raises:
      BuildError: if two patches are at the same position.
    """
    here = collections.defaultdict(list)
    for key in sorted(positions):
        here[domain_in_flair1(key.domain)].append(key)
    arrays = {
        domain: np.array([dataclasses.astuple(positions[key]) for key in keys])
        for domain, keys in here.items()
    }
    found: dict[Key, Wanted] = {}
    splits: dict[Key, str] = {}
    rows = []
    absent: collections.Counter[str] = collections.Counter()
    missing = 0
    for patch in wanted:
        if patch.domain not in here:
            absent[patch.domain] += 1
            continue
        keys = here[patch.domain]
        x, y, pixel = arrays[patch.domain].T
        distances = np.hypot(x - patch.x, y - patch.y)
        nearest = int(np.argmin(distances))
        offsets = np.maximum(np.abs(x - patch.x), np.abs(y - patch.y))
        near = [keys[i] for i in np.flatnonzero(offsets <= WITHIN * pixel)]
        if len(near) > 1:
            raise BuildError(
                f"{near[0].number} and {near[1].number} are both at the position of {patch.name}"
            )
        if near and near[0] in found:
            raise BuildError(
                f"{found[near[0]].name} and {patch.name} are both at the position of"
                f" {near[0].number}"
            )
        split = split_of(patch.domain)
        if near:
            found[near[0]] = patch
            splits[near[0]] = split
        missing += not near
        matched = near[0].number if near else ""
        metres = f"{distances[nearest]:.2f}"
        rows.append((split, patch.name, matched, keys[nearest].number, metres))
    notes = []
    if missing:
        notes.append(
            f"{missing:,} of FLAIR #1's {len(rows):,} patches in the domains of this source have no"
            " counterpart in FLAIR-HUB: see flair1.csv"
        )
    if absent:
        notes.append(
            f"absent domains of FLAIR #1, {len(absent)}, with {absent.total():,} patches:"
            f" {', '.join(sorted(absent)[:5])}{', ...' if len(absent) > 5 else ''}"
        )
    rows.sort(key=lambda row: (SPLITS.index(row[0]), row[1]))
    return Matches(splits, rows, notes)
