"""What a run shows: lines and bars on the console, tables of scores, the confusion matrix."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from tqdm import tqdm

from flair_jax.classes import Nomenclature
from flair_jax.input_pipeline import Split
from flair_jax.model_card import ModelCard
from flair_jax.train_state import split_model


def say(text: str) -> None:
    """Prints a line on the first host, above any progress bar."""
    if jax.process_index() == 0:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def progress_bar(data: Iterable, total: int, desc: str, unit: str) -> tqdm:
    """A bar on the first host's terminal; none where the output goes to a file."""
    hidden = jax.process_index() != 0 or not sys.stderr.isatty()
    return tqdm(data, total=total, desc=desc, unit=unit, disable=hidden, leave=False)


def introduce(
    card: ModelCard, splits: Mapping[str, Split], config: ml_collections.ConfigDict, steps: int
) -> None:
    """Says what a training works on: data, model, devices."""
    counts = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
    height, width = card.patch_size
    _, params, _ = split_model(card.abstract_model())
    device = jax.devices()[0]
    inputs = f"{len(card.bands)} bands" + (" and metadata" if card.takes_metadata else "")
    crop = f", crops of {config.crop_size}" if config.crop_size else ""
    say(
        f"data     {splits['train'].directory}: {counts} patches of {height} x {width}{crop}\n"
        f"model    U-Net, ResNet34 encoder: {inputs} -> {len(card.nomenclature)} classes, "
        f"{sum(p.size for p in params.values()):,} parameters, {card.dtype}\n"
        f"devices  {jax.device_count()} x {device.device_kind} ({device.platform}), "
        f"{jax.process_count()} host(s), global batch {config.batch_size}, {steps} steps an epoch"
    )


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


def plot_confusion_matrix(
    confusion: np.ndarray, nomenclature: Nomenclature, path: epath.Path
) -> None:
    """Draws the confusion matrix, each row divided by its sum, as in the published figure.

    Args:
        confusion: (classes, classes) counts, rows are the truth.
        nomenclature: the classes' names.
        path: a .png file.
    """
    from matplotlib.figure import Figure

    rows = confusion.sum(1, keepdims=True)
    shares = np.divide(confusion, rows, out=np.zeros(confusion.shape), where=rows > 0)
    n = len(nomenclature)
    figure = Figure(figsize=(2 + 0.62 * n, 1.6 + 0.58 * n), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=1)
    axes.set_xticks(range(n), nomenclature.names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(n), nomenclature.names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title("Confusion matrix, rows in shares of the true class")
    for (row, column), share in np.ndenumerate(shares):
        if rows[row]:
            colour = "black" if share > 0.6 else "white"
            axes.text(
                column, row, f"{share:.2f}", ha="center", va="center", color=colour, fontsize=8
            )
    figure.colorbar(image, ax=axes, fraction=0.04)
    partial = path.with_name(path.name + ".tmp")
    with partial.open("wb") as file:
        figure.savefig(file, format="png", dpi=120, bbox_inches="tight")
    partial.replace(path)
