"""Severity of findings, remedies of faults, and findings that name files."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from tfds_builder.flair.faults import Fault

SEVERITIES = ("ok", "note", "warning", "fault")  # from best to worst
NAMED = 10  # files named of each kind

_AGAIN = "download the archive that holds them again, or replace them"
# Remedies by kind of fault.
REMEDIES = {
    "mask missing": "put flair_labels_train.zip beside the images, or remove the images",
    "mask without image": "put the archive of the images beside the masks, or remove the masks",
    "number twice": "keep one copy: patches are identified by their number",
    "contradictory metadata": "keep one metadata file",
    "no metadata": "put flair-1_metadata_aerial.zip beside the images, zipped or unpacked",
    "malformed metadata": "download flair-1_metadata_aerial.zip again, or correct these entries",
    "image unreadable": _AGAIN,
    "mask unreadable": _AGAIN,
    "record unreadable": "build the data set anew",
    "size not the data set's": "all patches of a data set have one size: remove these",
    "mask of another size than the image": "remove these patches, or replace the masks",
    "mask value outside 1..19": "FLAIR's classes are 1 to 19: replace these masks",
}
_OTHER_REMEDY = "replace these files; FLAIR's images have 5 bands of uint8, its masks one"


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        topic: "layout", "masks", ...
        severity: one of `SEVERITIES`. A fault stops a build, or makes a training wrong.
        message: what was found, as a sentence without its full stop.
        remedy: what to do; "" for nothing.
        count: of files, entries, ... that it is about.
        examples: the first `NAMED` of them.
    """

    topic: str
    severity: str
    message: str
    remedy: str = ""
    count: int = 0
    examples: tuple[str, ...] = ()


def listed(topic: str, severity: str, message: str, remedy: str, files: Iterable[str]) -> Finding:
    """A finding that names files."""
    files = sorted(files)
    return Finding(topic, severity, message, remedy, len(files), tuple(files[:NAMED]))


def of_faults(topic: str, kind: str, faults: Sequence[Fault]) -> Finding:
    """The finding for one kind of fault."""
    remedy = REMEDIES.get(kind, _OTHER_REMEDY)
    return listed(
        topic,
        "fault",
        f"{kind}: {len(faults):,}",
        remedy,
        (f"{f.file}: {f.detail}" for f in faults),
    )


def by_kind(faults: Iterable[Fault]) -> dict[str, list[Fault]]:
    """Faults by kind, the most frequent first."""
    kinds = collections.defaultdict(list)
    for fault in faults:
        kinds[fault.kind].append(fault)
    return dict(sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0])))


def counted(counts: Mapping[str, int]) -> str:
    """`a (3), b (1)`, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} ({count:,})" for name, count in ordered)


def worst(checks: Iterable[Finding]) -> str:
    """The worst severity; "ok" if there are no findings."""
    return max((c.severity for c in checks), key=SEVERITIES.index, default="ok")
