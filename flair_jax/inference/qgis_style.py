"""What shows a raster of classes in its colours: a QGIS style and a picture with legend."""

from xml.etree import ElementTree as xml

import numpy as np
import rasterio
from etils import epath

from flair_jax.data.nomenclature import Nomenclature
from flair_jax.inference.geotiff import NODATA
from flair_jax.viz import images

_LONGEST = 1600  # pixels of a picture's longer side, at most
_SHORTEST = 256  # smaller rasters are enlarged about so far


def qgis_style(nomenclature: Nomenclature, first_class: int) -> str:
    """The text of a `.qml` file, which QGIS loads with the raster beside it.

    Args:
        nomenclature: the classes.
        first_class: value of the first one.
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


def quick_look(path: epath.Path, nomenclature: Nomenclature, first_class: int) -> np.ndarray:
    """A picture of a raster of classes, from its overviews, with the legend of what is in it.

    Args:
        path: what `geotiff.write_classes` wrote.
        nomenclature, first_class: as given to it.

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
