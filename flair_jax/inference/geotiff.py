"""Finished rows of tiles -> Cloud-Optimised GeoTIFFs of classes, probabilities, confidence."""

import dataclasses
import errno
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree as xml

import rasterio
from etils import epath
from rasterio.shutil import copy
from rasterio.transform import Affine

from flair_jax.data.nomenclature import Nomenclature
from flair_jax.inference.mosaic import add_source

NODATA = 255
_BLOCK = 512


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows' files, from the top, and where they lie.

    Attributes:
        paths: the files, see `partial.PartialJob`.
        heights: of each, in pixels.
        width: of all.
        crs, transform: of the whole; None and the identity where nothing is known.
        tags: what the results say of themselves.
    """

    paths: Sequence[epath.Path]
    heights: Sequence[int]
    width: int
    crs: rasterio.crs.CRS | None
    transform: Affine
    tags: Mapping[str, str]

    def virtual(self) -> xml.Element:
        """A VRT without bands yet."""
        size = {"rasterXSize": str(self.width), "rasterYSize": str(sum(self.heights))}
        root = xml.Element("VRTDataset", size)
        if self.crs is not None:
            xml.SubElement(root, "SRS").text = self.crs.to_wkt()
        if self.transform != Affine.identity():
            place = ", ".join(map(repr, self.transform.to_gdal()))
            xml.SubElement(root, "GeoTransform").text = place
        metadata = xml.SubElement(root, "Metadata")
        for key, value in self.tags.items():
            xml.SubElement(metadata, "MDI", key=key).text = value
        return root

    def fill(self, band: xml.Element, number: int, table: str = "") -> None:
        """Gives a band of a VRT its pixels: a band of the rows, its values changed by a table."""
        top = 0
        for path, height in zip(self.paths, self.heights, strict=True):
            source = add_source(band, str(path), 0, top, self.width, height, band=str(number))
            if table:
                xml.SubElement(source, "LUT").text = table
            top += height


def write_classes(
    path: epath.Path, rows: Rows, nomenclature: Nomenclature, first_class: int
) -> None:
    """Writes the classes: uint8 with colours and names, 255 where there is no data.

    The overviews show the most frequent class. The names are in `<path>.aux.xml`, where GDAL keeps
    them, and in the tags.

    Args:
        path: the GeoTIFF.
        rows: the pixels.
        nomenclature: the classes.
        first_class: value of the first one.
    """
    root = rows.virtual()
    band = xml.SubElement(root, "VRTRasterBand", dataType="Byte", band="1")
    xml.SubElement(band, "Description").text = "land cover"
    xml.SubElement(band, "NoDataValue").text = str(NODATA)
    xml.SubElement(band, "ColorInterp").text = "Palette"
    table = xml.SubElement(band, "ColorTable")
    names = xml.SubElement(band, "CategoryNames")
    for _ in range(first_class):
        xml.SubElement(table, "Entry", c1="0", c2="0", c3="0", c4="0")
        xml.SubElement(names, "Category").text = ""
    for name, (red, green, blue) in zip(nomenclature.names, nomenclature.rgb, strict=True):
        xml.SubElement(table, "Entry", c1=str(red), c2=str(green), c3=str(blue), c4="255")
        xml.SubElement(names, "Category").text = name
    last = len(nomenclature)
    rows.fill(band, 1, f"0:{NODATA},1:{first_class},{last}:{first_class + last - 1}")
    _write(path, root, "mode")


def write_measures(path: epath.Path, rows: Rows, first_band: int, names: Sequence[str]) -> None:
    """Writes bands from 0 to 1 as bytes with a scale of 1/255, and a mask of the valid pixels.

    Args:
        path: the GeoTIFF.
        rows: the pixels.
        first_band: where in the rows' files the bands begin.
        names: descriptions of the bands.
    """
    root = rows.virtual()
    for i, name in enumerate(names):
        band = xml.SubElement(root, "VRTRasterBand", dataType="Byte", band=str(i + 1))
        xml.SubElement(band, "Description").text = name
        xml.SubElement(band, "Scale").text = repr(1 / 255)
        rows.fill(band, first_band + i)
    mask = xml.SubElement(xml.SubElement(root, "MaskBand"), "VRTRasterBand", dataType="Byte")
    rows.fill(mask, 1, "0:0,1:255")
    _write(path, root, "average")


def _write(path: epath.Path, root: xml.Element, resampling: str) -> None:
    virtual = path.with_name(path.name + ".vrt")
    virtual.write_text(xml.tostring(root, "unicode"))
    copy(
        str(virtual),
        str(path),
        driver="COG",
        compress="deflate",
        blocksize=_BLOCK,
        overview_resampling=resampling,
        bigtiff="if_safer",
        num_threads="all_cpus",
    )
    # GDAL writes much of it at closing, where it does not report a full disk.
    with rasterio.open(virtual) as source, rasterio.open(path) as written:
        if any(source.checksum(band) != written.checksum(band) for band in source.indexes):
            raise OSError(errno.EIO, "not all was written; is the disk full?", str(path))
    virtual.unlink()
