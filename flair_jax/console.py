"""What a run says on the console: lines, bars, tables of scores."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import ml_collections
from tqdm import tqdm

from flair_jax.input_pipeline import Split
from flair_jax.model_card import ModelCard
from flair_jax.train_state import Arrays


def say(text: str) -> None:
    """Prints a line on the first host, above any progress bar."""
    if jax.process_index() == 0:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def progress_bar(data: Iterable, total: int, desc: str, unit: str) -> tqdm:
    """A bar on the first host's terminal; none where the output goes to a file."""
    hidden = jax.process_index() != 0 or not sys.stderr.isatty()
    return tqdm(data, total=total, desc=desc, unit=unit, disable=hidden, leave=False)


def introduction(
    card: ModelCard,
    splits: Mapping[str, Split],
    config: ml_collections.ConfigDict,
    steps: int,
    params: Arrays,
) -> dict[str, str]:
    """What a training works on, a line each on `data`, `model` and `devices`."""
    counts = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
    height, width = card.patch_size
    device = jax.devices()[0]
    inputs = f"{len(card.bands)} bands" + (" and metadata" if card.takes_metadata else "")
    crop = f", crops of {config.crop_size}" if config.crop_size else ""
    return {
        "data": f"{splits['train'].directory}: {counts} patches of {height} x {width}{crop}",
        "model": f"U-Net, ResNet34 encoder: {inputs} -> {len(card.nomenclature)} classes, "
        f"{sum(p.size for p in params.values()):,} parameters, {card.dtype}",
        "devices": f"{jax.device_count()} x {device.device_kind} ({device.platform}), "
        f"{jax.process_count()} host(s), global batch {config.batch_size}, {steps} steps an epoch",
    }


def score_table(metrics: dict[str, Any]) -> str:
    """IoU by class and the means, by both definitions, as text.

    Args:
        metrics: what `evaluate.evaluate_checkpoint` returns.
    """
    challenge, main = metrics["challenge"], metrics["main"]
    width = max(len(name) for name in challenge["iou"])
    lines = [f"{'class':<{width}}  IoU challenge  IoU main   precision     recall"]
    for name, value in challenge["iou"].items():
        cells = [value, main["iou"][name], main["precision"][name], main["recall"][name]]
        lines.append(f"{name:<{width}}" + "".join(f"{_percent(c):>11}" for c in cells))
    means = [challenge["miou"], main["miou"], main["mean_precision"], main["mean_recall"]]
    lines.append("-" * len(lines[1]))
    lines.append(f"{'mean':<{width}}" + "".join(f"{_percent(m):>11}" for m in means))
    lines.append(
        f"mIoU (challenge definition): {challenge['miou']:.4f} on {metrics['num_patches']} "
        f"patches of {metrics['split']!r}, step {metrics['step']}"
    )
    intervals = metrics["intervals"]
    lines.append(
        f"{intervals['level']:.0%} interval over {intervals['zones']} zones: "
        f"{_interval(intervals['challenge_miou'])}"
    )
    return "\n".join(lines)


def all_tables(metrics: dict[str, Any]) -> str:
    """Both `score_table` and `part_tables`."""
    return f"{score_table(metrics)}\n\n{part_tables(metrics)}"


def part_tables(metrics: dict[str, Any]) -> str:
    """mIoU (challenge definition) by domain, camera and month, as text.

    Args:
        metrics: what `evaluate.evaluate_checkpoint` returns.
    """
    parts = {kind: metrics[f"by_{kind}"] for kind in ("domain", "camera", "month")}
    width = max(len(name) for part in parts.values() for name in part)
    level = f"{metrics['intervals']['level']:.0%} interval"
    lines = []
    for kind, part in parts.items():
        lines.append(f"{kind:<{width}}  patches  zones    mIoU  {level}")
        for name, scores in part.items():
            lines.append(
                f"{name:<{width}}{scores['num_patches']:>9}{scores['num_zones']:>7}"
                f"{_percent(scores['challenge']['miou']):>8}  "
                f"{_interval(scores['challenge_miou_interval'])}"
            )
        lines.append("")
    return "\n".join(lines[:-1])


def _interval(bounds: list[float] | None) -> str:
    return "-" if bounds is None else f"{100 * bounds[0]:.2f} to {100 * bounds[1]:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
