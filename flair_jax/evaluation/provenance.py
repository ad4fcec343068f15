"""What scores and predictions are of: checkpoint, data, definitions, versions, command, host."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from flair_jax.data import fingerprint
from flair_jax.data.dataset import Split
from flair_jax.models.functional import Arrays
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime import checksums
from flair_jax.runtime.provenance import provenance

# What may differ in results that are nevertheless of the same.
_INFORMATIVE = ("command", "host", "folder", "directory")


def of_result(
    spec: ModelSpec,
    params: Arrays,
    batch_stats: Arrays,
    step: int,
    split: Split,
    *,
    folder: epath.PathLike,
    ema: bool,
    adapt: str = "",
    **options: Any,
) -> dict[str, Any]:
    """What a result is of, as plain values.

    Args:
        spec, params, batch_stats, step: of the model.
        split: that it is applied to.
        folder: of the checkpoints.
        ema: whether the weights are the exponential moving average.
        adapt: how the batch statistics were re-estimated; "" if they are the checkpoint's.
        options: what else the result depends on, such as the definition of the loss.

    Returns:
        `checkpoint`: its step, folder, weights, and checksums of its arrays and of the spec;
        `data`: the fingerprint of the split, and its folder; the options; and what
        `runtime.provenance` tells of the program.
    """
    values = json.loads(json.dumps(dataclasses.asdict(spec)))
    data = fingerprint.fingerprint(split.directory)
    return {
        "checkpoint": {
            "folder": str(folder),
            "step": step,
            "weights": "ema" if ema else "raw",
            "arrays_crc32": checksums.of_arrays({**params, **batch_stats}),
            "spec_crc32": checksums.seal(values)[checksums.KEY],
        },
        "data": {
            **data,
            "splits": {split.name: data["splits"][split.name]},
            "directory": split.directory,
        },
        **({"adapt": adapt} if adapt else {}),  # earlier results have no such entry
        **options,
        **provenance(),
    }


def is_current(saved: Any, now: Mapping[str, Any]) -> bool:
    """Whether a saved result would come out the same now."""
    try:
        same_data = not fingerprint.differences(saved["data"], now["data"])
        return same_data and _compared(saved) == _compared(now)
    except (KeyError, TypeError):  # of an earlier version, or of nothing of the kind
        return False


def _compared(values: Mapping[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in values.items() if key not in (*_INFORMATIVE, "data")}
    checkpoint = values["checkpoint"].items()
    rest["checkpoint"] = {key: value for key, value in checkpoint if key not in _INFORMATIVE}
    return rest


def read_current(path: epath.Path, now: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a JSON file holds, if its `provenance` is that of now; None otherwise."""
    try:
        values = json.loads(path.read_text())
        return values if is_current(values["provenance"], now) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
