"""Checks of files: layout, splits, domains, pairs of image and mask, formats, georeference."""

import collections
from collections.abc import Iterator

from flair_jax.data import reference_facts
from flair_jax.doctor.findings import Scan
from flair_jax.doctor.scan import NONE, UNNAMED
from flair_jax.doctor.severity import NAMED, Finding, by_kind, counted, listed, of_faults
from tfds_builder.flair.source import TEST_DOMAINS, VAL_DOMAINS

# Domains and number of patches, as published.
EXPECTED = {
    "train": (reference_facts.TRAIN_DOMAINS, reference_facts.TRAIN_PATCHES),
    "val": (VAL_DOMAINS, sum(reference_facts.DOMAIN_PATCHES["val"].values())),
    "test": (TEST_DOMAINS, reference_facts.TEST_PATCHES),
}


def layout(scan: Scan) -> Iterator[Finding]:
    """The layout, and the damaged files in it."""
    message = ", ".join(f"{count:,} files: {name}" for name, count in scan.layouts.most_common())
    if scan.built:
        message = f"a data set built by tfds_builder: {sum(scan.total.values()):,} patches"
    yield Finding("layout", "ok", message)
    if scan.damaged:
        yield listed(
            "layout", "fault", f"damaged archives and metadata files: {len(scan.damaged):,}",
            "download them again, or remove them", scan.damaged,
        )  # fmt: skip
    for note in scan.notes:
        yield Finding("layout", "note", note)


def splits(scan: Scan) -> Iterator[Finding]:
    """How many patches each split has, beside the published numbers."""
    counts = {split: (scan.total.get(split, 0), n) for split, (_, n) in EXPECTED.items()}
    whole = all(here == there for here, there in counts.values())
    shown = ", ".join(f"{split} {here:,} of {there:,}" for split, (here, there) in counts.items())
    if any(scan.total.values()):
        yield Finding("splits", "ok" if whole else "note", f"patches: {shown}")
    else:
        yield Finding("splits", "fault", "no patch can be built", "correct the faults below")


def domains(scan: Scan) -> Iterator[Finding]:
    """Domains of FLAIR #1 that are present, and whether they are complete where that is known."""
    here = sum(scan.patches.values(), collections.Counter())
    split_of = {domain: split for split, (names, _) in EXPECTED.items() for domain in names}
    absent = sorted(split_of.keys() - here)
    toy = scan.layouts.most_common(1)[0][0].startswith("toy")
    seen = f"{len(split_of) - len(absent)} of FLAIR #1's {len(split_of)} domains"
    if scan.built and not scan.all_read:
        yield Finding("domains", "ok" if not absent else "note", f"{seen} in the sample")
    elif absent:
        names = ", ".join(f"{domain} ({split_of[domain]})" for domain in absent[:NAMED])
        more = f" and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
        yield Finding(
            "domains", "note" if toy or scan.built else "warning",
            f"{seen}; absent: {names}{more}",
            "" if toy else "if all of FLAIR #1 is meant, download what is absent",
            len(absent),
        )  # fmt: skip
    else:
        yield Finding("domains", "ok", seen)
    if strange := here.keys() - split_of:
        yield listed(
            "domains", "note", f"domains that FLAIR #1 does not have, taken as train: "
            f"{', '.join(sorted(strange)[:NAMED])}", "", strange,
        )  # fmt: skip
    few = [
        f"{domain}: {here[domain]:,} of {count:,} patches"
        for known in reference_facts.DOMAIN_PATCHES.values()
        for domain, count in known.items()
        if 0 < here[domain] < count
    ]
    if few and not toy and not scan.built:
        yield listed(
            "domains", "warning", f"domains of val and test that are not complete: {len(few)}",
            "if all of FLAIR #1 is meant, check whether the download is complete", few,
        )  # fmt: skip


