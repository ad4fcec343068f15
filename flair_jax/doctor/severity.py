"""The verdicts that all checks share."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from tfds_builder.flair.faults import Fault

VERDICTS = ("ok", "note", "warning", "fault")  # from good to bad
NAMED = 10  # files named of each kind

_AGAIN = "download the archive that holds them again, or replace them"
# By kind of fault: what to do.
REMEDIES = {
    "mask missing": "put flair_labels_train.zip beside the images, or take the images away",
    "mask without image": "put the archive of the images beside the masks, or take the masks away",
    "number twice": "keep one copy: patches are known by their number",
    "contradictory metadata": "keep one metadata file",
    "no metadata": "put flair-1_metadata_aerial.zip beside the images, unopened or unpacked",
    "malformed metadata": "download flair-1_metadata_aerial.zip again, or mend these entries",
    "image unreadable": _AGAIN,
    "mask unreadable": _AGAIN,
    "record unreadable": "build the data set anew",
    "size not the data set's": "all patches of a data set have one size: take these away",
    "mask of another size than the image": "take these patches away, or replace the masks",
    "mask value outside 1..19": "0 and 20 to 255 are no classes of FLAIR: replace these masks",
}
_OTHER_REMEDY = "replace these files; FLAIR's images have 5 bands of uint8, its masks one"


@dataclasses.dataclass(frozen=True)
class Check:
    """What one look showed.

    Attributes:
        about: "layout", "masks", ...
        verdict: one of `VERDICTS`. A fault stops a build, or makes a training wrong.
        found: what was found, as a sentence without its full stop.
        remedy: what to do; "" if nothing.
        count: of files, entries, ... that it is about.
        examples: the first `NAMED` of them.
    """

    about: str
    verdict: str
    found: str
    remedy: str = ""
    count: int = 0
    examples: tuple[str, ...] = ()


def listed(about: str, verdict: str, found: str, remedy: str, files: Iterable[str]) -> Check:
    """A check that names files."""
    files = sorted(files)
    return Check(about, verdict, found, remedy, len(files), tuple(files[:NAMED]))


def of_faults(about: str, kind: str, faults: Sequence[Fault]) -> Check:
    """The check of one kind of fault."""
    remedy = REMEDIES.get(kind, _OTHER_REMEDY)
    return listed(
        about,
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


def worst(checks: Iterable[Check]) -> str:
    """The worst verdict, "ok" of none."""
    return max((c.verdict for c in checks), key=VERDICTS.index, default="ok")
