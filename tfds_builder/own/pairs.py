"""Finds images and their masks: in folders, or as listed in pairs.csv."""

import collections
import dataclasses
import datetime
import glob
import os
import re
from collections.abc import Mapping

from tfds_builder.flair.faults import BuildError
from tfds_builder.flair.selection import SPLITS
from tfds_builder.own.classes import read_table

SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
COLUMNS = ("image", "mask", "split", "group", "date", "camera")
EXAMPLE = "image,mask,split,group\n  a/1.tif,a/1_mask.tif,train,a"
_WILD = re.compile(r"[*?[]")


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Attributes:
      key: names the pair: the path of the image without its suffix, as far as it is distinct.
      image: its path.
      mask: its path, or "".
      columns: what pairs.csv states besides, by column.
    """

    key: str
    image: str
    mask: str
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The folder of the image in that of all images."""
        return os.path.dirname(self.key)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """All pairs, in order of their keys.

    Attributes:
      root: the folder that holds all files.
      pairs: the pairs.
      unpaired: masks without an image.
      notes: what was left out.
    """

    root: str
    pairs: tuple[Pair, ...]
    unpaired: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def from_folders(images: str, masks: str | None) -> Pairs:
    """Pairs the images and masks of folders by their paths in them, without suffixes.

    Args:
      images: a folder, a file, or folders with wildcards, such as `dubai/*/images`: then what the
        wildcards match leads the path.
      masks: the same for the masks; None if there are none.

    Raises:
      BuildError: if there are no images, or none has a mask.
    """
    notes: list[str] = []
    found = _files(images, "images", notes)
    if masks is None:
        pairs = [Pair(key, path, "") for key, path in sorted(found.items())]
        return Pairs(_root(pairs), tuple(pairs), notes=tuple(notes))
    if os.path.abspath(images) == os.path.abspath(masks):
        raise BuildError(
            f"--images and --masks are the same folder, {images}: list images and masks in a file,"
            f" --pairs=pairs.csv, with a header such as\n  {EXAMPLE}"
        )
    found_masks = _files(masks, "masks", notes)
    if os.path.isfile(images) and os.path.isfile(masks):
        found_masks = dict(zip(found, found_masks.values(), strict=True))
    if not found.keys() & found_masks.keys():
        raise BuildError(
            "no image has a mask of its name: the first image is"
            f" {min(found.values())}, the first mask {min(found_masks.values())}. Name them alike,"
            f" but for the suffix, or list them in --pairs=pairs.csv, with a header such as\n"
            f"  {EXAMPLE}"
        )
    pairs = [Pair(key, path, found_masks.get(key, "")) for key, path in sorted(found.items())]
    unpaired = tuple(found_masks[key] for key in sorted(found_masks.keys() - found.keys()))
    return Pairs(_root(pairs), tuple(pairs), unpaired, tuple(notes))


def from_csv(path: str) -> Pairs:
    """Reads a list of pairs, with paths relative to its folder.

    Raises:
      BuildError: if it cannot be read, names an image twice, or a file that is not there.
    """
    folder = os.path.dirname(os.path.abspath(path))
    pairs = []
    lines: dict[str, int] = {}
    for line, cells in read_table(path, COLUMNS, example=EXAMPLE, others=True):
        where = f"{path}, line {line}"
        if not cells.get("image"):
            raise BuildError(f"{where}: it names no image")
        image, mask = (
            os.path.normpath(os.path.join(folder, text.replace("\\", "/"))) if text else ""
            for text in (cells["image"], cells.get("mask", ""))
        )
        for file in filter(None, (image, mask)):
            if not os.path.isfile(file):
                raise BuildError(f"{where}: there is no file {file}")
        if image in lines:
            raise BuildError(f"{where}: {image} is in line {lines[image]} too")
        lines[image] = line
        if (split := cells.get("split", "")) and split not in SPLITS:
            raise BuildError(f"{where}: the split is {split!r}; expected {', '.join(SPLITS)}")
        if (date := cells.get("date", "")) and not _is_day(date):
            raise BuildError(f"{where}: the date is {date!r}; expected a day as YYYY-MM-DD")
        columns = {name: text for name, text in cells.items() if name not in ("image", "mask")}
        pairs.append(Pair(image, image, mask, columns))
    if not pairs:
        raise BuildError(f"{path} lists no image")
    splits = [pair.columns.get("split", "") for pair in pairs]
    if any(splits) and not all(splits):
        raise BuildError(f"{path}: {splits.count('')} of {len(splits)} images have no split")
    root = _root(pairs)
    named = [
        dataclasses.replace(pair, key=os.path.splitext(os.path.relpath(pair.image, root))[0])
        for pair in pairs
    ]
    return Pairs(root, tuple(sorted(named, key=lambda pair: pair.key)))


def _root(pairs: list[Pair]) -> str:
    folders = {os.path.dirname(os.path.abspath(path)) for p in pairs for path in (p.image, p.mask)
               if path}  # fmt: skip
    return os.path.commonpath(folders)


def _files(pattern: str, what: str, notes: list[str]) -> dict[str, str]:
    """Returns the files of a folder, or of several, by key."""
    pattern = os.path.abspath(os.path.expanduser(pattern))
    if os.path.isfile(pattern):
        return {os.path.splitext(os.path.basename(pattern))[0]: pattern}
    is_wild = not os.path.exists(pattern) and _WILD.search(pattern)
    folders = sorted(filter(os.path.isdir, glob.glob(pattern))) if is_wild else [pattern]
    if not folders or not os.path.isdir(folders[0]):
        raise BuildError(f"--{what}={pattern}: there is no such folder")
    files: dict[str, str] = {}
    others: collections.Counter[str] = collections.Counter()
    parts = pattern.split(os.sep)
    for top in folders:
        matched = [
            part for part, wild in zip(top.split(os.sep), parts, strict=True) if _WILD.search(wild)
        ] if is_wild else []  # fmt: skip
        for folder, subfolders, names in os.walk(top, followlinks=True):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(names):
                stem, suffix = os.path.splitext(name)
                if name.startswith("."):
                    continue
                if suffix.lower() not in SUFFIXES:
                    others[suffix.lower() or "no suffix"] += 1
                    continue
                below = os.path.relpath(folder, top)
                key = "/".join([*matched, *([] if below == "." else below.split(os.sep)), stem])
                path = os.path.join(folder, name)
                if key in files:
                    raise BuildError(
                        f"--{what}: {files[key]} and {path} differ in their suffix only: which of"
                        " them is meant? Remove one, or list the files in --pairs=pairs.csv"
                    )
                files[key] = path
    if not files:
        listed = ", ".join(f"{n} {suffix}" for suffix, n in others.most_common(5)) or "no files"
        raise BuildError(f"--{what}={pattern}: no {', '.join(SUFFIXES)} in it; found {listed}")
    if others:
        listed = ", ".join(f"{n:,} {suffix}" for suffix, n in others.most_common(5))
        notes.append(f"left out of the {what}: {listed}")
    return files


def _is_day(text: str) -> bool:
    try:
        return bool(re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII)) and bool(
            datetime.date.fromisoformat(text)
        )
    except ValueError:
        return False
