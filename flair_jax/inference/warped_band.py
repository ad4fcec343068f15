"""One band of a file, warped to the pixel grid of the input rasters.

GDAL's warper resamples bilinearly, with a kernel as wide as two pixels of the coarser grid: a finer
file is averaged. The band is warped together with its validity, so that pixels without data have no
weight.
"""

import dataclasses
import os
import weakref
from xml.etree import ElementTree as xml

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as transform_points
from rasterio.windows import Window

from flair_jax.errors import UserError
from flair_jax.inference.band_files import BandFile
from flair_jax.inference.georeference import short_name
from flair_jax.inference.input_files import reading
from flair_jax.inference.pixel_grid import PixelGrid, extent, is_located
from flair_jax.inference.raster_input import RasterInput

_PLANE = CRS.from_epsg(3857)  # in place of an unknown system, the same on both sides
_FLIP = Affine.scale(1, -1)  # GDAL takes the identity for no georeferencing
_TOLERANCE = 0.01  # pixels of the file, of the warper's approximation
_LATTICE = 64  # positions along each axis, of which those within the other raster are counted
_HALF = 127.5  # of 255: the share of valid pixels from which a pixel is valid
_EXACT_IN_FLOAT32 = {"uint8", "int8", "uint16", "int16", "float16", "float32"}


@dataclasses.dataclass(frozen=True)
class _Placement:
    """Coordinate system and transform of the file and of the grid."""

    crs: CRS
    transform: Affine
    target_crs: CRS
    target_transform: Affine


