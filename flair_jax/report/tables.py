"""Tables of the report: facts, confusion matrix, scores by group, comparison of runs."""

from typing import Any

import numpy as np

from flair_jax.config import is_of_ema
from flair_jax.report.collect import RunFacts, setting_rows
from flair_jax.report.definitions import accuracy
from flair_jax.report.formats import date, in_words
from flair_jax.runtime.console import counted

# Share of a row from which a cell is so strong in colour that its text colour must be inverted.
STRONG = 0.715


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
    config, batch = run.config, run.config.batch_size
    bands = f"{len(config.bands) or 'all'} bands"
    metadata = f" and metadata ({config.metadata.encoding})" if config.metadata.use else ""
    model = f"U-Net, ResNet34 encoder: {bands}{metadata} to {len(run.nomenclature)} classes"
    data = f"{config.data_config} in {config.data_dir or 'TFDS'}"
    steps = max((line["step"] for line in run.epochs + run.steps), default=None)
    rows = [
        ("Model", in_words(run.last_start("model") or model)),
        ("Data", in_words(run.last_start("data") or data)),
        ("Devices", in_words(run.last_start("devices") or "not recorded")),
        (
            "Steps",
            "none yet"
            if steps is None
            else f"{counted(steps, 'step')}, each of a batch of {counted(batch, 'patch')}",
        ),
    ]
    ema = is_of_ema(config.monitor)
    kinds = ("trained", "averaged (EMA)")
    if run.metrics:
        epoch = f", the end of epoch {run.scored_epoch}" if run.scored_epoch else ""
        averaged = ", averaged (EMA)" if ema else ""
        rows.append(("Scored weights", f"of step {run.metrics['step']:,}{epoch}{averaged}"))
        rows.append((f"Loss, {run.split} split", f"{run.metrics['loss']:.4f}"))
    if run.unwatched:
        miou = run.unwatched["challenge"]["miou"]
        text = f"{'–' if miou is None else format(miou, '.4f')} by the {kinds[not ema]} weights"
        rows.append((f"mIoU, {run.split} split", f"{text} of step {run.unwatched['step']:,}"))
    if run.starts:
        rows.append(("Started", date(run.starts[0]["started"])))
    if run.written:
        rows.append(("Last written", f"{run.written:%Y-%m-%d %H:%M} UTC"))
    if len(run.starts) > 1:
        rows.append(("Starts", f"{len(run.starts)}: it was stopped and resumed"))
    return rows


def comparison(runs: list[RunFacts]) -> list[dict[str, Any]]:
    """Scores and duration of each run."""
    return [
        {
            "name": run.name,
            "metrics": run.metrics,
            "interval": (run.metrics or {}).get("intervals", {}).get("challenge_miou"),
            "accuracy": accuracy(run)[0],
            "best": run.best,
            "epochs": len(run.epochs),
            "seconds": run.seconds,
        }
        for run in runs
    ]


def unlike(runs: list[RunFacts]) -> list[str]:
    """Why the scores of runs cannot be compared, in words; empty if nothing tells against it."""
    scored = [run for run in runs if run.metrics]
    reasons = []
    patches = zip(*map(_scored_patches, scored), strict=True)
    # What an earlier version did not record tells nothing.
    if any(len(set(values) - {None}) > 1 for values in patches):
        reasons.append("they are not of the same patches")
    classes = {tuple((c.name, c.weight > 0) for c in run.nomenclature.classes) for run in scored}
    if len(classes) > 1:
        reasons.append("they are not of the same classes")
    return reasons


def _scored_patches(run: RunFacts) -> tuple[str | int | None, ...]:
    """What tells the patches that the scores are of; None where it was not recorded."""
    metrics = run.metrics or {}
    split = metrics.get("provenance", {}).get("data", {}).get("splits", {}).get(run.split)
    return metrics.get("data"), metrics.get("num_patches"), str(split) if split else None


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
