"""Table of several runs: means and standard deviations over seeds, beside published scores."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from flair_jax import config as configuration
from flair_jax.data import reference_facts
from flair_jax.data.description import FLAIR_NAME
from flair_jax.errors import UserError
from flair_jax.evaluation.evaluate import output_folder
from flair_jax.evaluation.tables import SYNTHETIC

# Keys that have columns of their own.
_SHOWN = ("metadata.use", "metadata.encoding", "metadata.fusion", "augment")


@dataclasses.dataclass
class Experiment:
    """Runs of one configuration that differ in their seed.

    Attributes:
        metadata: "none", or encoding and fusion.
        augmentation: whether it was on.
        settings: every other key that sets this experiment apart from the others.
        seeds: of the runs.
        metrics: their `metrics.json`, in the order of the seeds.
    """

    metadata: str
    augmentation: bool
    settings: str
    seeds: list[int]
    metrics: list[dict[str, Any]]

    @property
    def benchmark(self) -> reference_facts.Benchmark | None:
        """What is published of the data set, or of the one that synthetic data stand in for."""
        return reference_facts.BENCHMARKS.get(_data(self.metrics[0]))

    def values(self, *keys: str) -> np.ndarray:
        """(runs,) float64: one number of each run's metrics, NaN where a run has none."""
        values = []
        for metrics in self.metrics:
            value: Any = metrics
            for key in keys:
                value = value.get(key) if value else None  # earlier versions wrote fewer scores
            values.append(np.nan if value is None else value)
        return np.array(values, np.float64)


def read_experiments(workdirs: Sequence[epath.PathLike], split: str) -> list[Experiment]:
    """Reads the scores of runs and groups those that differ in their seed only.

    Raises:
        UserError: a path is not a workdir or has no scores of this split, two runs have the same
            seed, or the runs differ in classes or patches.
    """
    groups: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    seen: dict[tuple[str, int], epath.PathLike] = {}
    first: tuple[epath.PathLike, dict[str, Any]] | None = None
    for workdir in workdirs:
        config = configuration.load(workdir)
        metrics = _read_metrics(config, epath.Path(workdir), split)
        first = first or (workdir, metrics)
        if _data(metrics) != _data(first[1]):
            raise UserError(
                f"the runs were not scored on the same data: {_data(metrics)} in {workdir} and "
                f"{_data(first[1])} in {first[0]}"
            )
        for key in ("num_patches", "classes"):
            if metrics[key] != first[1][key]:
                raise UserError(
                    f"the runs were not scored on the same data: {key} is {metrics[key]} in "
                    f"{workdir} and {first[1][key]} in {first[0]}"
                )
        settings = _settings(config)
        name = json.dumps(settings)
        if other := seen.get((name, config.seed)):
            raise UserError(
                f"{other} and {workdir} have the same configuration and seed: leave one out"
            )
        seen[name, config.seed] = workdir
        groups.setdefault(name, []).append((configuration.flat(config), metrics))
    varying = _varying([json.loads(name) for name in groups])
    return [_experiment(runs, varying) for runs in groups.values()]


def _data(metrics: dict[str, Any]) -> str:
    """Name of the data set that was scored, which early versions did not record."""
    return metrics.get("data", FLAIR_NAME)


def _read_metrics(
    config: ml_collections.ConfigDict, workdir: epath.Path, split: str
) -> dict[str, Any]:
    ema = configuration.is_of_ema(config.monitor)
    path = output_folder(workdir, split, ema) / "metrics.json"
    if not path.exists():
        raise UserError(
            f"there is no {path}: the run has not been scored on {split!r}. Finish it, or run\n"
            f"  flair-jax evaluate --workdir={workdir} --split={split}"
        )
    return json.loads(path.read_text())


