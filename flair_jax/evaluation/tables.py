"""Scores as text: tables by class, domain or group, camera and month."""

from typing import Any

SYNTHETIC = "These data are synthetic: the scores say nothing of real images."


def score_table(metrics: dict[str, Any]) -> str:
    """IoU by class and the means, by all definitions, as text.

    Args:
        metrics: what `evaluate.evaluate_checkpoint` returns.
    """
    challenge, main = metrics["challenge"], metrics["main"]
    ignoring = metrics["open_vocabulary"]
    width = max(len(name) for name in challenge["iou"])
    lines = [f"{'class':<{width}}  IoU challenge  IoU main   IoU o.-v.  precision     recall"]
    for name, value in challenge["iou"].items():
        cells = [value, main["iou"][name], ignoring["iou"][name]]
        cells += [main["precision"][name], main["recall"][name]]
        lines.append(f"{name:<{width}}" + "".join(f"{_percent(c):>11}" for c in cells))
    means = [challenge["miou"], main["miou"], ignoring["miou"]]
    means += [main["mean_precision"], main["mean_recall"]]
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
    if metrics.get("synthetic"):
        lines.append(SYNTHETIC)
    return "\n".join(lines)


def all_tables(metrics: dict[str, Any]) -> str:
    """Both `score_table` and `part_tables`."""
    return f"{score_table(metrics)}\n\n{part_tables(metrics)}"


def part_tables(metrics: dict[str, Any]) -> str:
    """mIoU (challenge definition) by domain or group, camera and month, as text.

    Args:
        metrics: what `evaluate.evaluate_checkpoint` returns.
    """
    parts = {key[3:]: part for key, part in metrics.items() if key.startswith("by_")}
    width = max((len(name) for part in parts.values() for name in (*part, "domain")), default=0)
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
