"""Checks of a download or a built data set before a long build or training."""

import textwrap
from collections.abc import Sequence
from typing import Any

from flair_jax.data import reference_facts
from flair_jax.data.nomenclature import FLAIR
from flair_jax.doctor import checks, statistics
from flair_jax.doctor.findings import Finding, worst
from flair_jax.doctor.scan import Scan, scan_built, scan_source
from flair_jax.errors import UserError
from tfds_builder.flair.faults import printable

WIDTH = 100  # of lines on the console, but for longer file names


def as_text(scan: Scan, findings: Sequence[Finding]) -> str:
    """The report on the console: findings with remedies, then tables of bands and classes."""
    lines = []
    indent = " " * 19
    for finding in findings:
        head = f"{finding.severity:<8} {finding.topic:<9} "
        lines += textwrap.wrap(head + finding.message, WIDTH, subsequent_indent=indent)
        if finding.severity in ("warning", "fault"):
            below = f"{scan.root}/"
            lines += [f"{indent}  {example.replace(below, '')}" for example in finding.examples]
            if finding.count > len(finding.examples) > 0:
                lines.append(f"{indent}  ... and {finding.count - len(finding.examples):,} more")
        if finding.remedy:
            arrow = f"{indent}-> {finding.remedy}"
            lines += textwrap.wrap(arrow, WIDTH, subsequent_indent=indent + "   ")
    text = "\n".join([*lines, "", _band_table(scan), "", _class_table(scan)])
    return printable(text).rstrip()


def _band_table(scan: Scan) -> str:
    bands = statistics.bands_of(scan)
    published = reference_facts.BANDS if scan.data.is_flairs else {}
    width = max(map(len, ["band", *bands]))
    lines = [f"{'band':<{width}}     mean   std dev.  min  max  one value"]
    lines[0] += "   published mean   std dev." if published else ""
    for name, band in bands.items():
        line = (
            f"{name:<{width}}{band.mean:>9.2f}{band.std:>11.2f}{band.lowest:>5}{band.highest:>5}"
            f"{band.flat:>11.1%}"
        )
        if published:
            mean, std = published[name]
            line += f"{mean:>17.2f}{std:>11.2f}"
        lines.append(line)
    return "\n".join(lines) if bands else "no image could be read"


def _own_class_table(scan: Scan) -> str:
    shares = statistics.shares_of_classes(scan)
    if not shares:
        return "no mask could be read"
    names = [*scan.data.nomenclature.names, "ignored"]
    width = max(map(len, ["class", *names]))
    lines = [f"{'class':<{width}}" + "".join(f"{split + ' %':>10}" for split in shares)]
    for name in names:
        cells = (f"{of_split[name]:>10.2f}" for of_split in shares.values())
        lines.append(f"{name:<{width}}" + "".join(cells))
    return "\n".join(lines)


def _class_table(scan: Scan) -> str:
    if not scan.data.is_flairs:
        return _own_class_table(scan)
    shares = statistics.class_percent(scan)
    if not shares:
        return "no mask could be read"
    published = statistics.published_percent(scan)
    lines = ["class                     train and val %  published      test %  published"]
    for value, (name, _) in FLAIR.items():
        line = f"{value:>2} {name:<23}"
        for split, width in (("train and val", 15), ("test", 12)):
            for known, columns in ((shares, width), (published, 11)):
                share = f"{known[split][value - 1]:.2f}" if split in known else "-"
                line += f"{share:>{columns}}"
        lines.append(line)
    return "\n".join(lines)


def as_json(scan: Scan, findings: Sequence[Finding]) -> dict[str, Any]:
    """The content of `doctor.json`: the worst severity, every finding, and the figures."""
    bands = statistics.bands_of(scan)
    general: dict[str, Any] = {
        "verdict": worst(findings),
        "root": scan.root,
        "built": scan.built,
        "layouts": dict(scan.layouts),
        "patches": scan.total,
        "domains": {split: dict(sorted(d.items())) for split, d in scan.domains.items()},
        "opened": len(scan.opened),
        "seed": scan.seed,
        "checks": [
            {
                "about": finding.topic,
                "verdict": finding.severity,
                "found": finding.message,
                "remedy": finding.remedy,
                "count": finding.count,
                "examples": finding.examples,
            }
            for finding in findings
        ],
        **{name: dict(checks.tally(scan, name)) for name in checks.TALLIES},
        "bands": {
            name: {
                "mean": band.mean,
                "deviation": band.std,
                "lowest": band.lowest,
                "highest": band.highest,
                "flat": band.flat,
            }
            for name, band in bands.items()
        },
    }
    if not scan.data.is_flairs:
        return general | {"class_percent": statistics.shares_of_classes(scan)}
    for name, of_band in general["bands"].items():
        mean, std = reference_facts.BANDS[name]
        of_band |= {"published_mean": mean, "published_deviation": std}
    shares = statistics.class_percent(scan)
    height = bands.get("height")
    return general | {
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
            split: {FLAIR[i + 1][0]: float(p) for i, p in enumerate(known)}
            for split, known in statistics.published_percent(scan).items()
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
) -> tuple[Scan, list[Finding]]:
    """Examines a download, or a built data set.

    Args:
        source: the download's folder; or "", for a built data set.
        data_dir: the `--data_dir` of the build; "" is TFDS's default.
        data_config: the `--config` of the build.
        sample: how many patches to open; 0 for all. Names, pairs and, of a download, metadata
            are checked for all patches.
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
        scan = scan_source(source, sample, seed, num_workers, progress)
    else:
        from flair_jax.data.dataset import dataset_directory

        directory = dataset_directory(data_dir or "", data_config)
        scan = scan_built(directory, sample, seed, num_workers, progress)
    return scan, checks.examine(scan)
