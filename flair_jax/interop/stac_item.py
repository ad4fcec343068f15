"""A model as a STAC item with the Machine Learning Model (MLM) extension, version 1.4."""

import datetime
import re
from typing import Any

from flair_jax.data import metadata
from flair_jax.models.spec import ModelSpec, stretch_text
from flair_jax.weights.published import WEIGHTS

MLM = "https://stac-extensions.github.io/mlm/v1.4.0/schema.json"


def item(name: str, spec: ModelSpec, parameters: int, *, license: str = "") -> dict[str, Any]:
    """The item, to write as JSON.

    It has no geometry: which places the model is good for is not known. Its time is now.

    Args:
        name: of the model.
        spec: of the model.
        parameters: their number.
        license: its SPDX identifier; "" if it is not known.
    """
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    bands = [{"name": band} for band in spec.bands]
    properties: dict[str, Any] = {
        "datetime": now,
        "created": now,
        "title": name,
        "description": f"Land cover of aerial images, trained on {data_name(spec)}",
        "bands": bands,
        "mlm:name": _mlm_name(name),
        "mlm:architecture": "U-Net, ResNet34 encoder",
        "mlm:tasks": ["semantic-segmentation"],
        "mlm:framework": "PyTorch",
        "mlm:total_parameters": parameters,
        "mlm:input": _inputs(spec),
        "mlm:output": [_output(spec)],
    }
    if spec.pixel_size:
        properties["gsd"] = spec.pixel_size
    if license:
        properties["license"] = license
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [MLM],
        "id": name,
        "geometry": None,
        "properties": properties,
        "links": [],
        "assets": {
            "weights": {
                "href": f"./{WEIGHTS}",
                "title": "Weights by segmentation-models-pytorch's names",
                "type": "application/octet-stream",
                "roles": ["mlm:model", "mlm:weights"],
                "mlm:artifact_type": "safetensors.torch.save_file",
                "bands": bands,
            },
            "spec": {
                "href": "./model.json",
                "title": "Bands, classes, normalisation, as flair-jax reads them",
                "type": "application/json",
                "roles": ["metadata"],
            },
            "card": {
                "href": "./README.md",
                "title": "Model card",
                "type": "text/markdown",
                "roles": ["metadata"],
            },
        },
    }


def data_name(spec: ModelSpec) -> str:
    """The name of the data set that a model was trained on; of a synthetic one it says so."""
    return spec.data_name + (" (synthetic stand-in)" if spec.synthetic else "")


def _mlm_name(name: str) -> str:
    """A name of the letters that the extension allows."""
    ascii_name = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-_.")
    return f"unet-resnet34-{ascii_name}".rstrip("-")


def _inputs(spec: ModelSpec) -> list[dict[str, Any]]:
    side = 512 if spec.metadata_fusion == "rows" else -1
    sides = "512 x 512" if side == 512 else "multiples of 32"
    description = f"Height and width are {sides}. Digital numbers from 0 to 255"
    if spec.image_types != ("uint8",) or spec.stretch:
        stretch = dict(zip(spec.bands, spec.stretch, strict=False))
        description += f", of {' and '.join(spec.image_types)} images {stretch_text(stretch)}"
    image = {
        "name": "image",
        "description": description + ", scaled as value_scaling says.",
        "bands": list(spec.bands),
        "input": {
            "shape": [-1, len(spec.bands), side, side],
            "dim_order": ["batch", "bands", "height", "width"],
            "data_type": "float32",
        },
        "value_scaling": value_scaling(spec),
    }
    if not spec.takes_metadata:
        return [image]
    encoded = {
        "name": "metadata",
        "description": f"Position, camera and date in flair-jax's encoding "
        f"{spec.metadata_encoding!r}",
        "bands": [],
        "input": {
            "shape": [-1, metadata.SIZES[spec.metadata_encoding]],
            "dim_order": ["batch", "metadata"],
            "data_type": "float32",
        },
    }
    return [image, encoded]


def value_scaling(spec: ModelSpec) -> list[dict[str, Any]]:
    """The normalisation: one entry for all bands, or one for each."""
    if spec.normalization == "scaling":
        return [{"type": "scale", "value": 255}]
    return [
        {"type": "z-score", "mean": mean, "stddev": std}
        for mean, std in zip(spec.means, spec.stds, strict=True)
    ]


def _output(spec: ModelSpec) -> dict[str, Any]:
    classes = [
        {
            "value": value,
            "name": _class_name(c.name),
            "description": c.name,
            "color_hint": c.colour.lstrip("#").upper(),
        }
        for value, c in enumerate(spec.nomenclature.classes)
    ]
    side = 512 if spec.metadata_fusion == "rows" else -1
    return {
        "name": "land cover",
        "description": "Logits; the class of a pixel is that of the largest.",
        "tasks": ["semantic-segmentation"],
        "result": {
            "shape": [-1, len(classes), side, side],
            "dim_order": ["batch", "class", "height", "width"],
            "data_type": "float32",
        },
        "classification:classes": classes,
    }


def _class_name(name: str) -> str:
    """A name of letters, digits, hyphens and underscores, as the extension demands."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or "class"