def _settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What makes the experiment; encoding and fusion count only where metadata is used."""
    flat = configuration.flat(config)
    # Runs of one experiment may differ in the seed, and in what changes no arithmetic.
    free = (configuration.changeable(config) | {"seed", "data_config"}) - {"learning_rate_limit"}
    idle = {"metadata.encoding", "metadata.fusion"} if not config.metadata.use else set()
    return {key: value for key, value in flat.items() if key not in free and key not in idle}


def _varying(settings: list[dict[str, Any]]) -> list[str]:
    keys = {key for one in settings for key in one if key not in _SHOWN}
    return sorted(key for key in keys if len({json.dumps(one.get(key)) for one in settings}) > 1)


def _experiment(
    runs: list[tuple[dict[str, Any], dict[str, Any]]], varying: list[str]
) -> Experiment:
    runs = sorted(runs, key=lambda run: run[0]["seed"])
    flat = runs[0][0]
    metadata = f"{flat['metadata.encoding']}, {flat['metadata.fusion']}"
    return Experiment(
        metadata=metadata if flat["metadata.use"] else "none",
        augmentation=flat["augment"],
        settings=", ".join(f"{key}={flat[key]}" for key in varying),
        seeds=[run[0]["seed"] for run in runs],
        metrics=[run[1] for run in runs],
    )


def mean_and_std(values: np.ndarray, digits: int = 4) -> str:
    """Mean and sample standard deviation (n - 1) as "0.5443 +- 0.0014"; one value has none."""
    if np.isnan(values).all():
        return "-"
    text = f"{np.nanmean(values):.{digits}f}"
    if np.sum(~np.isnan(values)) > 1:
        text += f" +- {np.nanstd(values, ddof=1):.{digits}f}"
    return text


def overall_table(experiments: Sequence[Experiment]) -> list[list[str]]:
    """The published table's form: a row an experiment, the published score in the last column."""
    header = ["", "metadata", "augmentation", "runs", "mIoU", "mIoU (main)", "mIoU (o.-v.)"]
    header.append("accuracy")
    further = any(e.settings for e in experiments)
    rows = [header + ["settings"] * further + ["published mIoU"]]
    for number, e in enumerate(experiments, start=1):
        score = e.benchmark and e.benchmark.miou.get((e.metadata, e.augmentation))
        rows.append(
            [
                str(number),
                e.metadata,
                "yes" if e.augmentation else "none",
                str(len(e.seeds)),
                mean_and_std(e.values("challenge", "miou")),
                mean_and_std(e.values("main", "miou")),
                mean_and_std(e.values("open_vocabulary", "miou")),
                mean_and_std(e.values("main", "accuracy")),
                *([e.settings] if further else []),
                str(score or "-"),
            ]
        )
    return rows


def class_table(experiments: Sequence[Experiment]) -> list[list[str]]:
    """IoU by class of every experiment, and the first one's recall beside the published one."""
    rows = [["class", *(f"IoU ({n})" for n in range(1, len(experiments) + 1))]]
    rows[0] += ["recall (1)", "published recall"]
    benchmark = experiments[0].benchmark
    for name in experiments[0].metrics[0]["classes"]:
        recall = benchmark.recall.get(name) if benchmark else None
        rows.append(
            [
                name,
                *(mean_and_std(e.values("challenge", "iou", name), 3) for e in experiments),
                mean_and_std(experiments[0].values("main", "recall", name), 2),
                f"{recall:.2f}" if recall is not None else "-",
            ]
        )
    return rows


def as_text(rows: list[list[str]], markdown: bool) -> str:
    """A table as aligned text, or in Markdown's form."""
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def summarize(
    workdirs: Sequence[epath.PathLike], split: str = "test", markdown: bool = False
) -> str:
    """Both tables, and notes on how to read them.

    Raises:
        UserError: see `read_experiments`.
    """
    experiments = read_experiments(workdirs, split)
    patches = experiments[0].metrics[0]["num_patches"]
    notes = [
        f"{patches:,} patches of {split!r}. Mean +- standard deviation (n - 1) over the runs; mIoU "
        "and IoU by the challenge's definition, \"main\", accuracy and recall by the later code's, "
        '"o.-v." by that of open-vocabulary papers: pixels of classes of weight 0 ignored.'
    ]
    if any(metrics.get("synthetic") for e in experiments for metrics in e.metrics):
        notes.append(SYNTHETIC)
    benchmark = experiments[0].benchmark
    if benchmark and (split, patches) != ("test", benchmark.patches):
        notes.append(
            f"The published scores are of {benchmark.name}'s {benchmark.patches:,} test patches "
            "and cannot be compared with these."
        )
    tables = [as_text(table(experiments), markdown) for table in (overall_table, class_table)]
    return "\n\n".join([*tables, "\n".join(notes)])
