"""The checks: tables of what is looked for, and the few that compare numbers."""

import collections
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from flair_jax.data.metadata import YEARS
from flair_jax.doctor import statistics
from flair_jax.doctor.findings import NAMED, Finding, listed
from flair_jax.doctor.scan import Entry, Opened, Scan
from tfds_builder.flair.faults import Fault
from tfds_builder.flair.patches import LAMBERT_93, NONE, UNNAMED, Header, by, crs_name, pixel_width
from tfds_builder.flair.reference import (
    BANDS,
    DOMAIN_PATCHES,
    DOMAINS,
    DOMAINS_2,
    NAME,
    NAME_2,
    TEST_DOMAINS,
    TEST_PATCHES,
    TEST_PATCHES_2,
    TRAIN_DOMAINS,
    TRAIN_PATCHES,
    VAL_DOMAINS,
)

# What metropolitan France spans in Lambert-93, in metres: x and y, lowest and highest.
FRANCE = ((99_000, 1_243_000), (6_046_000, 7_111_000))
MONTHS = range(4, 12)  # of FLAIR's acquisitions
CAMERAS = ("UCE", "CAMERA#")
VAL_PATCHES = sum(DOMAIN_PATCHES["val"].values())

_AGAIN = "download the archive that holds them again, or replace them"
_FORM = "replace these files; FLAIR's images have 5 bands of uint8, its masks one"
# By kind of fault, as the builder calls it: topic and remedy.
FAULTS = {
    "mask missing": (
        "pairs", "put flair_labels_train.zip beside the images, or remove the images",
    ),
    "mask without image": (
        "pairs", "put the archive of the images beside the masks, or remove the masks",
    ),
    "number twice": ("pairs", "keep one copy: patches are identified by their number"),
    "contradictory metadata": ("pairs", "keep one metadata file"),
    "no metadata": (
        "metadata", "put flair-1_metadata_aerial.zip beside the images, zipped or unpacked",
    ),
    "malformed metadata": (
        "metadata", "download flair-1_metadata_aerial.zip again, or correct these entries",
    ),
    "image unreadable": ("files", _AGAIN),
    "mask unreadable": ("masks", _AGAIN),
    "record unreadable": ("files", "build the data set anew"),
    "size not the data set's": ("files", "all patches of a data set have one size: remove these"),
    "image not uint8": ("files", _FORM),
    f"image without {len(BANDS)} bands": ("files", _FORM),
    "mask not one band of uint8": ("masks", _FORM),
    "mask of another size than the image": ("masks", "remove these patches, or replace the masks"),
    "mask at another position than the image": ("masks", "these masks are of other patches"),
    "mask in another CRS than the image": ("masks", "these masks are of other patches"),
    "mask value outside 1..19": ("masks", "FLAIR's classes are 1 to 19: replace these masks"),
}  # fmt: skip


class Check(NamedTuple):
    """What must not be found, and how bad it is."""

    topic: str
    severity: str
    text: str
    remedy: str
    found: Callable[[Scan], list[str]]  # one text for each


def _entries(is_wrong: Callable[[Entry], bool], field: str) -> Callable[[Scan], list[str]]:
    """Finds metadata entries."""
    shown = operator.attrgetter(field)
    return lambda scan: [f"{e.file}: {shown(e)}" for e in scan.entries if is_wrong(e)]


def _centroids(is_wrong: Callable[[Opened], bool]) -> Callable[[Scan], list[str]]:
    """Finds patches by the distance to their centroid."""
    return lambda scan: [f"{p.file}: {p.metres:,.1f} m" for p in scan.opened if is_wrong(p)]


def _is_in_france(entry: Entry) -> bool:
    return all(
        low <= value <= high for (low, high), value in zip(FRANCE, entry.centroid, strict=True)
    )


