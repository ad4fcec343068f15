"""QGIS styles of class rasters, measures and polygons; PNG preview of a class raster."""

from xml.etree import ElementTree as xml

import numpy as np
import rasterio
from etils import epath

from flair_jax.data.nomenclature import Nomenclature
from flair_jax.inference.georeference import Georeference
from flair_jax.inference.geotiff import NODATA
from flair_jax.viz import images

_LONGEST = 1600  # the longer side of a preview, at most, in pixels
# The colour map viridis, from 0 to 1.
_RAMP = (
    (0, "#440154"), (0.25, "#3b528b"), (0.5, "#21918c"), (0.75, "#5ec962"), (1, "#fde725"),
)  # fmt: skip
_SHORTEST = 256  # smaller rasters are enlarged to about this side


def qgis_style(nomenclature: Nomenclature, first_class: int) -> str:
    """The text of a `.qml` file, which QGIS loads together with the raster of the same name.

    Args:
        nomenclature: the classes.
        first_class: the value of the first class.
    """
    root, pipe = _style()
    renderer = xml.SubElement(
        pipe, "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1",
        nodataColor="",
    )  # fmt: skip
    xml.SubElement(renderer, "rasterTransparency")
    palette = xml.SubElement(renderer, "colorPalette")
    for value, land_cover in enumerate(nomenclature.classes, first_class):
        xml.SubElement(
            palette, "paletteEntry", value=str(value), color=land_cover.colour,
            label=land_cover.name, alpha="255",
        )  # fmt: skip
    return _text(root, pipe)


def measure_style(bands: int) -> str:
    """The text of a `.qml` file that shows the first band of measures from 0 to 1 as a ramp.

    See `geotiff.write_measures`, by whose scale QGIS gets values from 0 to 1. It takes the mask
    for one more band, of opacity.

    Args:
        bands: number of bands of the raster.
    """
    root, pipe = _style()
    renderer = xml.SubElement(
        pipe, "rasterrenderer", type="singlebandpseudocolor", band="1", opacity="1",
        alphaBand=str(bands + 1), nodataColor="", classificationMin="0", classificationMax="1",
    )  # fmt: skip
    xml.SubElement(renderer, "rasterTransparency")
    shader = xml.SubElement(
        xml.SubElement(renderer, "rastershader"), "colorrampshader",
        colorRampType="INTERPOLATED", classificationMode="1", clip="0",
        minimumValue="0", maximumValue="1",
    )  # fmt: skip
    for value, colour in _RAMP:
        xml.SubElement(
            shader, "item", value=f"{value:g}", label=f"{value:g}", color=colour, alpha="255"
        )
    return _text(root, pipe)


def polygon_style(nomenclature: Nomenclature, first_class: int, field: str) -> str:
    """The text of a style that fills polygons in the colours of their classes.

    Args:
        nomenclature: the classes.
        first_class: the value of the first class.
        field: the attribute with the value.
    """
    root = xml.Element("qgis", version="3.22", styleCategories="Symbology")
    renderer = xml.SubElement(root, "renderer-v2", type="categorizedSymbol", attr=field)
    categories = xml.SubElement(renderer, "categories")
    symbols = xml.SubElement(renderer, "symbols")
    for index, land_cover in enumerate(nomenclature.classes):
        name = str(index)
        xml.SubElement(
            categories, "category", symbol=name, value=str(first_class + index),
            label=land_cover.name, render="true",
        )  # fmt: skip
        symbol = xml.SubElement(symbols, "symbol", type="fill", name=name, alpha="1")
        fill = xml.SubElement(symbol, "layer", {"class": "SimpleFill"}, enabled="1", locked="0")
        red, green, blue = bytes.fromhex(land_cover.colour[1:])
        for key, value in (
            ("color", f"{red},{green},{blue},255"), ("style", "solid"),
            ("outline_style", "no"),
        ):  # fmt: skip
            xml.SubElement(fill, "prop", k=key, v=value)
    return _document(root)


def _style() -> tuple[xml.Element, xml.Element]:
    """A style without a renderer, and the element that takes it."""
    root = xml.Element("qgis", version="3.22", styleCategories="Symbology")
    return root, xml.SubElement(root, "pipe")


def _text(root: xml.Element, pipe: xml.Element) -> str:
    xml.SubElement(pipe, "rasterresampler", maxOversampling="2")
    return _document(root)


def _document(root: xml.Element) -> str:
    xml.indent(root)
    head = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
    return head + xml.tostring(root, "unicode") + "\n"


def preview(
    path: epath.Path, nomenclature: Nomenclature, first_class: int, title: str = ""
) -> np.ndarray:
    """A preview of a class raster, read from its overviews, with title, legend and scale bar.

    Args:
        path: written by `geotiff.write_classes`.
        nomenclature, first_class: the arguments given to it.
        title: "" for none.

    Returns:
        (height, width, 3) uint8.
    """
    with rasterio.open(path) as raster:
        shrink = max(1.0, max(raster.shape) / _LONGEST)
        shape = tuple(max(1, round(side / shrink)) for side in raster.shape)
        values = raster.read(1, out_shape=shape)
        middle = raster.width / 2, raster.height / 2
        size = Georeference.of(raster).pixel_size(*middle)
        metres = None if size is None else size[0] * raster.width / shape[1]
    labels = np.where(values == NODATA, values, values - np.uint8(first_class))
    enlarge = max(1, _SHORTEST // max(labels.shape))
    labels = labels.repeat(enlarge, 0).repeat(enlarge, 1)
    present = [int(label) for label in np.unique(labels) if label < len(nomenclature)]
    shown = images.paint(labels, nomenclature)
    if metres is not None:
        shown = images.with_scale_bar(shown, metres / enlarge)
    nothing = bool((labels >= len(nomenclature)).any())
    shown = images.with_legend(shown, nomenclature, present, nothing=nothing)
    return images.with_title(shown, title) if title else shown