class WarpedBand:
    """One band of a file on the grid of a detection.

    Args:
        file: names the file.
        item: the file.
        number: of the band.
        alpha: number of the band that holds transparency; 0 if there is none.
        target: the grid.

    Attributes:
        notes: what to report of its place.

    Raises:
        UserError: where it lies is not known, or it does not overlap with the grid.
    """

    def __init__(
        self, file: BandFile, item: RasterInput, number: int, alpha: int, target: PixelGrid
    ) -> None:
        self._path, self._target = item.path, target.name
        self.notes: list[str] = []
        placement = self._place(file, item, target)
        self._report_coverage(file, item, placement, target)
        self._source = rasterio.open(_with_validity(item, number, alpha, placement))
        self._warped = WarpedVRT(
            self._source, crs=placement.target_crs, transform=placement.target_transform,
            width=target.width, height=target.height, resampling=Resampling.bilinear,
            tolerance=_TOLERANCE,
        )  # fmt: skip
        # Not left to the end of the program, where rasterio fails to close them.
        weakref.finalize(self, _close, self._warped, self._source)

    def read(self, top: int, left: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Reads a window of the grid.

        Returns:
            The values (height, width) float32 or float64, and the valid pixels, (height, width)
            bool.

        Raises:
            UnreadableError: GDAL cannot read it.
        """
        window = Window(left, top, width, height)
        with reading(self._path, window, self._target):
            values, validity = self._warped.read(window=window)
        return values, (validity > _HALF) & np.isfinite(values)

    def _place(self, file: BandFile, item: RasterInput, target: PixelGrid) -> _Placement:
        here, there = item.georeference, target.georeference
        if here.gcps or (here.rpcs is not None and not here.has_transform):
            raise UserError(
                f"{item.path} ({file.flag}) has {here.description} instead of a geotransform: warp "
                f"it first, such as\n  gdalwarp -t_srs EPSG:CODE -r bilinear {item.path} warped.tif"
            )
        if is_located(here) and not is_located(there) and there.description != short_name(None):
            raise UserError(
                f"{item.path} ({file.flag}) cannot be aligned to {target.name}, which has "
                f"{there.description} instead of a geotransform: warp that first with gdalwarp"
            )
        if not (is_located(here) and is_located(there)):
            if (item.width, item.height) != target.base:
                unknown = item.path if not is_located(here) else target.name
                raise UserError(
                    f"{unknown} is not georeferenced, and {item.path} ({file.flag}) has "
                    f"{item.width} x {item.height} pixels, {target.name} {target.base[0]} x "
                    f"{target.base[1]}: georeference it, or give files of the same size"
                )
            if is_located(here) or is_located(there):
                unknown = item.path if not is_located(here) else target.name
                self.notes.append(
                    f"{item.path}: its pixels are taken as those of {target.name}, which has the "
                    f"same size, as {unknown} is not georeferenced"
                )
            return _Placement(_PLANE, _FLIP, _PLANE, _FLIP @ Affine.scale(*target.factors))
        crs = here.crs or there.crs or _PLANE
        target_crs = there.crs or crs
        if crs == target_crs:
            target_crs = crs  # two spellings of one
        if (here.crs is None) != (there.crs is None):
            unknown = item.path if here.crs is None else target.name
            self.notes.append(
                f"warning: {unknown} has coordinates without a coordinate system: they are taken "
                f"as {short_name(crs)}"
            )
        return _Placement(crs, here.transform, target_crs, there.transform)

    def _report_coverage(
        self, file: BandFile, item: RasterInput, placement: _Placement, target: PixelGrid
    ) -> None:
        """Notes how the file lies on the grid.

        Raises:
            UserError: they do not overlap.
        """
        p = placement
        try:
            within = _share_within(
                target.width, target.height, p.target_transform, p.target_crs,
                item.width, item.height, p.transform, p.crs,
            )  # fmt: skip
            reached = within or _share_within(
                item.width, item.height, p.transform, p.crs,
                target.width, target.height, p.target_transform, p.target_crs,
            )  # fmt: skip
        except (rasterio.errors.RasterioError, CPLE_BaseError) as error:
            raise UserError(
                f"{item.path} ({file.flag}) is in {short_name(p.crs)}, {target.name} in "
                f"{short_name(p.target_crs)}, and GDAL cannot transform between them: {error}. If "
                "both are the same, assign one to both: gdal_edit.py -a_srs EPSG:CODE FILE"
            ) from error
        if not reached:
            raise UserError(
                f"{item.path} ({file.flag}) does not overlap with {target.name}: "
                f"{extent(item.georeference, item.width, item.height)} and {target.extent}"
            )
        if within < 1:
            share = f"{within:.1%}" if within >= 0.001 else "less than 0.1 %"
            self.notes.append(
                f"{item.path} covers {share} of {target.name}: the rest of the map will be NoData"
            )
        if p.crs != p.target_crs or not p.transform.almost_equals(p.target_transform):
            size = item.georeference.pixel_size(item.width / 2, item.height / 2)
            sides = " x ".join(dict.fromkeys(f"{side:.3g}" for side in size or ()))
            pixels = f"pixels of {sides} m" if size else "its pixels"
            self.notes.append(
                f"{item.path}: {pixels} in {short_name(p.crs)} are resampled to those of the input"
            )


def _close(*rasters: rasterio.DatasetReader) -> None:
    for raster in rasters:
        raster.close()


def _share_within(
    width: int, height: int, transform: Affine, crs: CRS,
    other_width: int, other_height: int, other_transform: Affine, other_crs: CRS,
) -> float:  # fmt: skip
    """Share of the pixels of a raster, at a lattice of positions, that lie within another."""
    steps = (np.arange(_LATTICE) + 0.5) / _LATTICE
    columns, rows = (axis.ravel() for axis in np.meshgrid(width * steps, height * steps))
    x, y = transform @ (columns, rows)
    if crs != other_crs:
        x, y = np.array(transform_points(crs, other_crs, x, y))
    columns, rows = ~other_transform @ (x, y)
    inside = (columns > 0) & (columns < other_width) & (rows > 0) & (rows < other_height)
    return float(inside.mean())


def _with_validity(item: RasterInput, number: int, alpha: int, placement: _Placement) -> str:
    """A VRT of two bands: the one wanted, and its validity as alpha."""
    root = xml.Element("VRTDataset", rasterXSize=str(item.width), rasterYSize=str(item.height))
    xml.SubElement(root, "SRS").text = placement.crs.to_wkt()
    coefficients = ", ".join(map(repr, placement.transform.to_gdal()))
    xml.SubElement(root, "GeoTransform").text = coefficients
    exact = item.layout.dtypes[number - 1] in _EXACT_IN_FLOAT32
    band = xml.SubElement(
        root, "VRTRasterBand", dataType="Float32" if exact else "Float64", band="1"
    )
    mask = xml.SubElement(root, "VRTRasterBand", dataType="Byte", band="2")
    xml.SubElement(mask, "ColorInterp").text = "Alpha"
    _add_source(band, item.path, str(number))
    if item.mask != "mask" and alpha:
        xml.SubElement(_add_source(mask, item.path, str(alpha)), "LUT").text = "0:0,1:255"
    elif item.mask:
        _add_source(mask, item.path, f"mask,{number}")
    else:  # a band tagged alpha that is data would be its mask for GDAL
        source = _add_source(mask, item.path, str(number))
        xml.SubElement(source, "ScaleOffset").text = "255"
        xml.SubElement(source, "ScaleRatio").text = "0"
    return xml.tostring(root, "unicode")


def _add_source(band: xml.Element, path: str, number: str) -> xml.Element:
    source = xml.SubElement(band, "ComplexSource")
    name = os.path.abspath(path) if os.path.exists(path) else path
    xml.SubElement(source, "SourceFilename", relativeToVRT="0").text = name
    xml.SubElement(source, "SourceBand").text = number
    return source
