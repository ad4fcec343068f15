"""Reads classes.csv: the classes of masks, by value or colour, and what is ignored."""

import csv
import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfds_builder.flair.faults import BuildError

COLUMNS = ("value", "name", "colour", "weight")
IGNORE = "ignore"
UNLISTED = -1  # in tables of stored values
EXAMPLE = "value,name,colour,weight\n  1,building,#3C1098,1\n  ignore,unlabelled,#9B9B9B,"
# For classes without a colour, in this order.
_COLOURS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#994455",
    "#997700", "#004488", "#ee99aa", "#eecc66", "#6699cc", "#000000",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MaskClass:
    """A mask value of a class; several values may have one name."""

    value: int
    name: str
    colour: str
    weight: float


@dataclasses.dataclass(frozen=True)
class Classes:
    """The content of classes.csv.

    Attributes:
      classes: in its order.
      ignored_values: mask values whose pixels count in no loss and no score.
      colours: {(red, green, blue): the value that is stored for it}, also of ignored ones.
      ignore: what is stored for pixels that are ignored; None if every value is a class.
      notes: what the user should know.
    """

    classes: tuple[MaskClass, ...]
    ignored_values: tuple[int, ...]
    colours: dict[tuple[int, int, int], int]
    ignore: int | None
    notes: tuple[str, ...]

    def stored_values(self) -> np.ndarray:
        """Returns (256,) int16: what is stored for each mask value, `UNLISTED` for the others."""
        table = np.full(256, UNLISTED, np.int16)
        for entry in self.classes:
            table[entry.value] = entry.value
        if self.ignored_values and self.ignore is not None:
            table[list(self.ignored_values)] = self.ignore
        return table

    def facts(self) -> dict[str, Any]:
        """Returns what metadata.json states."""
        return {
            "classes": [dataclasses.asdict(entry) for entry in self.classes],
            "ignored_values": list(self.ignored_values),
            "ignored_colours": [
                "#" + bytes(colour).hex()
                for colour, value in self.colours.items()
                if value == self.ignore
            ],
            "stored_for_ignored": self.ignore,
        }


NO_CLASSES = Classes((), (), {}, None, ())


@dataclasses.dataclass(frozen=True)
class _Row:
    line: int
    value: str
    name: str
    colour: str
    weight: str


