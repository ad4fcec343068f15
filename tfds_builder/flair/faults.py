"""Faults of a source: the error shown to the user, and faults of single patches."""

import collections
import csv
import os
from collections.abc import Iterable
from typing import NamedTuple

FILES_SHOWN = 5


class BuildError(ValueError):
    """The data set cannot be built; the message gives the reason and the remedy."""


class Fault(NamedTuple):
    """One thing wrong with one patch."""

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
        for fault in of_kind[:FILES_SHOWN]:
            lines.append(f"    {fault.split}  {fault.file}: {fault.detail}")
        if len(of_kind) > FILES_SHOWN:
            lines.append(f"    ... and {len(of_kind) - FILES_SHOWN:,} more")
    return "\n".join(lines)


def write_skipped(path: str | os.PathLike[str], faults: Iterable[Fault]) -> None:
    """Writes the faults as a CSV file with the columns split, kind, file, detail."""
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(Fault._fields)
        writer.writerows(sorted(faults))
