"""QGIS style and PNG preview of a class raster."""

from xml.etree import ElementTree as xml

import numpy as np
import rasterio
from etils import epath

from flair_jax.data.nomenclature import Nomenclature
from flair_jax.inference.geotiff import NODATA
from flair_jax.viz import images

_LONGEST = 1600  # the longer side of a preview, at most, in pixels
_SHORTEST = 256  # smaller rasters are enlarged to about this side


def qgis_style(nomenclature: Nomenclature, first_class: int) -> str:
    """The text of a `.qml` file, which QGIS loads together with the raster of the same name.

    Args:
        nomenclature: the classes.
        first_class: the value of the first class.
    """
    root = xml.Element("qgis", version="3.22", styleCategories="Symbology")
    pipe = xml.SubElement(root, "pipe")
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
    xml.SubElement(pipe, "rasterresampler", maxOversampling="2")
    xml.indent(root)
    head = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
    return head + xml.tostring(root, "unicode") + "\n"


def preview(path: epath.Path, nomenclature: Nomenclature, first_class: int) -> np.ndarray:
    """A preview of a class raster, read from its overviews, with a legend of its classes.

    Args:
        path: written by `geotiff.write_classes`.
        nomenclature, first_class: the arguments given to it.

    Returns:
        (height, width, 3) uint8.
    """
    with rasterio.open(path) as raster:
        shrink = max(1.0, max(raster.shape) / _LONGEST)
        shape = tuple(max(1, round(side / shrink)) for side in raster.shape)
        values = raster.read(1, out_shape=shape)
    labels = np.where(values == NODATA, values, values - np.uint8(first_class))
    enlarge = max(1, _SHORTEST // max(labels.shape))
    labels = labels.repeat(enlarge, 0).repeat(enlarge, 1)
    present = [int(label) for label in np.unique(labels) if label < len(nomenclature)]
    return images.with_legend(images.paint(labels, nomenclature), nomenclature, present)