def read_classes(path: str) -> Classes:
    """Reads a list of classes.

    A row is a mask value, 0 to 255, and its class. Several rows of one name are one class. A row
    with `ignore` for the value is a colour to ignore, one with `ignore` for the name a value.
    Without any value, those of colours are numbered from 1.

    Raises:
      BuildError: if it cannot be read; the message names the line.
    """

    def fail(row: _Row, why: str) -> BuildError:
        return BuildError(f"{path}, line {row.line}: {why}")

    rows = _rows(path)
    numbered = any(row.value.isdecimal() for row in rows)
    entries: list[MaskClass] = []
    ignored: list[int] = []
    colours: dict[str, int | None] = {}
    taken: dict[int, _Row] = {}
    uncoloured = 0
    for row in rows:
        is_ignored = IGNORE in (row.value.casefold(), row.name.casefold())
        if row.colour and not re.fullmatch("#[0-9a-fA-F]{6}", row.colour):
            raise fail(row, f"the colour is {row.colour!r}; expected one like '#3C1098'")
        value: int | None = None
        if row.value.isdecimal() and int(row.value) <= 255:
            value = int(row.value)
        elif not row.value and not numbered and not is_ignored:
            value = 1 + len(entries)
            if value > 255:
                raise fail(row, "there are more than 255 classes")
        elif row.value.casefold() != IGNORE and (row.value or not is_ignored):
            raise fail(row, f"the value is {row.value!r}; expected 0 to 255, or 'ignore'")
        if value is None and not row.colour:
            raise fail(row, "what is ignored has neither a value nor a colour")
        if value is not None:
            if other := taken.get(value):
                raise fail(row, f"the value {value} is that of line {other.line} too")
            taken[value] = row
        colour = row.colour.lower()
        if colour in colours:
            raise fail(row, f"the colour {row.colour} is that of another line too")
        if is_ignored:
            if row.weight:
                raise fail(row, "what is ignored has no weight: leave it empty")
            if value is not None:
                ignored.append(value)
            if colour:
                colours[colour] = None
            continue
        if not row.name:
            raise fail(row, "it has no name")
        assert value is not None
        if colour:
            colours[colour] = value
        else:
            known = next((entry for entry in entries if entry.name == row.name), None)
            colour = known.colour if known else _COLOURS[uncoloured % len(_COLOURS)]
            uncoloured += known is None
        weight = _weight(row.weight)
        if weight is None:
            raise fail(row, f"the weight is {row.weight!r}; expected a number from 0")
        for entry in entries:
            if entry.name == row.name and entry.weight != weight:
                raise fail(row, f"{row.name!r} has another weight in another line")
        entries.append(MaskClass(value, row.name, colour, weight))
    names = {entry.name for entry in entries}
    if len(names) < 2 or not any(entry.weight for entry in entries):
        raise BuildError(f"{path}: expected at least two classes, one with a weight above 0")
    free = [v for v in (255, 0, *range(254, 0, -1)) if v not in {entry.value for entry in entries}]
    ignore = free[0] if free else None
    if ignore is None and None in colours.values():
        raise BuildError(
            f"{path}: all 256 values are classes, and none is left for what is ignored"
        )
    packed = {tuple(bytes.fromhex(c[1:])): (ignore if v is None else v) for c, v in colours.items()}
    notes = []
    if uncoloured:
        notes.append(f"{uncoloured} classes have no colour in {path}: they get one for maps")
    return Classes(tuple(entries), tuple(ignored), packed, ignore, tuple(notes))  # type: ignore[arg-type]


def _weight(text: str) -> float | None:
    if not text:
        return 1.0
    try:
        weight = float(text)
    except ValueError:
        return None
    return weight if 0 <= weight < math.inf else None


def _rows(path: str) -> list[_Row]:
    lines = read_table(path, COLUMNS, aliases={"color": "colour"}, example=EXAMPLE)
    rows = [
        _Row(line, *(cells.get(name, "") for name in COLUMNS))
        for line, cells in lines
    ]  # fmt: skip
    if not rows:
        raise BuildError(f"{path} names no class: expected\n  {EXAMPLE}")
    return rows


def read_table(
    path: str,
    columns: Sequence[str],
    *,
    example: str,
    aliases: dict[str, str] | None = None,
    others: bool = False,
) -> list[tuple[int, dict[str, str]]]:
    """Reads a CSV file with a header.

    Args:
      path: the file.
      columns: their names.
      example: what it may look like, for messages.
      aliases: other names of columns.
      others: whether it may have other columns.

    Returns:
      For each row that is not empty its line, and its cells by column.

    Raises:
      BuildError: if it cannot be read.
    """
    aliases = aliases or {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip().casefold() for name in next(reader, [])]
            header = [aliases.get(name, name) for name in header]
            known = [name for name in header if name in columns]
            strange = [name for name in header if name not in columns]
            if not known or (strange and not others) or len(set(header)) < len(header):
                why = f"the columns are {', '.join(header) or 'none'}"
                raise BuildError(f"{path}: {why}; expected a header such as\n  {example}")
            table = []
            for cells in reader:
                texts = [cell.strip() for cell in cells]
                if len(texts) > len(header):
                    raise BuildError(
                        f"{path}, line {reader.line_num}: {len(texts)} cells, and the header has"
                        f" {len(header)}"
                    )
                if any(texts):
                    table.append((reader.line_num, dict(zip(header, texts, strict=False))))
            return table
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BuildError(f"cannot read {path}: {error}") from error