def pairs(scan: Scan) -> Iterator[Finding]:
    """Missing and duplicate files."""
    if scan.built:
        return
    faults = [f for f in scan.faults if (f.kind, f.split) != ("mask missing", "test")]
    unlabelled = [f.file for f in scan.faults if (f.kind, f.split) == ("mask missing", "test")]
    of_pairs = {k: of_kind for k, of_kind in by_kind(faults).items() if not k.endswith(" metadata")}
    for kind, of_kind in of_pairs.items():
        yield of_faults("pairs", kind, of_kind)
    if unlabelled:
        yield listed(
            "pairs", "note", f"test patches without mask: {len(unlabelled):,}",
            "they can be predicted; for scores, put flair_1_labels_test.zip beside the images",
            unlabelled,
        )  # fmt: skip
    if not of_pairs:
        paired = sum(scan.total.values()) - len(unlabelled)
        yield Finding("pairs", "ok", f"{paired:,} images, each with its mask, none twice")


def formats(scan: Scan) -> Iterator[Finding]:
    """Whether files can be read; their sizes, bands and types; the masks' values."""
    pixels, total = scan.pixels, sum(scan.total.values())
    share = "all" if scan.all_read else f"{pixels.patches:,} of"
    more = "" if scan.all_read else ": --sample=0 opens all"
    yield Finding("files", "ok", f"{share} {total:,} patches opened{more}")
    for kind, faults in by_kind(pixels.faults).items():
        yield of_faults("masks" if kind.startswith("mask ") else "files", kind, faults)
    sizes = {f"{rows} x {columns}": count for (rows, columns), count in pixels.sizes.items()}
    for what, counts, usual in (
        ("size", sizes, "512 x 512"),
        ("bands", {str(n): count for n, count in pixels.bands.items()}, "5"),
        ("type", pixels.dtypes, "uint8"),
    ):
        if counts:
            fits = set(counts) == {usual}
            message = f"{what}: {counted(counts)}" + ("" if fits else f"; FLAIR's is {usual}")
            yield Finding("files", "ok" if fits else "note", message)
    wrong = sum(int(counts[0] + counts[20:].sum()) for counts in pixels.masks.values())
    if wrong:
        percent = 100 * wrong / sum(counts.sum() for counts in pixels.masks.values())
        yield Finding(
            "masks", "fault", f"pixels with an invalid value: {wrong:,}, {percent:.2g} % of them"
        )
    elif pixels.masks:
        masks = sum(pixels.labelled.values())
        yield Finding("masks", "ok", f"values of {masks:,} masks all within 1 to 19")


def georeference(scan: Scan) -> Iterator[Finding]:
    """Coordinate systems and pixel sizes, and whether the metadata's centroids agree."""
    pixels = scan.pixels
    if not pixels.crs:
        return
    unnamed = "; an unnamed local one is common in FLAIR and not a fault" * bool(
        pixels.crs[UNNAMED]
    )
    yield Finding("CRS", "ok", f"coordinate systems: {counted(pixels.crs)}{unnamed}")
    if pixels.odd_crs:
        yield listed(
            "CRS", "warning", f"images that are not in Lambert-93: {len(pixels.odd_crs):,}",
            "predictions keep an image's own system; the metadata's positions are Lambert-93",
            (f"{file}: {crs}" for file, crs in pixels.odd_crs),
        )  # fmt: skip
    if lost := pixels.resolutions[NONE]:
        yield Finding(
            "CRS", "note", f"{lost:,} images have no georeference; their predictions will have none"
        )
    odd = {width: n for width, n in pixels.resolutions.items() if width not in ("0.2", NONE)}
    if odd:
        yield Finding(
            "CRS", "note", f"pixels that are not 0.2 wide as in FLAIR: {counted(odd)}",
            "the published weights expect 0.2 m",
        )  # fmt: skip
    far = [m for m in pixels.misplaced if m.outside]
    if far:
        yield listed(
            "metadata", "warning", f"centroids outside their image: {len(far):,} of "
            f"{pixels.compared:,}, up to {max(m.metres for m in far):,.0f} m from its centre",
            "these entries may be of other patches: compare them; with config.metadata.use a "
            "training learns wrong positions", (f"{m.file}: {m.metres:,.1f} m" for m in far),
        )  # fmt: skip
    if near := len(pixels.misplaced) - len(far):
        message = f"centroids over a pixel from the image's centre: {near:,} of {pixels.compared:,}"
        yield Finding("metadata", "note", message)
    if pixels.compared and not pixels.misplaced:
        message = f"{pixels.compared:,} centroids are at the centre of their image"
        yield Finding("metadata", "ok", message)
