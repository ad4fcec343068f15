"""Finds the patches of FLAIR-HUB in a folder and its zips, its lists of splits, and its dates."""

import collections
import csv
import dataclasses
import datetime
import io
import json
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from tfds_builder.flair.faults import BuildError
from tfds_builder.flair.files import Damage, File, Listing, Unreadable
from tfds_builder.flair.selection import SPLITS
from tfds_builder.flair.source import Key
from tfds_builder.hub.reference import ELEVATION, IMAGE, MASK

MODALITIES = (IMAGE, ELEVATION, MASK)
_DOMAIN, _REGION, _CELL = r"D\d{3}-\d{4}", r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*", r"\d+-\d+"
_PATCH_ID = re.compile(f"({_DOMAIN})_({_REGION})_({_CELL})", re.ASCII)
_TIFF = re.compile(
    rf"({_DOMAIN})_({'|'.join(MODALITIES)})_({_REGION})_({_CELL})\.(?i:tiff?)", re.ASCII
)
_DATES = re.compile(r".*AERIAL_MTD_DATES\.gpkg", re.IGNORECASE | re.DOTALL)
# As in FLAIR-HUB_TRAIN.csv, or TRAIN_FLAIR-INC_TOY.csv.
_LIST = re.compile(r"(?:.*[^A-Za-z])?(TRAIN|VALID|TEST)(?:[^A-Za-z].*)?", re.IGNORECASE | re.DOTALL)
_SPLITS = dict(zip(("TRAIN", "VALID", "TEST"), SPLITS, strict=True))
_COLUMNS = "SELECT name FROM pragma_table_info(?)"
_SQLITE = b"SQLite format 3\x00"
NAMED = 5


@dataclasses.dataclass
class Source:
    """The files found in a folder and its zips.

    Attributes:
      root: the folder.
      files: {modality: {patch: its files}}; more than one is a fault, or an unpacked file beside a
        zipped one.
      lists: CSV files.
      dates: GeoPackages of the dates of the aerial images.
      damage: zips that cannot be listed.
      notes: what was left out and why.
      others: number of other files by suffix.
    """

    root: str
    files: dict[str, dict[Key, list[File]]]
    lists: list[File] = dataclasses.field(default_factory=list)
    dates: list[File] = dataclasses.field(default_factory=list)
    damage: list[Damage] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    others: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


def key_of(domain: str, region: str, cell: str) -> Key:
    """Returns the key of a patch, whose number is its `patch_id`."""
    return Key(domain, region, f"{domain}_{region}_{cell}")


def name_of(key: Key, modality: str) -> str:
    """Returns the name of a patch's file, without a folder."""
    cell = key.number.rpartition("_")[2]
    return f"{key.domain}_{modality}_{key.zone}_{cell}.tif"


def scan(root: str) -> Source:
    """Finds all files of patches, lists and dates in a folder and its zips.

    Args:
      root: the folder. Links are followed, hidden files are ignored.

    Raises:
      BuildError: if there is no such folder, or no aerial image in it.
    """
    source = Source(os.path.abspath(root), {modality: {} for modality in MODALITIES})
    if not os.path.isdir(source.root):
        problem = "is not a folder" if os.path.exists(source.root) else "does not exist"
        raise BuildError(f"the source {source.root} {problem}; give the folder of the download")
    listing = Listing(source.root)
    for file in listing:
        name = os.path.basename(file.path)
        if tiff := _TIFF.fullmatch(name):
            domain, modality, region, cell = tiff.groups()
            key = key_of(domain, region, cell)
            source.files[modality].setdefault(key, []).append(file)
        elif _DATES.fullmatch(name):
            source.dates.append(file)
        elif name.lower().endswith(".csv"):
            source.lists.append(file)
        elif not name.lower().endswith(".zip"):
            source.others[os.path.splitext(name)[1].lower() or "no suffix"] += 1
    source.damage = listing.damage
    for what, left_out in (
        ("zips inside zips, which must be unpacked", listing.nested),
        ("pipes, sockets and devices", listing.special),
    ):
        if left_out:
            source.notes.append(f"left out {len(left_out):,} {what}, the first: {left_out[0]}")
    if not source.files[IMAGE]:
        found = ", ".join(f"{n:,} {suffix}" for suffix, n in source.others.most_common(NAMED))
        damage = "".join(f"\n  damaged: {damaged}" for damaged in source.damage)
        example = name_of(key_of("D012-2019", "AF-S1-27", "5-10"), IMAGE)
        raise BuildError(
            f"no aerial images of FLAIR-HUB in {source.root}\n"
            f"  expected: files named like {example}, in folders and zips\n"
            f"  found: {found or 'no other files'}{damage}\n"
            "  give the folder of the download: D012-2019_AERIAL_RGBI.zip, D012-2019_DEM_ELEV.zip,"
            " D012-2019_AERIAL_LABEL-COSIA.zip, ..., GLOBAL_ALL_MTD.zip, zipped or unpacked"
        )
    return source


