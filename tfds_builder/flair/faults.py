"""Faults of a source: the error shown to the user, and faults of single patches."""

import collections
import csv
import os
from collections.abc import Iterable
from typing import NamedTuple

EXAMPLES_SHOWN = 5


def printable(text: str) -> str:
    """Returns the text with escapes for what is not Unicode, such as bytes of file names."""
    return text.encode("utf-8", "backslashreplace").decode()


class BuildError(ValueError):
    """The data set cannot be built or read; the message gives the reason and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Fault(NamedTuple):
    """One thing wrong with one patch; a warning, where the patch is stored nevertheless."""

    split: str
    kind: str
    file: str
    detail: str


def report(faults: Iterable[Fault]) -> str:
    """Returns one line per kind of fault, the most frequent first, with its first files."""
    kinds = collections.defaultdict(list)
    for fault in sorted(faults):
        kinds[fault.kind].append(fault)
    lines = []
    for kind, of_kind in sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0])):
        lines.append(f"  {kind}: {len(of_kind):,}")
        for fault in of_kind[:EXAMPLES_SHOWN]:
            lines.append(f"    {fault.split}  {fault.file}: {fault.detail}")
        if len(of_kind) > EXAMPLES_SHOWN:
            lines.append(f"    ... and {len(of_kind) - EXAMPLES_SHOWN:,} more")
    return "\n".join(lines)


def write_skipped(
    path: str | os.PathLike[str], faults: Iterable[Fault], folders: Iterable[str]
) -> None:
    """Writes the faults as a CSV file with the columns split, kind, file, detail.

    Args:
      path: the file to write.
      faults: what to write.
      folders: of the source and of lists; paths in them are written relative to them.
    """
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(Fault._fields)
        for fault in sorted(faults):
            writer.writerow(relative(field, folders) for field in fault)


def relative(text: str, folders: Iterable[str]) -> str:
    """Returns a text with the paths in it relative to the folders that they are in."""
    for folder in sorted(folders, key=len, reverse=True):
        text = text.replace(os.path.join(folder, ""), "").replace(folder, ".")
    return text
