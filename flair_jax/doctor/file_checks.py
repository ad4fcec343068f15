"""What lies in the folder: layout, splits, domains, pairs, and the form of the files."""

import collections
from collections.abc import Iterator

from flair_jax.data import reference_facts
from flair_jax.doctor.findings import Survey
from flair_jax.doctor.scan import NONE, UNNAMED
from flair_jax.doctor.severity import NAMED, Check, by_kind, counted, listed, of_faults
from tfds_builder.flair.source import TEST_DOMAINS, VAL_DOMAINS

# Domains and number of patches, as published.
EXPECTED = {
    "train": (reference_facts.TRAIN_DOMAINS, reference_facts.TRAIN_PATCHES),
    "val": (VAL_DOMAINS, sum(reference_facts.DOMAIN_PATCHES["val"].values())),
    "test": (TEST_DOMAINS, reference_facts.TEST_PATCHES),
}


def layout(survey: Survey) -> Iterator[Check]:
    """Which layout it is, and which files of it are damaged."""
    found = ", ".join(f"{count:,} files: {name}" for name, count in survey.layouts.most_common())
    if survey.built:
        found = f"a data set built by tfds_builder: {sum(survey.total.values()):,} patches"
    yield Check("layout", "ok", found)
    if survey.damaged:
        yield listed(
            "layout", "fault", f"damaged archives and metadata files: {len(survey.damaged):,}",
            "download them again, or move them away", survey.damaged,
        )  # fmt: skip
    for note in survey.notes:
        yield Check("layout", "note", note)


def splits(survey: Survey) -> Iterator[Check]:
    """How many patches each split has, beside the published numbers."""
    counts = {split: (survey.total.get(split, 0), n) for split, (_, n) in EXPECTED.items()}
    whole = all(here == there for here, there in counts.values())
    shown = ", ".join(f"{split} {here:,} of {there:,}" for split, (here, there) in counts.items())
    if any(survey.total.values()):
        yield Check("splits", "ok" if whole else "note", f"patches: {shown}")
    else:
        yield Check("splits", "fault", "no patch can be built", "mend the faults below")


def domains(survey: Survey) -> Iterator[Check]:
    """Which domains of FLAIR #1 are there, and whether they are complete where that is known."""
    here = sum(survey.patches.values(), collections.Counter())
    split_of = {domain: split for split, (names, _) in EXPECTED.items() for domain in names}
    absent = sorted(split_of.keys() - here)
    toy = survey.layouts.most_common(1)[0][0].startswith("toy")
    seen = f"{len(split_of) - len(absent)} of FLAIR #1's {len(split_of)} domains"
    if survey.built and not survey.all_read:
        yield Check("domains", "ok" if not absent else "note", f"{seen} in the sample")
    elif absent:
        names = ", ".join(f"{domain} ({split_of[domain]})" for domain in absent[:NAMED])
        more = f" and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
        yield Check(
            "domains", "note" if toy or survey.built else "warning",
            f"{seen}; absent: {names}{more}",
            "" if toy else "if all of FLAIR #1 is meant, download what is absent",
            len(absent),
        )  # fmt: skip
    else:
        yield Check("domains", "ok", seen)
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
    if few and not toy and not survey.built:
        yield listed(
            "domains", "warning", f"domains of val and test that are not complete: {len(few)}",
            "if all of FLAIR #1 is meant, look whether the download was cut off", few,
        )  # fmt: skip


def pairs(survey: Survey) -> Iterator[Check]:
    """What is missing or doubled."""
    if survey.built:
        return
    faults = [f for f in survey.faults if (f.kind, f.split) != ("mask missing", "test")]
    unlabelled = [f.file for f in survey.faults if (f.kind, f.split) == ("mask missing", "test")]
    of_pairs = {k: found for k, found in by_kind(faults).items() if not k.endswith(" metadata")}
    for kind, found in of_pairs.items():
        yield of_faults("pairs", kind, found)
    if unlabelled:
        yield listed(
            "pairs", "note", f"test patches without mask: {len(unlabelled):,}",
            "they can be predicted; for scores, put flair_1_labels_test.zip beside the images",
            unlabelled,
        )  # fmt: skip
    if not of_pairs:
        paired = sum(survey.total.values()) - len(unlabelled)
        yield Check("pairs", "ok", f"{paired:,} images, each with its mask, none twice")


def forms(survey: Survey) -> Iterator[Check]:
    """Whether files can be read; their sizes, bands and types; the masks' values."""
    pixels, total = survey.pixels, sum(survey.total.values())
    share = "all" if survey.all_read else f"{pixels.patches:,} of"
    more = "" if survey.all_read else ": --sample=0 opens all"
    yield Check("files", "ok", f"{share} {total:,} patches opened{more}")
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
            found = f"{what}: {counted(counts)}" + ("" if fits else f"; FLAIR's is {usual}")
            yield Check("files", "ok" if fits else "note", found)
    wrong = sum(int(counts[0] + counts[20:].sum()) for counts in pixels.masks.values())
    if wrong:
        percent = 100 * wrong / sum(counts.sum() for counts in pixels.masks.values())
        yield Check("masks", "fault", f"pixels of no class: {wrong:,}, {percent:.2g} % of them")
    elif pixels.masks:
        masks = sum(pixels.labelled.values())
        yield Check("masks", "ok", f"values of {masks:,} masks all within 1 to 19")


def places(survey: Survey) -> Iterator[Check]:
    """Coordinate systems and pixel sizes, and whether the metadata's centroids agree."""
    pixels = survey.pixels
    if not pixels.crs:
        return
    unnamed = "; an unnamed local one is common in FLAIR, and no fault" * bool(pixels.crs[UNNAMED])
    yield Check("CRS", "ok", f"coordinate systems: {counted(pixels.crs)}{unnamed}")
    if pixels.odd_crs:
        yield listed(
            "CRS", "warning", f"images that are not in Lambert-93: {len(pixels.odd_crs):,}",
            "predictions keep an image's own system; the metadata's positions are Lambert-93",
            (f"{file}: {crs}" for file, crs in pixels.odd_crs),
        )  # fmt: skip
    if lost := pixels.resolutions[NONE]:
        yield Check("CRS", "note", f"{lost:,} images have no georeference: nor will predictions")
    odd = {width: n for width, n in pixels.resolutions.items() if width not in ("0.2", NONE)}
    if odd:
        yield Check(
            "CRS", "note", f"pixels that are not 0.2 wide, as FLAIR's: {counted(odd)}",
            "the published weights expect 0.2 m",
        )  # fmt: skip
    far = [m for m in pixels.misplaced if m.outside]
    if far:
        yield listed(
            "metadata", "warning", f"centroids outside their image: {len(far):,} of "
            f"{pixels.compared:,}, up to {max(m.metres for m in far):,.0f} m from its centre",
            "these entries may be of other patches: compare them; with config.metadata.use a "
            "training learns wrong places", (f"{m.file}: {m.metres:,.1f} m" for m in far),
        )  # fmt: skip
    if near := len(pixels.misplaced) - len(far):
        found = f"centroids over a pixel from the image's centre: {near:,} of {pixels.compared:,}"
        yield Check("metadata", "note", found)
    if pixels.compared and not pixels.misplaced:
        found = f"{pixels.compared:,} centroids lie at the centre of their image"
        yield Check("metadata", "ok", found)
