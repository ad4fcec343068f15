"""Looks at a download or a built data set before a long build or training.

flair-jax doctor --source=DIR | --data_dir=DIR [--data_config=published] [--sample=3000]
"""

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

from flair_jax.data import reference_facts
from flair_jax.data.nomenclature import FLAIR
from flair_jax.doctor import file_checks, metadata_checks, statistics
from flair_jax.doctor.findings import Survey
from flair_jax.doctor.scan import survey_built, survey_source
from flair_jax.doctor.severity import Check, worst
from flair_jax.errors import UserError

CHECKS = (
    file_checks.layout, file_checks.splits, file_checks.domains, file_checks.pairs,
    file_checks.forms, file_checks.places, metadata_checks.entries,
    statistics.bands, statistics.height, statistics.classes,
)  # fmt: skip
WIDTH = 100  # of what the console shows, where a file's name is not longer


def examine(survey: Survey) -> list[Check]:
    """Every check of a survey."""
    return [found for check in CHECKS for found in check(survey)]


def as_text(survey: Survey, checks: Sequence[Check]) -> str:
    """What the console shows: a line a check with what to do, then bands and classes in tables."""
    lines = []
    indent = " " * 19
    for check in checks:
        head = f"{check.verdict:<8} {check.about:<9} "
        lines += textwrap.wrap(head + check.found, WIDTH, subsequent_indent=indent)
        if check.verdict in ("warning", "fault"):
            below = f"{survey.root}/"
            lines += [f"{indent}  {example.replace(below, '')}" for example in check.examples]
            if check.count > len(check.examples) > 0:
                lines.append(f"{indent}  ... and {check.count - len(check.examples):,} more")
        if check.remedy:
            arrow = f"{indent}-> {check.remedy}"
            lines += textwrap.wrap(arrow, WIDTH, subsequent_indent=indent + "   ")
    return "\n".join([*lines, "", _band_table(survey), "", _class_table(survey)]).rstrip()


def _band_table(survey: Survey) -> str:
    lines = ["band       mean  deviation  min  max  one value   published mean  deviation"]
    for name, band in statistics.bands_of(survey).items():
        mean, deviation = reference_facts.BANDS[name]
        lines.append(
            f"{name:<7}{band.mean:>8.2f}{band.deviation:>11.2f}{band.lowest:>5}{band.highest:>5}"
            f"{band.flat:>11.1%}{mean:>17.2f}{deviation:>11.2f}"
        )
    return "\n".join(lines) if len(lines) > 1 else "no image could be read"


def _class_table(survey: Survey) -> str:
    shares = statistics.class_percent(survey)
    if not shares:
        return "no mask could be read"
    lines = ["class                     train and val %  published      test %  published"]
    for value, (name, _) in FLAIR.items():
        line = f"{value:>2} {name:<23}"
        for (split, width), known in zip(
            (("train and val", 15), ("test", 12)), reference_facts.CLASS_PERCENT[value], strict=True
        ):
            share = f"{shares[split][value - 1]:.2f}" if split in shares else "-"
            line += f"{share:>{width}}{known:>11.2f}"
        lines.append(line)
    return "\n".join(lines)


def as_json(survey: Survey, checks: Sequence[Check]) -> dict[str, Any]:
    """What `doctor.json` holds: the verdict, every check, and the numbers behind them."""
    pixels = survey.pixels
    bands = statistics.bands_of(survey)
    shares = statistics.class_percent(survey)
    height = bands.get("height")
    return {
        "verdict": worst(checks),
        "root": survey.root,
        "built": survey.built,
        "layouts": dict(survey.layouts),
        "patches": survey.total,
        "domains": {split: dict(sorted(d.items())) for split, d in survey.patches.items()},
        "opened": pixels.patches,
        "seed": survey.seed,
        "checks": [dataclasses.asdict(check) for check in checks],
        "sizes": {f"{rows} x {columns}": n for (rows, columns), n in pixels.sizes.items()},
        "bands_per_image": {str(n): count for n, count in pixels.bands.items()},
        "dtypes": dict(pixels.dtypes),
        "crs": dict(pixels.crs),
        "pixel_widths": dict(pixels.resolutions),
        "bands": {
            name: dataclasses.asdict(band)
            | {"published_mean": mean, "published_deviation": deviation}
            for name, band in bands.items()
            for mean, deviation in [reference_facts.BANDS[name]]
        },
        "height": height
        and {
            "ratio_to_published": height.mean / reference_facts.BANDS["height"][0],
            "seems": statistics.height_scaling(height.mean) or "neither",
        },
        "class_percent": {
            split: {FLAIR[i + 1][0]: round(float(p), 4) for i, p in enumerate(of_split)}
            for split, of_split in shares.items()
        },
        "published_class_percent": {
            split: {FLAIR[value][0]: p[i] for value, p in reference_facts.CLASS_PERCENT.items()}
            for i, split in enumerate(statistics.SPLITS)
        },
    }


def doctor(
    source: str = "",
    data_dir: str | None = None,
    data_config: str = "published",
    *,
    sample: int = 3000,
    seed: int = 0,
    num_workers: int = 0,
    progress: bool = False,
) -> tuple[Survey, list[Check]]:
    """Examines a download, or a built data set.

    Args:
        source: the download's folder; or "", for a built data set.
        data_dir: the `--data_dir` of the build; "" is TFDS's own.
        data_config: the `--config` of the build.
        sample: how many patches to open; 0 for all. Names, pairs and, of a download, metadata are
            looked at of all patches.
        seed: of the sample.
        num_workers: processes that read, at most; 0 for one a CPU.
        progress: whether to show a bar.

    Raises:
        UserError: there is nothing to examine, or both are given.
    """
    if bool(source) == (data_dir is not None):
        raise UserError("give either --source=DIR, a download, or --data_dir=DIR, a built data set")
    if sample < 0 or num_workers < 0:
        raise UserError("--sample and --num_workers are numbers from 0 (all patches, all CPUs)")
    if source:
        survey = survey_source(source, sample, seed, num_workers, progress)
    else:
        from flair_jax.data.input_pipeline import dataset_directory

        directory = dataset_directory(data_dir or "", data_config)
        survey = survey_built(directory, sample, seed, num_workers, progress)
    return survey, examine(survey)
