"""Confusion matrices on the device, and the scores that follow from them on the host."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flair_jax.models.ops import Ops, plain

DEFINITIONS = {
    "challenge": "FLAIR's challenge, and the published 0.5443: classes of weight 0 stay in rows "
    "and columns; the mean is over the other classes, those that never occur left out",
    "main": "the reference's later code: rows and columns of the classes of weight 0 are deleted "
    "first; a class that never occurs counts as 0",
    "open_vocabulary": "papers on open-vocabulary segmentation: pixels whose truth is of a class "
    "of weight 0 are ignored; predictions of such a class on other pixels are misses; the mean is "
    "over the other classes, those that never occur left out",
}


def confusion_matrices(
    labels: jax.Array,
    predictions: jax.Array,
    valid: jax.Array,
    num_classes: int,
    ops: Ops = plain,
) -> jax.Array:
    """Counts each image's pixels by true and predicted class; to be called inside `jax.jit`.

    Args:
        labels: (N, H, W) integers; pixels of a label outside the classes are not counted.
        predictions: (N, H, W) integers below `num_classes`.
        valid: (N,) bool; images that only pad the batch are not counted.
        num_classes: number of classes.
        ops: the form for the devices that it is computed on.

    Returns:
        (N, classes, classes) int32, rows are the truth. Sums over images belong on the host in
        int64: 8,192 images of 512 x 512 would overflow int32.
    """
    n = labels.shape[0]
    labels = jnp.where(valid[:, None, None], labels, 255).astype(jnp.uint8).reshape(n, -1)
    predictions = predictions.astype(jnp.uint8).reshape(n, -1)
    return ops.count_pairs(labels, predictions, num_classes)


def intersection_over_union(confusion: np.ndarray) -> np.ndarray:
    """IoU of every class, TP / (TP + FP + FN), NaN where a class never occurs.

    Args:
        confusion: (..., classes, classes) counts, rows are the truth.

    Returns:
        (..., classes) float64.
    """
    confusion = np.asarray(confusion, np.float64)
    hit = np.diagonal(confusion, axis1=-2, axis2=-1)
    union = confusion.sum(-2) + confusion.sum(-1) - hit
    return np.divide(hit, union, out=np.full(hit.shape, np.nan), where=union > 0)


def precision_and_recall(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """TP / (TP + FP) and TP / (TP + FN) of every class; every row and column counts.

    Args:
        confusion: (classes, classes) counts, rows are the truth.

    Returns:
        Twice (classes,) float64: the precision, NaN where a class is never predicted, and the
        recall, NaN where it is never the truth.
    """
    confusion = np.asarray(confusion, np.float64)
    hit = np.diag(confusion)
    precision, recall = (
        np.divide(hit, total, out=np.full(hit.shape, np.nan), where=total > 0)
        for total in (confusion.sum(0), confusion.sum(1))
    )
    return precision, recall


def counted_pixels(confusion: np.ndarray, weights: np.ndarray, definition: str) -> np.ndarray:
    """The pixels that a definition of the scores counts, 0 in place of the others.

    Args:
        confusion: (classes, classes) counts, rows are the truth.
        weights: (classes,) weights of the classes in the loss.
        definition: of `DEFINITIONS`.

    Returns:
        (classes, classes), of the type of `confusion`.
    """
    scored = np.asarray(weights) > 0
    if definition == "challenge":
        return confusion
    counted = scored[:, None] & scored if definition == "main" else scored[:, None]
    return np.where(counted, confusion, 0)


def challenge_scores(confusion: np.ndarray, weights: np.ndarray) -> dict:
    """Scores by the definition of FLAIR's challenge, and of the published 0.5443.

    IoU with the zero-weight classes kept in rows and columns; the mean over the classes of
    non-zero weight, those that never occur left out.

    Args:
        confusion: (classes, classes) counts, rows are the truth.
        weights: (classes,) weights of the classes in the loss.

    Returns:
        `miou` float, `iou` (classes,) float64 with NaN where a class never occurs.
    """
    iou = intersection_over_union(confusion)
    scored = iou[np.asarray(weights) > 0]
    scored = scored[~np.isnan(scored)]
    return {"miou": float(scored.mean()) if len(scored) else float("nan"), "iou": iou}


def main_scores(confusion: np.ndarray, weights: np.ndarray) -> dict:
    """Scores by the definition of the reference's later code ("main").

    Rows and columns of zero-weight classes are deleted first; an absent class counts as 0.

    Args:
        confusion: (classes, classes) counts, rows are the truth.
        weights: (classes,) weights of the classes in the loss.

    Returns:
        `miou`, `accuracy`, `mean_precision`, `mean_recall`, `mean_fscore` floats; `iou`,
        `precision`, `recall`, `fscore` (classes,) float64, NaN for the deleted ones.
    """
    kept = np.flatnonzero(np.asarray(weights) > 0)
    part = np.asarray(confusion, np.float64)[np.ix_(kept, kept)]
    hit, truth, predicted = np.diag(part), part.sum(1), part.sum(0)

    def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        return np.divide(above, below, out=np.zeros_like(above), where=below > 0)

    by_class = {
        "iou": ratio(hit, truth + predicted - hit),
        "precision": ratio(hit, predicted),
        "recall": ratio(hit, truth),
    }
    p, r = by_class["precision"], by_class["recall"]
    by_class["fscore"] = ratio(2 * p * r, p + r)
    scores: dict = {
        "miou": float(by_class["iou"].mean()),
        "accuracy": float(hit.sum()) / float(part.sum()) if part.any() else 0.0,
    }
    for key in ("precision", "recall", "fscore"):
        scores[f"mean_{key}"] = float(by_class[key].mean())
    for key, values in by_class.items():
        scores[key] = np.full(len(weights), np.nan)
        scores[key][kept] = values
    return scores


def open_vocabulary_scores(confusion: np.ndarray, weights: np.ndarray) -> dict:
    """Scores of the pixels whose truth is of a class of non-zero weight, all others ignored.

    The rows of the zero-weight classes are deleted, their columns are not: a pixel that is
    predicted as one of them is a false negative of its true class, and a false positive of none.

    Args:
        confusion: (classes, classes) counts, rows are the truth.
        weights: (classes,) weights of the classes in the loss.

    Returns:
        `miou` float, the mean over the classes of non-zero weight, those that neither occur nor are
        predicted on these pixels left out; `iou` (classes,) float64, NaN for these and for the
        ignored ones.
    """
    scored = np.asarray(weights) > 0
    scores = challenge_scores(counted_pixels(confusion, weights, "open_vocabulary"), weights)
    return scores | {"iou": np.where(scored, scores["iou"], np.nan)}


def summary(confusion: np.ndarray, names: Sequence[str], weights: np.ndarray) -> dict:
    """All definitions as plain numbers by class name, ready for JSON; NaN becomes None."""

    def plain(scores: dict) -> dict:
        return {
            key: dict(zip(names, map(_or_none, value), strict=True))
            if isinstance(value, np.ndarray)
            else _or_none(value)
            for key, value in scores.items()
        }

    return {
        "challenge": plain(challenge_scores(confusion, weights)),
        "main": plain(main_scores(confusion, weights)),
        "open_vocabulary": plain(open_vocabulary_scores(confusion, weights)),
    }


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
