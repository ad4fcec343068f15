"""Tables of the report: facts, scores by class and group, confusion matrix, comparison of runs."""

from typing import Any

import numpy as np

from flair_jax.config import is_of_ema
from flair_jax.report.collect import RunFacts, setting_rows

# Share of a row from which a cell is so strong in colour that its text colour must be inverted.
STRONG = 0.715


def class_rows(run: RunFacts) -> list[dict[str, Any]]:
    """Scores of each class by the three definitions, and its share of the truth."""
    metrics = run.metrics or {}
    truth = np.array(metrics["confusion_matrix"], np.float64).sum(1)
    intervals = metrics.get("intervals", {}).get("challenge_iou", {})
    ignoring = metrics.get("open_vocabulary", {}).get("iou", {})  # earlier versions had none
    return [
        {
            "name": land_cover.name,
            "colour": land_cover.colour,
            "scored": land_cover.weight > 0,
            "iou": metrics["challenge"]["iou"][land_cover.name],
            "interval": intervals.get(land_cover.name),
            "main_iou": metrics["main"]["iou"][land_cover.name],
            "open_vocabulary_iou": ignoring.get(land_cover.name),
            "precision": metrics["main"]["precision"][land_cover.name],
            "recall": metrics["main"]["recall"][land_cover.name],
            "share": count / max(truth.sum(), 1),
        }
        for land_cover, count in zip(run.nomenclature.classes, truth, strict=True)
    ]


def mean_row(run: RunFacts) -> dict[str, Any]:
    """The means over the scored classes, of the columns of `class_rows`."""
    metrics = run.metrics or {}
    return {
        "iou": metrics["challenge"]["miou"],
        "interval": metrics.get("intervals", {}).get("challenge_miou"),
        "main_iou": metrics["main"]["miou"],
        "open_vocabulary_iou": metrics.get("open_vocabulary", {}).get("miou"),
        "precision": metrics["main"]["mean_precision"],
        "recall": metrics["main"]["mean_recall"],
    }


def confusion_rows(run: RunFacts) -> list[dict[str, Any]]:
    """The confusion matrix, rows divided by their sums, with the published recall beside it.

    Recall is the diagonal's share, as in the published figure: pixels predicted as a class of
    weight 0 count as missed.
    """
    assert run.metrics is not None
    confusion = np.array(run.metrics["confusion_matrix"], np.int64)
    rows = []
    for i, land_cover in enumerate(run.nomenclature.classes):
        total = confusion[i].sum()
        shares = confusion[i] / max(total, 1)
        rows.append(
            {
                "name": land_cover.name,
                "colour": land_cover.colour,
                "cells": [
                    {
                        "share": float(share),
                        "strong": share > STRONG,
                        "text": f"{share:.0%}"[:-1] if share >= 0.005 else "·" if total else "",
                        "count": int(count),
                        "to": to,
                    }
                    for share, count, to in zip(
                        shares, confusion[i], run.nomenclature.names, strict=True
                    )
                ],
                "recall": float(shares[i]) if total else None,
                "published": run.benchmark.recall.get(land_cover.name) if run.benchmark else None,
            }
        )
    return rows


def part_tables(run: RunFacts) -> dict[str, list[dict[str, Any]]]:
    """Scores by domain or group, camera and month: name, patches, zones, mIoU, interval."""
    metrics = run.metrics or {}
    return {
        key[3:]: [
            {
                "name": name,
                "patches": part["num_patches"],
                "zones": part["num_zones"],
                "miou": part["challenge"]["miou"],
                "interval": part["challenge_miou_interval"],
            }
            for name, part in parts.items()
        ]
        for key, parts in metrics.items()
        if key.startswith("by_")
    }


def is_published_split(run: RunFacts) -> bool:
    """Whether the scores are of the patches that the published ones are of."""
    metrics = run.metrics or {}
    if run.benchmark is None or metrics.get("synthetic", False):
        return False
    return (run.split, metrics.get("num_patches")) == ("test", run.benchmark.patches)


def facts(run: RunFacts) -> list[tuple[str, str]]:
    """Facts for the overview: (label, text)."""
    config = run.config
    bands = f"{len(config.bands) or 'all'} bands"
    metadata = f" and metadata ({config.metadata.encoding})" if config.metadata.use else ""
    model = f"U-Net, ResNet34 encoder: {bands}{metadata} -> {len(run.nomenclature)} classes"
    steps = max((line["step"] for line in run.epochs + run.steps), default=None)
    rows = [
        ("Model", run.last_start("model") or model),
        ("Data", run.last_start("data") or f"{config.data_config} in {config.data_dir or 'TFDS'}"),
        ("Devices", run.last_start("devices") or "not logged"),
        ("Steps", "none yet" if steps is None else f"{steps:,} of {config.batch_size} patches"),
    ]
    if run.metrics:
        rows.append(("Scored", f"step {run.metrics['step']:,}, loss {run.metrics['loss']:.4f}"))
    if run.unwatched:
        miou = run.unwatched["challenge"]["miou"]
        name = "Raw weights" if is_of_ema(config.monitor) else "EMA of the weights"
        rows.append((name, f"mIoU {'-' if miou is None else format(miou, '.4f')}"))
    dates = [("Started", (run.starts[0]["started"] if run.starts else "")[:16].replace("T", " "))]
    dates.append(("Last written", f"{run.written:%Y-%m-%d %H:%M}" if run.written else ""))
    rows += [(what, f"{date} UTC") for what, date in dates if date]
    if len(run.starts) > 1:
        rows.append(("Starts", f"{len(run.starts)}: it was stopped and resumed"))
    if run.versions:
        rows.append(("Versions", ", ".join(f"{k} {v}" for k, v in run.versions.items())))
    return rows


def comparison(runs: list[RunFacts]) -> list[dict[str, Any]]:
    """Scores and duration of each run."""
    return [
        {
            "name": run.name,
            "metrics": run.metrics,
            "interval": (run.metrics or {}).get("intervals", {}).get("challenge_miou"),
            "best": run.best,
            "epochs": len(run.epochs),
            "seconds": run.seconds,
        }
        for run in runs
    ]


def differing_settings(runs: list[RunFacts]) -> dict[str, list[str]]:
    """Key -> its value in each run, of the keys that are not the same in all."""
    values = [{row["key"]: row["value"] for row in setting_rows(run.config)} for run in runs]
    return {
        key: [value[key] for value in values]
        for key in values[0]
        if len({value[key] for value in values}) > 1
    }


def class_comparison(runs: list[RunFacts]) -> list[dict[str, Any]]:
    """IoU by class, a column a run, if the runs have the same classes; the highest is named."""
    if any(run.nomenclature.names != runs[0].nomenclature.names for run in runs):
        return []
    rows = []
    for land_cover in runs[0].nomenclature.classes:
        values = [
            run.metrics["challenge"]["iou"][land_cover.name] if run.metrics else None
            for run in runs
        ]
        known = [value for value in values if value]
        rows.append(
            {
                "name": land_cover.name,
                "colour": land_cover.colour,
                "values": values,
                "highest": max(known) if len(known) > 1 and land_cover.weight > 0 else None,
            }
        )
    return rows
