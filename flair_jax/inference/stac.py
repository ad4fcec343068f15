"""The STAC item of a map: where it lies, its files, its classes, its model (STAC 1.1.0)."""

import os
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

import flair_jax
from flair_jax.data.nomenclature import Nomenclature
from flair_jax.inference.footprint import footprint
from flair_jax.inference.georeference import Georeference
from flair_jax.inference.geotiff import NODATA
from flair_jax.inference.pixel_grid import is_located

_EXTENSIONS = (
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
)
_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
# Of each product: media type, role, title.
_ASSETS = {
    "classes": (_COG, "data", "land cover"),
    "probabilities": (_COG, "data", "probability of each class, 255 for 1"),
    "confidence": (_COG, "data", "probability of the class, margin, entropy; 255 for 1"),
    "polygons": ("application/geopackage+sqlite3", "data", "polygons of one class"),
    "preview": ("image/png", "overview", "preview with legend"),
    "summary": ("application/json", "metadata", "areas of the classes, inputs, settings"),
    "names": ("application/xml", "metadata", "names and colours of the classes, for GDAL"),
    "style": ("application/xml", "metadata", "style of the land cover for QGIS"),
    "probabilities_style": ("application/xml", "metadata", "style of the probabilities for QGIS"),
    "confidence_style": ("application/xml", "metadata", "style of the confidence for QGIS"),
}


def is_possible(georeference: Georeference, width: int, height: int) -> bool:
    """Whether a raster has the coordinates that an item needs; its size is in pixels."""
    if georeference.crs is None or not is_located(georeference):
        return False
    return footprint(georeference, width, height) is not None


def item(
    products: Mapping[str, epath.Path],
    georeference: Georeference,
    width: int,
    height: int,
    nomenclature: Nomenclature,
    first_class: int,
    *,
    created: str,
    card: str,
    acquired: Sequence[str] = (),
    data_license: str = "",
) -> dict[str, Any]:
    """The STAC item of a map for which it `is_possible`.

    Args:
        products: the files of the map by content, all in one folder.
        georeference, width, height: of the map, the size in pixels.
        nomenclature: the classes.
        first_class: the value of the first one.
        created: when the map was begun, in UTC.
        card: path or URL of the model's card, or "".
        acquired: the first and the last date of the images, or ().
        data_license: of the map, or "".

    Returns:
        The item as a JSON object.
    """
    outline = footprint(georeference, width, height)
    assert outline, "is_possible was not asked"
    geometry, box = outline
    output = products["classes"]
    classes = [
        {
            "value": value,
            "name": re.sub("[^0-9A-Za-z]+", "-", land_cover.name).strip("-") or f"class-{value}",
            "title": land_cover.name,
            "description": land_cover.name,
            "color_hint": land_cover.colour.lstrip("#").upper(),
        }
        for value, land_cover in enumerate(nomenclature.classes, first_class)
    ]
    no_data = {"name": "no-data", "title": "no data", "description": "no data", "nodata": True}
    assets: dict[str, dict[str, Any]] = {}
    for name, (media_type, role, title) in _ASSETS.items():
        if name in products:
            asset = {
                "href": "./" + urllib.parse.quote(products[name].name),
                "type": media_type,
                "roles": [role],
                "title": title,
            }
            assets[name] = asset
    assets["classes"] |= {
        "data_type": "uint8",
        "nodata": NODATA,
        "classification:classes": [*classes, {"value": NODATA, **no_data}],
    }
    links = []
    if card:
        links.append({"rel": "describedby", "href": _reference(card), "title": "model card"})
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": list(_EXTENSIONS),
        "id": output.stem,
        "geometry": geometry,
        "bbox": box,
        "properties": {
            "title": f"Land cover: {output.stem}",
            **_dates(created, acquired),
            "created": created,
            **({"license": _stac_license(data_license)} if data_license else {}),
            "processing:software": {"flair-jax": flair_jax.__version__},
            **_projection(georeference, width, height),
        },
        "links": links,
        "assets": assets,
    }


def _dates(created: str, acquired: Sequence[str]) -> dict[str, Any]:
    description = "Land cover by a neural network"
    if not acquired:
        return {
            "description": f"{description}. The date is when the map was made: when the images "
            "were taken is not known.",
            "datetime": created,
        }
    return {
        "description": f"{description}. The dates are those of the images.",
        "datetime": None,
        "start_datetime": f"{acquired[0]}T00:00:00Z",
        "end_datetime": f"{acquired[1]}T23:59:59Z",
    }


def _projection(georeference: Georeference, width: int, height: int) -> dict[str, Any]:
    crs, transform = georeference.crs, georeference.transform
    authority = None if crs is None else crs.to_authority(confidence_threshold=100)
    properties: dict[str, Any] = {
        "proj:code": ":".join(authority) if authority else None,
        "proj:shape": [height, width],
        "proj:transform": list(transform)[:6],
    }
    if not authority and crs is not None:
        properties["proj:wkt2"] = crs.to_wkt(version="WKT2_2019")
    return properties


def _stac_license(text: str) -> str:
    """What STAC takes as a licence: an identifier, or "other"."""
    return text if re.fullmatch(r"[\w\-.+]+", text) else "other"


def _reference(path: str) -> str:
    """A path or a URL as a URL."""
    return path if "://" in path else epath.Path(os.path.abspath(path)).as_uri()