CHECKS = (
    Check(
        "metadata", "warning", "entries of absent patches",
        "images may be missing; harmless if only a part of FLAIR #1 is meant",
        lambda scan: list(scan.orphans),
    ),
    Check(
        "metadata", "warning", f"entries of a year outside {min(YEARS)} to {max(YEARS)}",
        "the reference's metadata encoding refuses such years: correct these, or set "
        "config.metadata.encoding='corrected'",
        _entries(lambda entry: int(entry.date[:4]) not in YEARS, "date"),
    ),
    Check(
        "metadata", "warning", "entries of another year than their domain",
        "these entries may be of other patches",
        _entries(lambda entry: entry.date[:4] != entry.domain[-4:], "date"),
    ),
    Check(
        "metadata", "note", "entries of December to March, where FLAIR has none", "",
        _entries(lambda entry: int(entry.date[5:7]) not in MONTHS, "date"),
    ),
    Check(
        "metadata", "note", "entries of cameras that FLAIR does not name", "",
        _entries(lambda entry: not entry.camera.startswith(CAMERAS), "camera"),
    ),
    Check(
        "metadata", "warning", "entries outside metropolitan France",
        "x and y are Lambert-93 (EPSG:2154), in metres, in this order",
        _entries(lambda entry: not _is_in_france(entry), "centroid"),
    ),
    Check(
        "metadata", "warning", "centroids outside their image",
        "these entries may be of other patches: compare them; with config.metadata.use a "
        "training learns wrong positions", _centroids(lambda patch: patch.is_outside),
    ),
    Check(
        "metadata", "note", "centroids over a pixel from the image's centre", "",
        _centroids(lambda patch: patch.is_misplaced and not patch.is_outside),
    ),
    Check(
        "CRS", "warning", "images that are not in Lambert-93",
        "predictions keep an image's own system; the metadata's positions are Lambert-93",
        lambda scan: [
            f"{patch.file}: {crs}" for patch, header in scan.headers
            if (crs := crs_name(header.crs)) not in (LAMBERT_93, UNNAMED, NONE)
        ],
    ),
    Check(
        "CRS", "note", "images without georeference, whose predictions will have none", "",
        lambda scan: [patch.file for patch, header in scan.headers if not header.has_position],
    ),
    Check(
        "bands", "warning", "images of one colour",
        "inspect these images, and download them again",
        lambda scan: [p.file for p in scan.opened if set(range(len(BANDS) - 1)) <= p.flat],
    ),
)  # fmt: skip


def examine(scan: Scan) -> list[Finding]:
    """The findings of all checks of a scan; of FLAIR's data beside what is published of it."""
    if not scan.data.is_flairs:
        return [*_layout(scan), *_own(scan), *_faults(scan), *_own_formats(scan),
                *statistics.constant_bands(scan), *statistics.absent_classes(scan)]  # fmt: skip
    return [
        *_layout(scan), *_splits(scan), *_domains(scan), *_faults(scan), *_formats(scan),
        *_georeference(scan), *_listed(scan),
        *statistics.constant_bands(scan), *statistics.bands(scan), *statistics.height(scan),
        *statistics.classes(scan),
    ]  # fmt: skip


def _own(scan: Scan) -> Iterator[Finding]:
    """Splits and groups of a data set of users' own images."""
    counts = ", ".join(f"{split} {count:,}" for split, count in scan.total.items())
    missing = [split for split in ("train", "val") if split not in scan.total]
    message = f"{scan.data.name!r}, patches: {counts}"
    if missing:
        remedy = "without both it can be predicted, but not trained on"
        yield Finding("splits", "warning", f"{message}; none of {', '.join(missing)}", remedy)
    else:
        yield Finding("splits", "ok", message)
    part = "" if scan.all_opened else " in the sample"
    for split, groups in scan.domains.items():
        names = sorted(groups)
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        message = f"{split}, {len(names)}{part}: {', '.join(names[:NAMED])}{more}"
        yield Finding("groups", "ok", message)


def _own_formats(scan: Scan) -> Iterator[Finding]:
    share = "all" if scan.all_opened else f"{len(scan.opened):,} of"
    more = "" if scan.all_opened else ": --sample=0 opens all"
    yield Finding("files", "ok", f"{share} {scan.num_patches:,} patches opened{more}")
    for what, name in (
        ("size", "sizes"), ("coordinate systems", "crs"), ("pixel sizes", "pixel_widths"),
    ):  # fmt: skip
        if counts := tally(scan, name):
            yield Finding("files", "ok", f"{what}: {counted(counts)}")
    if flat := [p.file for p in scan.opened if p.header and len(p.flat) == p.header.bands]:
        remedy = "inspect these images; of the rim of a larger image they may be empty"
        yield listed("bands", "note", f"images of one colour: {len(flat):,}", remedy, flat)