def check_damage(source: Source, skip: bool) -> None:
    """Raises a BuildError for damaged zips; with `skip`, notes them instead."""
    if source.damage and not skip:
        listed = "".join(f"\n  {damaged}" for damaged in source.damage)
        raise BuildError(
            f"damaged or incomplete files (download them again, or remove them):{listed}"
        )
    source.notes += [f"left out a damaged file: {damaged}" for damaged in source.damage]


def find_lists(source: Source) -> dict[str, File]:
    """Returns the list of each split, found by its name.

    Raises:
      BuildError: if there is none, or more than one for a split, or one for an unknown split.
    """
    lists: dict[str, File] = {}
    for file in source.lists:
        name = os.path.splitext(os.path.basename(file.path))[0]
        match = _LIST.fullmatch(name)
        if not match:
            header = read_text(file).partition("\n")[0]
            if "patch_id" in re.split("[,;]", header.strip().casefold()):
                raise BuildError(
                    f"{file} lists patches, but its name names none of the splits"
                    f" {', '.join(_SPLITS)}: rename it, or give it as --train_csv, --val_csv or"
                    " --test_csv"
                )
            source.notes.append(f"left out a file that is no list of patches: {file}")
            continue
        split = _SPLITS[match[1].upper()]
        if split in lists:
            raise BuildError(
                f"two lists of {split}, {lists[split]} and {file}: give the one that is meant as"
                f" --{split}_csv, and those of the other splits"
            )
        lists[split] = file
    if not lists:
        raise BuildError(
            f"no list of patches in {source.root}: put FLAIR-HUB's CSV files beside the data"
            " (FLAIR-HUB_TRAIN.csv, FLAIR-HUB_VALID.csv, FLAIR-HUB_TEST.csv, zipped or unpacked),"
            " or give them as --train_csv, --val_csv and --test_csv"
        )
    return lists


def read_text(file: File) -> str:
    """Returns the text of a file.

    Raises:
      BuildError: if it cannot be read or is not UTF-8.
    """
    try:
        return file.read().decode("utf-8-sig")
    except (Unreadable, UnicodeDecodeError) as error:
        raise BuildError(f"cannot read {file}: {error}") from error


def read_lists(lists: Mapping[str, File]) -> dict[Key, tuple[str, str]]:
    """Returns the split of each listed patch, and where it is listed.

    Raises:
      BuildError: if a list has no header, names no patch, a patch twice, or another patch's file.
    """
    listed: dict[Key, tuple[str, str]] = {}
    for split, file in lists.items():
        count = 0
        for line, key in _read_list(file):
            where = f"{file}, line {line}"
            if key in listed:
                raise BuildError(f"{where}: {key.number} is listed in {listed[key][1]} too")
            listed[key] = split, where
            count += 1
        if not count:
            raise BuildError(f"{file} lists no patch")
    return listed


