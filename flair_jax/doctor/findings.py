"""Findings of the checks: their severity, and what can be done about them."""

import dataclasses
from collections.abc import Iterable

SEVERITIES = ("ok", "note", "warning", "fault")  # from best to worst
NAMED = 10  # files named of each kind


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


def listed(topic: str, severity: str, message: str, remedy: str, items: Iterable[str]) -> Finding:
    """A finding that names its first items, in order."""
    items = sorted(items)
    return Finding(topic, severity, message, remedy, len(items), tuple(items[:NAMED]))


def worst(findings: Iterable[Finding]) -> str:
    """The worst severity; "ok" if there are no findings."""
    return max((f.severity for f in findings), key=SEVERITIES.index, default="ok")