def _layout(scan: Scan) -> Iterator[Finding]:
    message = ", ".join(f"{count:,} files: {name}" for name, count in scan.layouts.most_common())
    if scan.built:
        message = f"a data set built by tfds_builder: {scan.num_patches:,} patches"
    yield Finding("layout", "ok", message)
    if scan.damage:
        yield listed(
            "layout", "fault", f"damaged files: {len(scan.damage):,}",
            "build the data set anew" if scan.built else "download them again, or remove them",
            scan.damage,
        )  # fmt: skip
    for note in scan.notes:
        yield Finding("layout", "note", note)


def _splits(scan: Scan) -> Iterator[Finding]:
    test = TEST_PATCHES_2 if scan.data.name == NAME_2 else TEST_PATCHES
    published = {"train": TRAIN_PATCHES, "val": VAL_PATCHES, "test": test}
    counts = {split: scan.total.get(split, 0) for split in published}
    shown = ", ".join(f"{split} {n:,} of {published[split]:,}" for split, n in counts.items())
    if scan.num_patches:
        whole = counts == published
        yield Finding("splits", "ok" if whole else "note", f"patches: {shown}")
    else:
        yield Finding("splits", "fault", "no patch can be built", "correct the faults below")


def _domains(scan: Scan) -> Iterator[Finding]:
    is_2 = scan.data.name == NAME_2  # whose test domains are not known here
    of_splits = [of_split for s, of_split in scan.domains.items() if not is_2 or s != "test"]
    here = sum(of_splits, collections.Counter())
    domains, name = (DOMAINS_2, NAME_2) if is_2 else (DOMAINS, NAME)
    is_toy = scan.layouts.most_common(1)[0][0].startswith("toy")
    is_part = is_toy or scan.built
    remedy = "" if is_toy else "if all of FLAIR #1 is meant, download what is absent"
    absent = sorted(domains - here.keys())
    seen = f"{len(domains) - len(absent)} of {name}'s {len(domains)} domains"
    seen += " of train and val" if is_2 else ""
    if scan.built and not scan.all_opened:
        yield Finding("domains", "note" if absent else "ok", f"{seen} in the sample")
    elif absent:
        names = ", ".join(f"{domain} ({_split_of(domain)})" for domain in absent[:NAMED])
        more = f" and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
        message = f"{seen}; absent: {names}{more}"
        severity = "note" if is_part else "warning"
        yield Finding("domains", severity, message, remedy, len(absent))
    else:
        yield Finding("domains", "ok", seen)
    if strange := sorted(here.keys() - domains):
        names = ", ".join(strange[:NAMED])
        message = f"domains that {name} does not have, taken as train: {names}"
        yield listed("domains", "note", message, "", strange)
    incomplete = [
        f"{domain}: {here[domain]:,} of {count:,} patches"
        for of_split in DOMAIN_PATCHES.values()
        for domain, count in of_split.items()
        if 0 < here[domain] < count
    ]
    if incomplete and not is_part:
        yield listed(
            "domains", "warning",
            f"domains of val and test that are not complete: {len(incomplete)}",
            "if all of FLAIR #1 is meant, check whether the download is complete", incomplete,
        )  # fmt: skip


def _split_of(domain: str) -> str:
    splits = {"train": TRAIN_DOMAINS, "val": VAL_DOMAINS, "test": TEST_DOMAINS}
    return next(split for split, domains in splits.items() if domain in domains)


