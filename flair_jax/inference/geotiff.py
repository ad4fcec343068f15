"""Writes Cloud-Optimised GeoTIFFs of classes, probabilities and confidence from rows of tiles."""

import dataclasses
import errno
import os
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree as xml

import rasterio
from etils import epath
from rasterio._err import CPLE_BaseError
from rasterio.shutil import copy
from rasterio.transform import Affine

from flair_jax.data.nomenclature import Nomenclature
from flair_jax.inference.georeference import Georeference

NODATA = 255
_BLOCK = 512
# Columns of the raster attribute table: name, GDALRATFieldType (0 integer, 2 string) and
# GDALRATFieldUsage (5 value, 2 name, 6 to 9 red, green, blue, alpha).
_ATTRIBUTES = (
    ("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8),
    ("Alpha", 0, 9),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rows:
    """The files of the finished rows, from the top, and their georeferencing.

    Attributes:
        paths: the files, see `resume.PartialJob`.
        heights: the height of each, in pixels.
        width: the width of all, in pixels.
        georeference: of what is written.
        tags: the TIFF tags of the outputs.
        window: (top, left, height, width) of the raster that is written; None: all of it.
    """

    paths: Sequence[epath.Path]
    heights: Sequence[int]
    width: int
    georeference: Georeference
    tags: Mapping[str, str]
    window: tuple[int, int, int, int] | None = None

    def virtual(self) -> xml.Element:
        """A VRT without bands."""
        height, width = self.map_size
        root = xml.Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
        self.georeference.add_to_vrt(root)
        metadata = xml.SubElement(root, "Metadata")
        for key, value in self.tags.items():
            xml.SubElement(metadata, "MDI", key=key).text = value
        return root

    def fill(self, band: xml.Element, number: int, table: str = "") -> None:
        """Adds a band of the rows as the sources of a VRT band, values mapped by a lookup table."""
        first, left, rows, columns = self._written
        end = -first  # of the rows before, in the written raster
        for path, height in zip(self.paths, self.heights, strict=True):
            begin, end = end, end + height
            top, bottom = max(begin, 0), min(end, rows)
            if top >= bottom:
                continue
            source = xml.SubElement(band, "ComplexSource")
            xml.SubElement(source, "SourceFilename", relativeToVRT="0").text = str(path)
            xml.SubElement(source, "SourceBand").text = str(number)
            size = {"xSize": str(columns), "ySize": str(bottom - top)}
            offset = {"xOff": str(left), "yOff": str(top - begin)}
            xml.SubElement(source, "SrcRect", offset | size)
            xml.SubElement(source, "DstRect", {"xOff": "0", "yOff": str(top)} | size)
            if table:
                xml.SubElement(source, "LUT").text = table

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of what is written."""
        return self._written[2:]

    @property
    def _written(self) -> tuple[int, int, int, int]:
        return self.window or (0, 0, sum(self.heights), self.width)


def write_classes(
    path: epath.Path, rows: Rows, nomenclature: Nomenclature, first_class: int
) -> None:
    """Writes the class raster: uint8 with a colour table and names, NoData 255.

    Overviews are resampled by mode. The class names are in `<path>.aux.xml`, where GDAL keeps
    them, and in the tags. A raster attribute table is in the file where GDAL is 3.11 or later, and
    in `<path>.aux.xml` before.

    Args:
        path: the GeoTIFF to write.
        rows: its pixels.
        nomenclature: the classes.
        first_class: the value of the first class.
    """
    root = rows.virtual()
    band = xml.SubElement(root, "VRTRasterBand", dataType="Byte", band="1")
    xml.SubElement(band, "Description").text = "land cover"
    xml.SubElement(band, "NoDataValue").text = str(NODATA)
    xml.SubElement(band, "ColorInterp").text = "Palette"
    table = xml.SubElement(band, "ColorTable")
    names = xml.SubElement(band, "CategoryNames")
    _add_attribute_table(band, nomenclature, first_class)
    for _ in range(first_class):
        xml.SubElement(table, "Entry", c1="0", c2="0", c3="0", c4="0")
        xml.SubElement(names, "Category").text = ""
    for name, (red, green, blue) in zip(nomenclature.names, nomenclature.rgb, strict=True):
        xml.SubElement(table, "Entry", c1=str(red), c2=str(green), c3=str(blue), c4="255")
        xml.SubElement(names, "Category").text = name
    last = len(nomenclature)
    rows.fill(band, 1, f"0:{NODATA},1:{first_class},{last}:{first_class + last - 1}")
    _write(path, root, "mode")


def write_virtual(path: epath.Path, rows: Rows) -> None:
    """Writes a VRT of the classes as they are in the rows: from 1, and 0 for no class.

    It has no georeferencing.
    """
    plain = Georeference(None, Affine.identity())
    root = dataclasses.replace(rows, georeference=plain, tags={}).virtual()
    rows.fill(xml.SubElement(root, "VRTRasterBand", dataType="Byte", band="1"), 1)
    path.write_text(xml.tostring(root, "unicode"))


def write_measures(path: epath.Path, rows: Rows, first_band: int, names: Sequence[str]) -> None:
    """Writes bands of values from 0 to 1 as uint8 with a scale of 1/255 and a mask of valid pixels.

    Args:
        path: the GeoTIFF to write.
        rows: its pixels.
        first_band: the first of the bands in the files of the rows, from 1.
        names: descriptions of the bands.
    """
    root = rows.virtual()
    for i, name in enumerate(names):
        band = xml.SubElement(root, "VRTRasterBand", dataType="Byte", band=str(i + 1))
        xml.SubElement(band, "Description").text = name
        xml.SubElement(band, "ColorInterp").text = "Gray"  # or they become red, green, blue, alpha
        xml.SubElement(band, "Scale").text = repr(1 / 255)
        rows.fill(band, first_band + i)
    mask = xml.SubElement(xml.SubElement(root, "MaskBand"), "VRTRasterBand", dataType="Byte")
    rows.fill(mask, 1, "0:0,1:255")
    _write(path, root, "average")


def _add_attribute_table(band: xml.Element, nomenclature: Nomenclature, first_class: int) -> None:
    """Adds GDAL's table of the values, names and colours of the classes."""
    table = xml.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    for index, (name, kind, usage) in enumerate(_ATTRIBUTES):
        field = xml.SubElement(table, "FieldDefn", index=str(index))
        for key, value in (("Name", name), ("Type", kind), ("Usage", usage)):
            xml.SubElement(field, key).text = str(value)
    for index, (name, rgb) in enumerate(zip(nomenclature.names, nomenclature.rgb, strict=True)):
        row = xml.SubElement(table, "Row", index=str(index))
        for value in (first_class + index, name, *rgb.tolist(), 255):
            xml.SubElement(row, "F").text = str(value)


def _write(path: epath.Path, root: xml.Element, resampling: str) -> None:
    virtual = path.with_name(path.name + ".vrt")
    virtual.write_text(xml.tostring(root, "unicode"))
    try:
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
    except CPLE_BaseError as error:  # which rasterio passes on here
        raise OSError(errno.EIO, str(error), os.fspath(path)) from error
    # GDAL writes much of a file when it closes it, and then does not report a full disk.
    with rasterio.open(virtual) as source, rasterio.open(path) as written:
        if any(source.checksum(band) != written.checksum(band) for band in source.indexes):
            raise OSError(errno.EIO, "the file is incomplete; is the disk full?", os.fspath(path))
    virtual.unlink()
