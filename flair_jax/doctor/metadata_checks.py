"""Checks of metadata: coverage and plausibility."""

import collections
from collections.abc import Iterator

from flair_jax.data.metadata import YEARS
from flair_jax.doctor.findings import Entry, Scan
from flair_jax.doctor.severity import Finding, by_kind, counted, listed, of_faults

# What metropolitan France spans in Lambert-93, in metres: x and y, lowest and highest.
FRANCE = ((99_000, 1_243_000), (6_046_000, 7_111_000))
MONTHS = range(4, 12)  # of FLAIR's acquisitions
CAMERAS = ("UCE", "CAMERA#")


def entries(scan: Scan) -> Iterator[Finding]:
    """Coverage, dates, cameras and positions."""
    for kind, faults in by_kind(scan.faults).items():
        if kind in ("no metadata", "malformed metadata"):
            yield of_faults("metadata", kind, faults)
    if scan.orphans:
        yield listed(
            "metadata", "warning", f"entries of absent patches: {len(scan.orphans):,}",
            "images may be missing; harmless if only a part of FLAIR #1 is meant", scan.orphans,
        )  # fmt: skip
    if not scan.entries:
        return
    dates = [entry.date for entry in scan.entries]
    cameras = collections.Counter(entry.camera for entry in scan.entries)
    message = f"{len(dates):,} entries: {min(dates)} to {max(dates)}; cameras {counted(cameras)}"
    yield Finding("metadata", "ok", message)
    low, high = min(YEARS), max(YEARS)
    for severity, fits, field, what, remedy in (
        (
            "warning", _year_known, "date", f"of a year outside {low} to {high}",
            "the reference's metadata encoding refuses such years: correct these, or set "
            "config.metadata.encoding='corrected'",
        ),
        (
            "warning", _year_of_domain, "date", "of another year than their domain",
            "these entries may be of other patches",
        ),
        ("note", _month_known, "date", "of December to March, where FLAIR has none", ""),
        ("note", _camera_known, "camera", "of cameras that FLAIR does not name", ""),
        (
            "warning", _in_france, "centroid", "outside metropolitan France",
            "x and y are Lambert-93 (EPSG:2154), in metres, in this order",
        ),
    ):  # fmt: skip
        wrong = [entry for entry in scan.entries if not fits(entry)]
        if wrong:
            yield listed(
                "metadata", severity, f"entries {what}: {len(wrong):,}", remedy,
                (f"{entry.file}: {getattr(entry, field)}" for entry in wrong),
            )  # fmt: skip


def _year_known(entry: Entry) -> bool:
    return int(entry.date[:4]) in YEARS


def _year_of_domain(entry: Entry) -> bool:
    return entry.date[:4] == entry.domain[-4:]


def _month_known(entry: Entry) -> bool:
    return int(entry.date[5:7]) in MONTHS


def _camera_known(entry: Entry) -> bool:
    return entry.camera.startswith(CAMERAS)


def _in_france(entry: Entry) -> bool:
    return all(
        low <= value <= high for (low, high), value in zip(FRANCE, entry.centroid, strict=True)
    )
