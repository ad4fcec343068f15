"""Where the numbers of a run come from: command lines, commits, hosts, and the run's files."""

import os
import shlex
import urllib.parse
from typing import Any

from etils import epath

from flair_jax.report.collect import RunFacts
from flair_jax.report.formats import date
from flair_jax.runtime.storage import is_remote

UNKNOWN = "not recorded"


def origins(run: RunFacts) -> list[dict[str, str]]:
    """The starts of the training and the scoring: `what`, `command`, `commit`, `host`, `versions`.

    What was not recorded, as by earlier versions, is `UNKNOWN`.
    """
    rows = []
    for i, start in enumerate(run.starts or [{}]):
        what = "Training resumed" if i else "Training"
        if start:
            what += f", {date(start['started'])}" + (f", at step {start['step']:,}" if i else "")
        last = i == max(len(run.starts) - 1, 0)
        rows.append(_origin(what, start, run.versions if last else {}))
    if run.metrics:
        rows.append(_origin(f"Scores of the {run.split} split", run.metrics.get("provenance", {})))
    return rows


def _origin(what: str, of: dict[str, Any], versions: dict[str, str] | None = None) -> dict:
    commit = of.get("git_commit")
    if "git_commit" in of and commit is None:
        commit = "none: not run from a git checkout"
    elif commit and commit.endswith("-dirty"):
        commit = f"{commit.removesuffix('-dirty')}, with uncommitted changes"
    versions = of.get("versions") or versions or {}
    return {
        "what": what,
        "command": of.get("command") or UNKNOWN,
        "commit": commit or UNKNOWN,
        "host": of.get("host") or UNKNOWN,
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()) or UNKNOWN,
    }


def files(run: RunFacts, page: epath.Path) -> list[dict[str, str]]:
    """The files of a run that are there: `name`, `meaning`, `href` ("" if it cannot be linked to).

    Args:
        run: the run.
        page: where the page is written; links are relative to it.
    """
    scores = run.scores.relative_to(run.workdir)
    known = {
        f"{scores}/metrics.json": f"scores of the {run.split} split by every definition, class and "
        "group, the confusion matrix, and what they are of",
        f"{scores}/patches.json": f"scores of every patch of the {run.split} split",
        f"{scores}/confusion_matrix.png": "the confusion matrix as an image",
        "metrics.jsonl": "losses, scores and learning rates, by step and epoch",
        "config.json": "the configuration",
        "checkpoints/model.json": "bands, classes and normalisation of the model",
        "tensorboard/": "the same curves, and images of validation patches, for TensorBoard",
    }
    return [
        {"name": name, "meaning": meaning, "href": _link(run.workdir / name, page, name)}
        for name, meaning in known.items()
        if (run.workdir / name).exists()
    ]


def _link(path: epath.Path, page: epath.Path, name: str) -> str:
    if is_remote(path) or is_remote(page):
        return ""
    relative = os.path.relpath(path.resolve(), page.parent.resolve())
    # A first folder with a colon would pass for the scheme of a URL.
    return "./" + urllib.parse.quote(relative) + ("/" if name.endswith("/") else "")


def tensorboard_command(run: RunFacts) -> str:
    """The command that shows the run's curves in TensorBoard, from any folder; "" without them."""
    folder = run.workdir / "tensorboard"
    if not folder.exists():
        return ""
    return f"tensorboard --logdir={shlex.quote(os.fspath(_absolute(folder)))}"


def _absolute(path: epath.Path) -> epath.Path:
    return path if is_remote(path) else path.resolve()
