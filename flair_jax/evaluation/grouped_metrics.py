"""Scores by domain or group, camera, month and patch, and bootstrap intervals over zones.

Patches of one zone are neighbours on the ground, taken in the same minutes, so they are not
independent: the bootstrap draws whole zones.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from flair_jax.data.nomenclature import Nomenclature
from flair_jax.evaluation.metrics import intersection_over_union, summary

RESAMPLES = 1000
LEVEL = 0.95

# The features of the data set that `groups` and `by_patch` need.
FIELDS = ("id", "domain", "zone", "camera", "date")


def groups(fields: Mapping[str, np.ndarray], grouped_by: str = "domain") -> dict[str, np.ndarray]:
    """The groups that each patch belongs to.

    Args:
        fields: (patches,) str arrays by the names of `FIELDS`, `id` apart; dates as YYYY-MM-DD.
        grouped_by: what the data set calls a domain.

    Returns:
        (patches,) str arrays: `domain` (or what it is called), `camera`, `month` ("01" to "12", of
        any year), and `zone`, which is led by its domain, since zones of different domains may
        share a name. Without `camera` or `month` if no patch has one.
    """
    known = {
        "camera": fields["camera"],
        "month": np.array([date[5:7] for date in fields["date"]]),
    }
    return {
        grouped_by: fields["domain"],
        **{kind: names for kind, names in known.items() if (names != "").any()},
        "zone": np.char.add(np.char.add(fields["domain"], "/"), fields["zone"]),
    }


def grouped_scores(
    confusions: np.ndarray, groups: Mapping[str, np.ndarray], nomenclature: Nomenclature
) -> dict[str, Any]:
    """Scores of the groups of a split, and intervals of the overall scores.

    Args:
        confusions: (patches, classes, classes) counts, rows are the truth.
        groups: see `groups`.
        nomenclature: the classes.

    Returns:
        `intervals` (see `intervals`), and `by_domain`, `by_camera`, `by_month`, as far as there
        are such groups: for each name that is not empty
        `num_patches`, `num_zones`, all definitions' scores as in `metrics.summary`, and
        `challenge_miou_interval`, [low, high], or None for a single zone.
    """
    scores: dict[str, Any] = {"intervals": intervals(confusions, groups["zone"], nomenclature)}
    for kind in groups:
        if kind != "zone":
            scores[f"by_{kind}"] = {
                str(name): _group(confusions, groups["zone"], groups[kind] == name, nomenclature)
                for name in np.unique(groups[kind])
                if name
            }
    return scores


def by_patch(
    confusions: np.ndarray,
    fields: Mapping[str, np.ndarray],
    indices: np.ndarray,
    nomenclature: Nomenclature,
) -> list[dict[str, Any]]:
    """Scores of every patch, to find those that a model does well or badly.

    Args:
        confusions: (patches, classes, classes) counts, rows are the truth.
        fields: (patches,) str arrays by the names of `FIELDS`.
        indices: (patches,) index of each patch in its split, from 0.
        nomenclature: the classes.

    Returns:
        For each patch its fields, `place` (its index), `classes` (number of scored classes in its
        mask), `pixels` (of these classes), `miou` (mean IoU over these; a confusion with a class
        that the mask lacks lowers the IoU of the true class) and `accuracy` (share of these pixels
        that are right). The last two are None where the truth has no scored class.
    """
    patches = []
    for i, confusion in enumerate(confusions):
        truth = confusion.sum(1)
        present = (truth > 0) & (nomenclature.weights > 0)
        scores: dict[str, Any] = {
            "classes": int(present.sum()),
            "pixels": int(truth[present].sum()),
            "miou": None,
            "accuracy": None,
        }
        if present.any():
            scores["miou"] = float(intersection_over_union(confusion)[present].mean())
            hit = np.diag(confusion)[present].sum()
            scores["accuracy"] = float(hit / truth[present].sum())
        names = {name: str(fields[name][i]) for name in FIELDS}
        patches.append({**names, "place": int(indices[i]), **scores})
    return patches


def _group(
    confusions: np.ndarray, zones: np.ndarray, chosen: np.ndarray, nomenclature: Nomenclature
) -> dict[str, Any]:
    total = confusions[chosen].sum(0, dtype=np.int64)
    return {
        "num_patches": int(chosen.sum()),
        "num_zones": len(np.unique(zones[chosen])),
        **summary(total, nomenclature.names, nomenclature.weights),
        "challenge_miou_interval": intervals(confusions[chosen], zones[chosen], nomenclature)[
            "challenge_miou"
        ],
    }


def intervals(
    confusions: np.ndarray, zones: np.ndarray, nomenclature: Nomenclature, seed: int = 0
) -> dict[str, Any]:
    """Percentile intervals of the scores over zones drawn with replacement (Efron 1979).

    They show how far a score depends on which zones were scored, not how it varies from one
    training run to another.

    Args:
        confusions: (patches, classes, classes) counts, rows are the truth.
        zones: (patches,) str, the zone of each patch.
        nomenclature: the classes.
        seed: of the draws.

    Returns:
        `level`, `resamples`, `zones`, and [low, high] for `challenge_miou`, `main_miou` and each
        class of `challenge_iou`; None where there is a single zone, or nothing of the class.
    """
    weights, names = nomenclature.weights, nomenclature.names
    distinct, zone = np.unique(zones, return_inverse=True)
    count = len(distinct)
    by_zone = np.zeros((count, *confusions.shape[1:]), np.int64)
    np.add.at(by_zone, zone, confusions)
    result: dict[str, Any] = {"level": LEVEL, "resamples": RESAMPLES, "zones": count}
    if count < 2:
        none = dict.fromkeys(names)
        return result | {"challenge_miou": None, "main_miou": None, "challenge_iou": none}
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    resampled = np.tensordot(draws, by_zone, axes=1)
    iou = intersection_over_union(resampled)
    challenge, main = _mious(resampled, weights)
    return result | {
        "challenge_miou": _interval(challenge),
        "main_miou": _interval(main),
        "challenge_iou": {name: _interval(iou[:, i]) for i, name in enumerate(names)},
    }


def _mious(confusions: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `challenge_scores` and `main_scores` call `miou`, of many matrices at once, to the bit.

    Numbers are copied to contiguous memory before they are averaged: the order in which NumPy adds
    depends on it.
    """
    scored = np.asarray(weights) > 0
    iou = np.compress(scored, intersection_over_union(confusions), axis=1)
    present = ~np.isnan(iou)
    challenge = np.full(len(iou), np.nan)
    for occurring in np.unique(present, axis=0):
        if occurring.any():
            rows = (present == occurring).all(1)
            challenge[rows] = np.compress(occurring, iou[rows], axis=1).mean(1)
    kept = np.compress(scored, np.compress(scored, confusions, axis=1), axis=2)
    main = np.nan_to_num(intersection_over_union(kept), nan=0.0).mean(1)
    return challenge, main


def _interval(values: np.ndarray) -> list[float] | None:
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]