def _read_list(file: File) -> Iterator[tuple[int, Key]]:
    text = read_text(file)
    header_line = text.partition("\n")[0].strip()
    delimiter = ";" if ";" in header_line else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        header = [name.strip() for name in next(reader, [])]
        if "patch_id" not in header:
            raise BuildError(
                f"{file} has no header with a column patch_id; its first line is"
                f" {header_line[:100]!r}. Expected patch_id and a column a modality, such as"
                f" {','.join(('patch_id', *MODALITIES))}"
            )
        for cells in reader:
            row = dict(zip(header, (cell.strip() for cell in cells), strict=False))
            if not any(row.values()):
                continue
            where = f"{file}, line {reader.line_num}"
            patch_id = row.get("patch_id", "")
            match = _PATCH_ID.fullmatch(patch_id)
            if not match:
                raise BuildError(
                    f"{where}: {patch_id[:100]!r} is no patch_id, such as D012-2019_AF-S1-27_5-10"
                )
            key = key_of(*match.groups())
            for modality in MODALITIES:
                path = row.get(modality, "")
                if path and os.path.basename(path.replace("\\", "/")) != name_of(key, modality):
                    raise BuildError(
                        f"{where}: {modality} of {key.number} is {path}; expected"
                        f" {name_of(key, modality)}"
                    )
            yield reader.line_num, key
    except csv.Error as error:
        raise BuildError(f"cannot read {file}, line {reader.line_num}: {error}") from error


def read_dates(files: list[File]) -> dict[str, str]:
    """Returns the date of each patch, YYYY-MM-DD by `patch_id`.

    Raises:
      BuildError: if a GeoPackage is damaged, has no such table, a date is not one, or two differ.
    """
    dates: dict[str, str] = {}
    for file in files:
        for patch_id, value in _read_dates(file):
            if value in (None, ""):  # not known
                continue
            date = _as_date(value)
            if date is None:
                raise BuildError(
                    f"{file}: the date of {patch_id} is {value!r}; expected a day as YYYYMMDD"
                )
            if dates.setdefault(str(patch_id), date) != date:
                raise BuildError(
                    f"{file}: {patch_id} is dated {date}, and {dates[str(patch_id)]} elsewhere"
                )
    return dates


def _read_dates(file: File) -> Iterator[tuple[Any, Any]]:
    """Yields `patch_id` and date of every row, as stored."""
    try:
        content = file.read()
    except Unreadable as error:
        raise BuildError(f"cannot read {file}: {error}") from error
    if not content.startswith(_SQLITE):
        raise BuildError(f"{file} is no GeoPackage, which is a SQLite file: download it again")
    # SQLite opens files only, and may write beside them.
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "dates.gpkg")
        with open(path, "wb") as copy:
            copy.write(content)
        connection = sqlite3.connect(path)
        try:
            tables = [
                name
                for (name,) in connection.execute(
                    "SELECT table_name FROM gpkg_contents ORDER BY table_name"
                )
            ]
            columns = {
                table: [name for (name,) in connection.execute(_COLUMNS, (table,))]
                for table in tables
            }
            chosen = [
                (table, column)
                for table, names in columns.items()
                for column in ("date", "acquisition_dates")
                if "patch_id" in names and column in names
            ]
            if len(chosen) != 1:
                found = "; ".join(f"{t} ({', '.join(names)})" for t, names in columns.items())
                raise BuildError(
                    f"{file}: expected one table with the columns patch_id and date; it has"
                    f" {found or 'none'}"
                )
            table, column = map(_quoted, chosen[0])
            # A damaged table may have fewer rows, without an error.
            problems = [row[0] for row in connection.execute(f"PRAGMA quick_check({table})")]
            if problems != ["ok"]:
                raise BuildError(f"{file} is damaged: {problems[0]}")
            rows = connection.execute(f"SELECT patch_id, {column} FROM {table}").fetchall()
            if not rows:
                raise BuildError(f"{file} has no dates: its table {chosen[0][0]} is empty")
            yield from rows
        except (sqlite3.Error, UnicodeError) as error:
            raise BuildError(f"{file} is damaged, or no GeoPackage: {error}") from error
        finally:
            connection.close()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _as_date(value: Any) -> str | None:
    """Returns YYYY-MM-DD for YYYYMMDD, a number or a text, or {"0": YYYYMMDD} as JSON."""
    text = str(value).strip()
    if text.startswith("{"):
        try:
            values = list(json.loads(text).values())
        except (ValueError, AttributeError):
            return None
        text = str(values[0]) if len(values) == 1 else ""
    if not re.fullmatch(r"\d{8}", text, re.ASCII):
        return None
    try:
        return datetime.date(int(text[:4]), int(text[4:6]), int(text[6:])).isoformat()
    except ValueError:
        return None
