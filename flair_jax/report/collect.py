"""Reads workdirs into plain data; what is missing is None or empty."""

import dataclasses
import datetime
import json
import math
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from flair_jax import config as configuration
from flair_jax.data.description import FLAIR_NAME
from flair_jax.data.nomenclature import Nomenclature, nomenclature
from flair_jax.data.reference_facts import BENCHMARKS, Benchmark
from flair_jax.evaluation.evaluate import output_folder
from flair_jax.evaluation.metrics import summary
from flair_jax.models.spec import FILE, ModelSpec
from flair_jax.training.schedules import Monitor


@dataclasses.dataclass
class RunFacts:
    """One run, as read from its workdir.

    Attributes:
        workdir: its folder.
        name: its name on the page.
        split: the split that the scores below are of.
        config: its configuration.
        nomenclature: its classes.
        spec: of its model; None before its training has begun.
        scores: the folder of `metrics.json` and `patches.json`.
        starts: lines of `metrics.jsonl` that a start of the training has written.
        steps: those with the loss of a step.
        epochs: those with the losses of an epoch.
        metrics: `metrics.json` of the split, scored with the weights that `config.monitor` watches:
            the trained ones or their exponential moving average (EMA). Definitions that an earlier
            version did not write are computed from the confusion matrix.
        unwatched: the same, scored with the other ones.
        patches: `patches.json` of the split, if it is of the same checkpoint as `metrics`.
        versions: package -> version that wrote the checkpoints.
        written: when the training last wrote, UTC.
    """

    workdir: epath.Path
    name: str
    split: str
    config: ml_collections.ConfigDict
    nomenclature: Nomenclature
    spec: ModelSpec | None
    scores: epath.Path
    starts: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    epochs: list[dict[str, Any]]
    metrics: dict[str, Any] | None
    unwatched: dict[str, Any] | None
    patches: list[dict[str, Any]] | None
    versions: dict[str, str]
    written: datetime.datetime | None

    @property
    def is_flairs(self) -> bool:
        """Whether it is of FLAIR's classes, or of groups of them."""
        return self.spec is None or self.spec.is_flairs

    @property
    def benchmark(self) -> Benchmark | None:
        """What is published of the data set that it is scored on, or trained on."""
        trained = self.spec.data_name if self.spec else FLAIR_NAME
        return BENCHMARKS.get((self.metrics or {}).get("data", trained))

    @property
    def best(self) -> dict[str, Any] | None:
        """The epoch of the lowest validation loss."""
        losses = [e for e in self.epochs if is_number(e.get("val_loss"))]
        return min(losses, key=lambda epoch: epoch["val_loss"], default=None)

    @property
    def scored_epoch(self) -> int | None:
        """The epoch that ended with the scored weights; None if it is not known."""
        step = (self.metrics or {}).get("step")
        return next((epoch["epoch"] for epoch in self.epochs if epoch["step"] == step), None)

    @property
    def state(self) -> str:
        """The state of the training in words."""
        if len(self.epochs) >= self.config.num_epochs:
            return "finished"
        monitor = Monitor(self.config.monitor)
        watched = [e for e in self.epochs if is_number(e.get(monitor.name))]
        choose = max if monitor.higher_is_better else min
        best = choose(watched, key=lambda epoch: epoch[monitor.name], default=None)
        if best and self.epochs[-1]["epoch"] - best["epoch"] >= self.config.early_stop_patience:
            better = "a higher mIoU" if monitor.higher_is_better else "a lower loss"
            return f"stopped: {self.config.early_stop_patience} epochs without {better}"
        return f"not finished: {self.config.num_epochs} epochs asked for"

    @property
    def seconds(self) -> float | None:
        """Total duration of the epochs; None where a run did not log it."""
        if not self.epochs or not all(is_number(e.get("epoch_seconds")) for e in self.epochs):
            return None
        return sum(epoch["epoch_seconds"] for epoch in self.epochs)

    def last_start(self, key: str) -> str | None:
        """What the latest start logged as `data`, `model`, `devices` or `started`."""
        return self.starts[-1].get(key) if self.starts else None


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def read_runs(workdirs: Sequence[epath.PathLike], split: str) -> list[RunFacts]:
    """Reads workdirs, whatever state their runs are in.

    Args:
        workdirs: folders of runs.
        split: whose scores to read.

    Raises:
        UserError: one of them is not the workdir of a run, or its model's spec cannot be read.
    """
    paths = [epath.Path(workdir).expanduser() for workdir in workdirs]
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = list(map(str, paths))
    return [_read(path, name, split) for path, name in zip(paths, names, strict=True)]


def _read(workdir: epath.Path, name: str, split: str) -> RunFacts:
    config = configuration.load(workdir)
    log = workdir / "metrics.jsonl"
    lines = _lines(log)
    ema = configuration.is_of_ema(config.monitor)
    scores = output_folder(workdir, split, ema)
    metrics, patches = _json(scores / "metrics.json"), _json(scores / "patches.json")
    if metrics is None or patches is None or patches["step"] != metrics["step"]:
        patches = None
    spec = None
    if (workdir / "checkpoints" / FILE).exists():
        spec = ModelSpec.load(workdir / "checkpoints")
        classes = spec.nomenclature
    else:
        classes = nomenclature(config.nomenclature, config.classes, config.disabled_classes, None)
    if metrics is not None:
        confusion = np.array(metrics["confusion_matrix"])
        metrics = summary(confusion, classes.names, classes.weights) | metrics
    written = datetime.datetime.fromtimestamp(log.stat().mtime, datetime.UTC) if lines else None
    return RunFacts(
        workdir=workdir,
        name=name,
        split=split,
        config=config,
        nomenclature=classes,
        spec=spec,
        scores=scores,
        starts=[line for line in lines if "started" in line],
        steps=[line for line in lines if "loss" in line],
        epochs=[line for line in lines if "val_loss" in line and "epoch" in line],
        metrics=metrics,
        unwatched=_json(output_folder(workdir, split, not ema) / "metrics.json"),
        patches=patches["patches"] if patches else None,
        versions=(_json(workdir / "checkpoints" / FILE) or {}).get("written_by", {}),
        written=written,
    )


def _lines(path: epath.Path) -> list[dict[str, Any]]:
    """The lines of a log that may still be written to: one cut short is left out."""
    parsed = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            parsed.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in parsed if isinstance(line, dict) and "step" in line]


def _json(path: epath.Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def setting_rows(config: ml_collections.ConfigDict) -> list[dict[str, Any]]:
    """Every key with its value, its default, and whether they differ."""
    default = configuration.flat(configuration.default())
    return [
        {
            "key": key,
            "value": _text(value),
            "default": _text(default[key]),
            "changed": value != default[key],
        }
        for key, value in configuration.flat(config).items()
    ]


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(_text, value)) + ")"
    return '""' if value == "" else str(value)
