"""The summary of a map, as JSON: areas of its classes, settings, model."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from flair_jax.data.nomenclature import Nomenclature
from flair_jax.inference import provenance
from flair_jax.inference.areas import Areas, Feature
from flair_jax.inference.options import Options
from flair_jax.inference.outputs import Built
from flair_jax.inference.predictor import Model
from flair_jax.inference.raster_source import Source

_M2_PER_HECTARE = 1e4


def of_map(
    made: Built,
    source: Source,
    nomenclature: Nomenclature,
    options: Options,
    features: Sequence[Feature],
) -> dict[str, Any]:
    """What is known of the map: its pixels, areas and settings.

    Args:
        made: what was built.
        source: what it was made from.
        nomenclature: the classes.
        options: of the detection.
        features: polygons that `made` has the areas in.
    """
    first, crs, size = options.first_class, source.georeference.crs, source.pixel_size
    basis = "coordinates taken as metres" if crs is None else "the WGS 84 ellipsoid"
    settings = dataclasses.asdict(options)
    for name in ("overwrite", "resume"):
        settings.pop(name)
    *_, height, width = source.window
    return {
        "width": width,
        "height": height,
        "crs": None if crs is None else crs.to_string(),
        "pixel_size_in_metres": size,
        "areas_on": None if size is None else basis,
        **of_areas(made.areas, nomenclature, first),
        "features": [
            {
                "id": _plain(feature.id),
                "properties": {str(key): _plain(v) for key, v in feature.properties.items()},
                **of_areas(areas, nomenclature, first),
            }
            for feature, areas in zip(features, made.of_features, strict=True)
        ],
        "merged_patches": made.merged,
        "polygons": made.polygons,
        "license": options.license or None,
        "acquired": options.acquisition() or None,
        "settings": settings,
    }


def _plain(value: Any) -> Any:
    """An attribute as JSON has it: a number, a text or None, which stands for NaN, too."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def of_model(model: Model, tags: Mapping[str, str]) -> dict[str, Any]:
    """What is known of a model, `tags` being those of the map."""
    return {
        "checkpoint": model.path,
        "step": model.step,
        "weights_sha256": tags["MODEL_WEIGHTS_SHA256"],
        "bands": model.spec.bands,
        "nomenclature": model.spec.nomenclature.name,
        "trained_on": tags["MODEL_TRAINED_ON"],
        "card": provenance.model_card(model.path) or None,
    }


def of_areas(areas: Areas, nomenclature: Nomenclature, first_class: int) -> dict[str, Any]:
    """The areas of classes as a JSON object: hectares and shares of what has a class."""
    measured = areas.square_metres
    amounts = areas.pixels if measured is None else measured
    total = float(amounts.sum())
    classes = []
    for index, name in enumerate(nomenclature.names):
        classes.append(
            {
                "class": first_class + index,
                "name": name,
                "pixels": int(areas.pixels[index]),
                "hectares": None if measured is None else float(measured[index]) / _M2_PER_HECTARE,
                "share": float(amounts[index]) / total if total else 0.0,
            }
        )
    nodata = areas.nodata_square_metres
    return {
        "classes": classes,
        "pixels": int(areas.pixels.sum()),
        "hectares": None if measured is None else total / _M2_PER_HECTARE,
        "nodata_pixels": areas.nodata_pixels,
        "nodata_hectares": None if nodata is None else nodata / _M2_PER_HECTARE,
    }


def write_json(path: epath.Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False, default=os.fspath)
    path.write_text(text + "\n")
