"""Export of a model as a folder for the Hugging Face hub: weights, spec, model card, STAC item."""

import json
import pathlib
import re
from typing import Any

import numpy as np
from etils import epath

from flair_jax.errors import UserError
from flair_jax.evaluation.evaluate import output_folder
from flair_jax.inference.loading import find
from flair_jax.interop import model_card, stac_item
from flair_jax.models.functional import Arrays
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime import checksums, console
from flair_jax.weights import torch_weights
from flair_jax.weights.published import RECORD, WEIGHTS, is_published

CONFIG, CARD, ITEM = "config.json", "README.md", "stac_item.json"
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")


def check_license(license: str) -> None:
    """Raises a UserError unless a text can be the identifier of a licence; "" is none."""
    if license and not _LICENSE.fullmatch(license):
        raise UserError(
            f"--license={license}: expected an SPDX identifier, such as Apache-2.0, CC-BY-4.0 or "
            "etalab-2.0"
        )


def known_scores(
    checkpoint: str, params: Arrays, batch_stats: Arrays, ema: bool
) -> dict[str, Any] | None:
    """What a run's `evaluation/test/metrics.json` holds, if it is of these very weights.

    Args:
        checkpoint: see `loading.load`.
        params, batch_stats: the weights.
        ema: whether they are the moving average: `evaluation/test_ema/` then.
    """
    if is_published(checkpoint):
        return None
    directory, _ = find(checkpoint)
    path = output_folder(directory.parent, "test", ema) / "metrics.json"
    if directory.name != "checkpoints" or not path.exists():
        return None
    now = checksums.of_arrays({**params, **batch_stats})
    try:
        metrics = json.loads(path.read_text())
        if metrics["provenance"]["checkpoint"]["arrays_crc32"] == now:
            return metrics
        reason = "is of other weights"
    except (ValueError, KeyError, TypeError):
        reason = "does not say which weights it is of"
    console.log(
        f"note: {path} {reason}: the model card has no scores (flair-jax evaluate writes them anew)"
    )
    return None


def write_hub_folder(
    path: pathlib.Path,
    name: str,
    spec: ModelSpec,
    params: Arrays,
    batch_stats: Arrays,
    *,
    step: int,
    ema: bool,
    license: str = "",
    metrics: dict[str, Any] | None = None,
) -> None:
    """Writes a folder to upload.

    - `model.safetensors`: the weights by segmentation-models-pytorch's names;
    - `config.json`: for `segmentation_models_pytorch.from_pretrained`, of a model without metadata;
    - `model.json`: the spec, with which `load_model` takes the folder;
    - `README.md`: the model card;
    - `stac_item.json`: a STAC item with the Machine Learning Model extension.

    Args:
        path: the folder to make.
        name: of the model.
        spec, params, batch_stats: of the model.
        step: of the training.
        ema: whether the weights are their moving average.
        license: its SPDX identifier; "" if it is not known.
        metrics: the scores, see `evaluate.evaluate_checkpoint`.
    """
    from safetensors.numpy import save

    arrays = {**params, **batch_stats}
    record = {
        "step": step,
        "weights": "ema" if ema else "raw",
        "arrays_crc32": checksums.of_arrays(arrays),
    }
    count = sum(int(np.size(array)) for array in params.values())
    path.mkdir()
    tensors = torch_weights.state_dict_of(params, batch_stats)
    weights = save(tensors, metadata={"format": "pt", RECORD: json.dumps(record)})
    (path / WEIGHTS).write_bytes(weights)
    spec.save(epath.Path(path))
    if not spec.takes_metadata:
        _write_json(path / CONFIG, smp_config(spec))
    card = model_card.text(name, spec, record, count, license=license, metrics=metrics)
    (path / CARD).write_text(card, encoding="utf-8")
    _write_json(path / ITEM, stac_item.item(name, spec, count, license=license))


def smp_config(spec: ModelSpec) -> dict[str, Any]:
    """What builds the network in segmentation-models-pytorch.

    Only what all of its versions with `from_pretrained` know; the rest is their default.
    """
    return {
        "_model_class": "Unet",
        "encoder_name": "resnet34",
        "encoder_depth": 5,
        "encoder_weights": None,
        "decoder_channels": [256, 128, 64, 32, 16],
        "in_channels": len(spec.bands),
        "classes": len(spec.nomenclature),
        "activation": None,
    }


def _write_json(path: pathlib.Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