def _faults(scan: Scan) -> Iterator[Finding]:
    """Faults of the builder's kinds, the most frequent first; test patches may have no mask."""
    kinds: dict[str, list[Fault]] = collections.defaultdict(list)
    unlabelled = []
    for fault in (*scan.faults, *(fault for patch in scan.opened for fault in patch.faults)):
        if (fault.kind, fault.split) == ("mask missing", "test"):
            unlabelled.append(fault.file)
        else:
            kinds[fault.kind].append(fault)
    for kind, faults in sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0])):
        topic, remedy = FAULTS[kind]
        items = (f"{fault.file}: {fault.detail}" for fault in faults)
        yield listed(topic, "fault", f"{kind}: {len(faults):,}", remedy, items)
    if unlabelled:
        yield listed(
            "pairs", "note", f"test patches without mask: {len(unlabelled):,}",
            "they can be predicted; for scores, put flair_1_labels_test.zip beside the images",
            unlabelled,
        )  # fmt: skip
    if not scan.built and not any(FAULTS[kind][0] == "pairs" for kind in kinds):
        paired = scan.num_patches - len(unlabelled)
        yield Finding("pairs", "ok", f"{paired:,} images, each with its mask, none twice")


def _formats(scan: Scan) -> Iterator[Finding]:
    share = "all" if scan.all_opened else f"{len(scan.opened):,} of"
    more = "" if scan.all_opened else ": --sample=0 opens all"
    yield Finding("files", "ok", f"{share} {scan.num_patches:,} patches opened{more}")
    for what, name, usual in (
        ("size", "sizes", "512 x 512"),
        ("bands", "bands_per_image", "5"),
        ("type", "dtypes", "uint8"),
    ):
        if counts := tally(scan, name):
            fits = set(counts) == {usual}
            message = f"{what}: {counted(counts)}" + ("" if fits else f"; FLAIR's is {usual}")
            yield Finding("files", "ok" if fits else "note", message)
    masks = scan.histograms.masks
    wrong = sum(int(counts[0] + counts[20:].sum()) for counts in masks.values())
    if wrong:
        percent = 100 * wrong / sum(counts.sum() for counts in masks.values())
        message = f"pixels with an invalid value: {wrong:,}, {percent:.2g} % of them"
        yield Finding("masks", "fault", message)
    elif masks:
        message = f"values of {scan.histograms.num_masks:,} masks all within 1 to 19"
        yield Finding("masks", "ok", message)


TALLIES: dict[str, Callable[[Header], str]] = {
    "sizes": lambda header: by(header.shape),
    "bands_per_image": lambda header: str(header.bands),
    "dtypes": lambda header: ", ".join(sorted(set(header.dtypes))),
    "crs": lambda header: crs_name(header.crs),
    "pixel_widths": lambda header: (
        f"{pixel_width(header.transform):.6g}" if header.has_position else NONE
    ),
}


def tally(scan: Scan, name: str) -> collections.Counter[str]:
    """Number of opened images by what one of `TALLIES` tells of them."""
    return collections.Counter(TALLIES[name](header) for _, header in scan.headers)


def _georeference(scan: Scan) -> Iterator[Finding]:
    crs, widths = tally(scan, "crs"), tally(scan, "pixel_widths")
    if crs:
        unnamed = (
            "; an unnamed local one is common in FLAIR and not a fault" if UNNAMED in crs else ""
        )
        yield Finding("CRS", "ok", f"coordinate systems: {counted(crs)}{unnamed}")
    if odd := {width: n for width, n in widths.items() if width not in ("0.2", NONE)}:
        message = f"pixels that are not 0.2 wide as in FLAIR: {counted(odd)}"
        yield Finding("CRS", "note", message, "the published weights expect 0.2 m")
    compared = [patch for patch in scan.opened if patch.metres is not None]
    if compared and not any(patch.is_misplaced for patch in compared):
        message = f"{len(compared):,} centroids are at the centre of their image"
        yield Finding("metadata", "ok", message)
    if scan.entries:
        dates = [entry.date for entry in scan.entries]
        cameras = counted(collections.Counter(entry.camera for entry in scan.entries))
        message = f"{len(dates):,} entries: {min(dates)} to {max(dates)}; cameras {cameras}"
        yield Finding("metadata", "ok", message)


def _listed(scan: Scan) -> Iterator[Finding]:
    for check in CHECKS:
        if found := check.found(scan):
            message = f"{check.text}: {len(found):,}"
            yield listed(check.topic, check.severity, message, check.remedy, found)


def counted(counts: Mapping[str, int]) -> str:
    """`a (3), b (1)`, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} ({count:,})" for name, count in ordered)
