"""Pixels beside what is published: bands, the height's scaling, classes."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from flair_jax.data import reference_facts
from flair_jax.data.nomenclature import FLAIR
from flair_jax.doctor.findings import Survey
from flair_jax.doctor.severity import Check, listed

FAR = 0.5  # a mean is far from the published one from this many published deviations on
UNLIKE = 10  # per cent of the pixels that are of other classes than published
LEARNT = range(1, 13)  # mask values of the baseline's scored classes
SPLITS = {"train and val": ("train", "val"), "test": ("test",)}  # as statistics are published
STEPS, STRETCHED = "steps of 0.2 m", "stretched"


@dataclasses.dataclass(frozen=True)
class Band:
    """One band of the sampled images, in digital numbers; `flat`: share of images of one value."""

    mean: float
    deviation: float
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
    deviation = float(np.sqrt(np.average((values - mean) ** 2, weights=counts)))
    seen = np.flatnonzero(counts)
    return Band(mean, deviation, int(seen[0]), int(seen[-1]), flat)


def bands_of(survey: Survey) -> dict[str, Band]:
    """By band; of train and val, as the published ones are, or of all if there is neither."""
    values = survey.pixels.values
    of_train = [values[split] for split in SPLITS["train and val"] if split in values]
    counted = of_train or list(values.values())
    if not counted:
        return {}
    totals = zip(reference_facts.BANDS, np.sum(counted, axis=0), strict=True)
    return {
        name: of_counts(counts, survey.pixels.flat[i] / survey.pixels.images)
        for i, (name, counts) in enumerate(totals)
    }


def bands(survey: Survey) -> Iterator[Check]:
    """Radiometry beside the published one, and images without content."""
    found = bands_of(survey)
    far = []
    for name, band in found.items():
        mean, deviation = reference_facts.BANDS[name]
        off = (band.mean - mean) / deviation
        if name != "height" and (abs(off) > FAR or not 0.5 < band.deviation / deviation < 2):
            far.append(
                f"{name}: {band.mean:.1f} +- {band.deviation:.1f}, published {mean:g} +- "
                f"{deviation:g}"
            )
    if far:
        yield Check(
            "bands", "warning", f"far from what is published: {len(far)} of 4 bands besides height",
            "are these FLAIR's images, in the order red, green, blue, near infrared, height? "
            "Published weights may do badly on them; a training of one's own need not", len(far),
            tuple(far),
        )  # fmt: skip
    elif found:
        yield Check("bands", "ok", "red, green, blue and nir are near what is published")
    if constant := survey.pixels.constant:
        share = len(constant) / survey.pixels.patches
        yield listed(
            "bands", "warning", f"images of one colour: {len(constant):,} ({share:.1%})",
            "empty images teach nothing: look at them, and download them again", constant,
        )  # fmt: skip


def height_scaling(mean: float) -> str:
    """Which scaling a mean of the height band speaks for; "" for neither.

    Heights are known in steps of 0.2 m, as the images are described, and stretched, as the
    published mean and deviation are: see `published`. The border is the geometric mean of both
    means. Below 8, and above 100, neither is plausible for as mixed a landscape as FLAIR's.
    """
    if not 8 <= mean <= 100:
        return ""
    steps, stretched = (
        reference_facts.HEIGHT_IN_STEPS_OF_20_CM[0],
        reference_facts.BANDS["height"][0],
    )
    return STEPS if mean < np.sqrt(steps * stretched) else STRETCHED


def height(survey: Survey) -> Iterator[Check]:
    """The scaling of the height band."""
    band = bands_of(survey).get("height")
    if band is None:
        return
    mean, deviation = reference_facts.BANDS["height"]
    scaling = height_scaling(band.mean)
    on = of_counts(survey.pixels.heights) if survey.pixels.heights.any() else None
    evidence = f"mean {band.mean:.2f} +- {band.deviation:.2f}, {band.mean / mean:.2f} of the "
    evidence += f"published {mean} +- {deviation}"
    if on is not None:
        evidence += f"; buildings average {on.mean:.1f}, {on.metres:.1f} m in steps of 0.2 m"
    if scaling == STEPS:
        yield Check(
            "height", "note", f"height seems to be in {STEPS}, not in the published statistics' "
            f"stretched scaling: {evidence}",
            "with config.normalization='custom', give this data's own mean and deviation in "
            "config.normalization_means and normalization_deviations; published weights with a "
            "height band come with those of the stretched scaling",
        )  # fmt: skip
    elif scaling == STRETCHED:
        yield Check(
            "height", "note", f"height seems to be {STRETCHED}, as in the published statistics, "
            f"not in {STEPS}: {evidence}",
            "do not mix it with data, or with weights, of the other scaling",
        )  # fmt: skip
    else:
        guess = "is it empty, or in whole metres?" if band.mean < 8 else "is it above sea level?"
        yield Check(
            "height", "warning", f"height is in neither known scaling: {evidence}",
            f"{guess} Without it, train with config.bands=('red', 'green', 'blue', 'nir')",
        )  # fmt: skip


def class_percent(survey: Survey) -> dict[str, np.ndarray]:
    """{"train and val" | "test": (19,) per cent of the pixels by class}, where there are masks."""
    masks = survey.pixels.masks
    shares = {}
    for name, splits in SPLITS.items():
        counts = sum((masks[s][1:20] for s in splits if s in masks), np.zeros(19, np.int64))
        if counts.any():
            shares[name] = 100 * counts / counts.sum()
    return shares


def classes(survey: Survey) -> Iterator[Check]:
    """Class frequencies beside the published ones."""
    whole = sum(survey.total.values()) >= reference_facts.PATCHES
    for place, (name, shares) in enumerate(class_percent(survey).items()):
        column = list(SPLITS).index(name)
        known = np.array([reference_facts.CLASS_PERCENT[value][column] for value in FLAIR])
        unlike = float(np.abs(shares - known).sum() / 2)
        verdict = "ok" if unlike <= UNLIKE else "warning" if whole else "note"
        part = "" if whole or verdict == "ok" else "; a part of FLAIR #1 need not be like the whole"
        yield Check(
            "classes", verdict, f"{name}: {unlike:.1f} % of the pixels would have to be of other "
            f"classes to have the published frequencies{part}",
            "look at the table below" if verdict == "warning" else "",
        )  # fmt: skip
        absent = [FLAIR[value][0] for value in LEARNT if not shares[value - 1]]
        if absent and place == 0 and name == "train and val":
            yield Check(
                "classes", "warning", f"{name}: no pixel of {', '.join(absent)}",
                "what does not occur cannot be learnt", len(absent), tuple(absent),
            )  # fmt: skip
