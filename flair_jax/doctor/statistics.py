"""Checks of pixels against published figures: bands, scaling of the height, classes."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from flair_jax.data import reference_facts
from flair_jax.data.nomenclature import FLAIR
from flair_jax.doctor.findings import Finding
from flair_jax.doctor.scan import Scan
from tfds_builder.flair.reference import NAME_2, PATCHES

FAR = 0.5  # a mean is far from the published one beyond this many published standard deviations
UNLIKE = 10  # percentage of pixels that differ in class from the published frequencies
LEARNT = range(1, 13)  # mask values of the baseline's scored classes
SPLITS = {"train and val": ("train", "val"), "test": ("test",)}  # as the statistics are published
STEPS, STRETCHED = "steps of 0.2 m", "stretched"


@dataclasses.dataclass(frozen=True)
class Band:
    """One band of the sampled images, in digital numbers; `flat`: share of images of one value."""

    mean: float
    std: float
    lowest: int
    highest: int
    flat: float

    @property
    def metres(self) -> float:
        """The mean as a height in steps of 0.2 m."""
        return self.mean / 5


def of_counts(counts: np.ndarray, flat: float = 0.0) -> Band:
    """The statistics of how often each value occurs, (256,) integers, not all 0."""
    values = np.arange(256)
    mean = float(np.average(values, weights=counts))
    std = float(np.sqrt(np.average((values - mean) ** 2, weights=counts)))
    seen = np.flatnonzero(counts)
    return Band(mean, std, int(seen[0]), int(seen[-1]), flat)


def bands_of(scan: Scan) -> dict[str, Band]:
    """By band; of train and val, as the published ones are, or of all if there is neither."""
    values = scan.histograms.images
    of_train = [values[split] for split in SPLITS["train and val"] if split in values]
    counted = of_train or list(values.values())
    if not counted:
        return {}
    totals = zip(scan.data.bands, np.sum(counted, axis=0), strict=True)
    flat = collections.Counter(band for patch in scan.opened for band in patch.flat)
    return {
        name: of_counts(counts, flat[i] / scan.histograms.num_images)
        for i, (name, counts) in enumerate(totals)
    }


def constant_bands(scan: Scan) -> Iterator[Finding]:
    """Bands that have one value in all images, of whatever split."""
    if not scan.histograms.images:
        return
    seen = np.sum(list(scan.histograms.images.values()), axis=0) > 0
    constant = [n for n, of_band in zip(scan.data.bands, seen, strict=True) if of_band.sum() == 1]
    if constant:
        yield Finding(
            "bands", "warning", f"constant in all images: {', '.join(constant)}",
            "nothing can be learnt from such a band: leave it out with config.bands", len(constant),
            tuple(constant),
        )  # fmt: skip


def shares_of_classes(scan: Scan) -> dict[str, dict[str, float]]:
    """{split: {class: per cent of its pixels}} of a data set with classes of its own.

    And "ignored" for the pixels that are of no class.
    """
    shares = {}
    for split, counts in scan.histograms.masks.items():
        pixels = max(int(counts.sum()), 1)
        of_split = {
            c.name: 100 * int(counts[list(c.values)].sum()) / pixels
            for c in scan.data.nomenclature.classes
        }
        shares[split] = of_split | {"ignored": max(0.0, 100 - sum(of_split.values()))}
    return shares


def absent_classes(scan: Scan) -> Iterator[Finding]:
    """Classes of a data set with classes of its own that its training patches do not show.

    Those of weight 0 are not learnt anyway.
    """
    shares = shares_of_classes(scan).get("train", {})
    learnt = [c.name for c in scan.data.nomenclature.classes if c.weight]
    absent = [name for name in learnt if shares and not shares[name]]
    part = "" if scan.all_opened else " in the sample"
    yield from _absence("train", absent, part)


def _absence(split: str, absent: Sequence[str], part: str = "") -> Iterator[Finding]:
    if absent:
        yield Finding(
            "classes", "warning", f"{split}: no pixel of {', '.join(absent)}{part}",
            "a class that does not occur cannot be learnt", len(absent), tuple(absent),
        )  # fmt: skip


def bands(scan: Scan) -> Iterator[Finding]:
    """Radiometry against the published one."""
    measured = bands_of(scan)
    far = []
    for name, band in measured.items():
        mean, std = reference_facts.BANDS[name]
        off = (band.mean - mean) / std
        if name != "height" and (abs(off) > FAR or not 0.5 < band.std / std < 2):
            far.append(f"{name}: {band.mean:.1f} +- {band.std:.1f}, published {mean:g} +- {std:g}")
    if far:
        yield Finding(
            "bands", "warning", f"far from published values: {len(far)} of 4 bands besides height",
            "are these FLAIR's images, in the order red, green, blue, near infrared, height? "
            "Published weights may do badly on them; a model trained on them need not", len(far),
            tuple(far),
        )  # fmt: skip
    elif measured:
        yield Finding("bands", "ok", "red, green, blue and nir are near the published values")


def height_scaling(mean: float) -> str:
    """The scaling that a mean of the height band indicates; "" for neither.

    Heights are known in steps of 0.2 m, as the images are described, and stretched, as the
    published mean and standard deviation are: see `reference_facts`. The threshold is the geometric
    mean of both means. Below 8, and above 100, neither is plausible for a landscape as
    mixed as FLAIR's.
    """
    if not 8 <= mean <= 100:
        return ""
    steps, stretched = (
        reference_facts.HEIGHT_IN_STEPS_OF_20_CM[0],
        reference_facts.BANDS["height"][0],
    )
    return STEPS if mean < np.sqrt(steps * stretched) else STRETCHED


def height(scan: Scan) -> Iterator[Finding]:
    """The scaling of the height band."""
    band = bands_of(scan).get("height")
    if band is None:
        return
    mean, std = reference_facts.BANDS["height"]
    scaling = height_scaling(band.mean)
    on = of_counts(scan.histograms.heights) if scan.histograms.heights.any() else None
    evidence = f"mean {band.mean:.2f} +- {band.std:.2f}, {band.mean / mean:.2f} of the "
    evidence += f"published {mean} +- {std}"
    if on is not None:
        evidence += f"; buildings average {on.mean:.1f}, {on.metres:.1f} m in steps of 0.2 m"
    if scaling == STEPS:
        yield Finding(
            "height", "note", f"height seems to be in {STEPS}, not in the published statistics' "
            f"stretched scaling: {evidence}",
            "with config.normalization='custom', give the mean and standard deviation of this data "
            "in config.normalization_means and normalization_stds; published weights with a "
            "height band come with those of the stretched scaling",
        )  # fmt: skip
    elif scaling == STRETCHED:
        yield Finding(
            "height", "note", f"height seems to be {STRETCHED}, as in the published statistics, "
            f"not in {STEPS}: {evidence}",
            "do not mix it with data, or with weights, of the other scaling",
        )  # fmt: skip
    else:
        guess = "is it empty, or in whole metres?" if band.mean < 8 else "is it above sea level?"
        yield Finding(
            "height", "warning", f"height is in neither known scaling: {evidence}",
            f"{guess} Without it, train with config.bands=('red', 'green', 'blue', 'nir')",
        )  # fmt: skip


def class_percent(scan: Scan) -> dict[str, np.ndarray]:
    """{"train and val" | "test": (19,) per cent of the pixels by class}, where there are masks."""
    masks = scan.histograms.masks
    shares = {}
    for name, splits in SPLITS.items():
        counts = sum((masks[s][1:20] for s in splits if s in masks), np.zeros(19, np.int64))
        if counts.any():
            shares[name] = 100 * counts / counts.sum()
    return shares


def published_percent(scan: Scan) -> dict[str, np.ndarray]:
    """The published class frequencies, as `class_percent`; FLAIR #2's test set has others."""
    columns = zip(*reference_facts.CLASS_PERCENT.values(), strict=True)
    return {
        name: np.array(column)
        for name, column in zip(SPLITS, columns, strict=True)
        if name != "test" or scan.data.name != NAME_2
    }


def classes(scan: Scan) -> Iterator[Finding]:
    """Class frequencies against the published ones."""
    whole = scan.num_patches >= PATCHES
    published = published_percent(scan)
    for name, shares in class_percent(scan).items():
        if name not in published:
            continue
        known = published[name]
        unlike = float(np.abs(shares - known).sum() / 2)
        severity = "ok" if unlike <= UNLIKE else "warning" if whole else "note"
        part = "" if whole or severity == "ok" else "; a part of FLAIR #1 may differ from the whole"
        yield Finding(
            "classes", severity, f"{name}: {unlike:.1f} % of the pixels would have to be of other "
            f"classes to have the published frequencies{part}",
            "see the table below" if severity == "warning" else "",
        )  # fmt: skip
        absent = [FLAIR[value][0] for value in LEARNT if not shares[value - 1]]
        if name == "train and val":
            yield from _absence(name, absent)
