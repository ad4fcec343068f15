"""Scores by class: a table for each definition of the scores, with the definition in words."""

from typing import Any

import numpy as np

from flair_jax.evaluation.metrics import counted_pixels, precision_and_recall
from flair_jax.report.collect import RunFacts
from flair_jax.report.formats import percent

# The definitions of the scores, the page's own first; the others are shown on demand.
DEFINITIONS = {
    "challenge": "Challenge definition",
    "main": "“Main” definition",
    "open_vocabulary": "Open-vocabulary definition",
}
_OF_FLAIR = {
    "challenge": " FLAIR's challenge and the published scores are of this definition.",
    "main": " The later code of FLAIR's baseline has this definition.",
    "open_vocabulary": " Papers on open-vocabulary segmentation have this definition.",
}


def score_tables(run: RunFacts) -> list[dict[str, Any]]:
    """A table of scores by class for each definition, that of the challenge first.

    Returns:
        For each its `key`, `name`, `meaning` (in words), `rows` (a class each), `mean` (over the
        scored classes), and `same`: whether its IoU are those of the first.
    """
    assert run.metrics is not None
    confusion = np.array(run.metrics["confusion_matrix"], np.int64)
    tables: list[dict[str, Any]] = []
    for key, name in DEFINITIONS.items():
        part = counted_pixels(confusion, run.nomenclature.weights, key)
        iou = run.metrics[key]["iou"]
        tables.append(
            {
                "key": key,
                "name": name,
                "meaning": _meaning(run, key, 1 - int(part.sum()) / max(int(confusion.sum()), 1)),
                "rows": _class_rows(run, key, part),
                "mean": {
                    "iou": run.metrics[key]["miou"],
                    "precision": run.metrics[key].get("mean_precision"),
                    "recall": run.metrics[key].get("mean_recall"),
                    "interval": run.metrics.get("intervals", {}).get(f"{key}_miou"),
                },
                "same": (iou, run.metrics[key]["miou"])
                == (run.metrics["challenge"]["iou"], run.metrics["challenge"]["miou"]),
            }
        )
    return tables


def _class_rows(run: RunFacts, key: str, confusion: np.ndarray) -> list[dict[str, Any]]:
    """Scores of each class by one definition, from what it counts."""
    assert run.metrics is not None
    scores = run.metrics[key]
    precision, recall = precision_and_recall(confusion)
    intervals = run.metrics.get("intervals", {}).get(f"{key}_iou", {})
    share = confusion.sum(1) / max(confusion.sum(), 1)
    return [
        {
            "name": land_cover.name,
            "colour": land_cover.colour,
            "scored": land_cover.weight > 0,
            "iou": scores["iou"][land_cover.name],
            "interval": intervals.get(land_cover.name),
            # "main" counts a class that never occurs as 0, in these too.
            "precision": scores.get("precision", {}).get(land_cover.name, precision[i]),
            "recall": scores.get("recall", {}).get(land_cover.name, recall[i]),
            "share": share[i],
        }
        for i, land_cover in enumerate(run.nomenclature.classes)
        if key == "challenge" or land_cover.weight > 0
    ]


def _meaning(run: RunFacts, key: str, left_out: float) -> str:
    """A definition in words, with the share of the pixels that it leaves out."""
    unscored = [c.name for c in run.nomenclature.classes if c.weight == 0]
    names = ", ".join(unscored)
    if key == "challenge":
        words = "Every labelled pixel counts."
        if unscored:
            words += (
                f" Classes of weight 0 in the loss ({names}) are not scored, but their pixels are "
                "errors of the classes that they are predicted as."
            )
        words += " The mean is over the scored classes that occur."
    elif key == "main":
        words = "A scored class that does not occur counts as 0 in the mean."
        if unscored:
            words = (
                f"Pixels of which the true or the predicted class has weight 0 ({names}) are left "
                f"out, {percent(left_out)} of the labelled pixels here. {words}"
            )
    else:
        words = "The mean is over the scored classes that occur."
        if unscored:
            words = (
                f"Pixels of which the true class has weight 0 ({names}) are left out, "
                f"{percent(left_out)} of the labelled pixels here; on the others, a prediction of "
                f"such a class is an error of the true one. {words}"
            )
    return words + (_OF_FLAIR[key] if run.is_flairs else "")


def accuracy(run: RunFacts) -> tuple[float | None, int]:
    """The overall accuracy, the share of all labelled pixels that are right; and their number."""
    if run.metrics is None:
        return None, 0
    confusion = np.array(run.metrics["confusion_matrix"], np.int64)
    labelled = int(confusion.sum())
    return (float(confusion.trace() / labelled) if labelled else None), labelled
