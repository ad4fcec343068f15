"""Mosaic of the input rasters: one virtual raster (VRT) of the model's bands."""

import glob
import os
import warnings
from collections.abc import Sequence
from xml.etree import ElementTree as xml

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.transform import Affine

from flair_jax.errors import UserError

_CLOSE = 0.05  # tolerance, in pixels, of a raster's offset from the pixel grid of the first one


def expand(inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """Expands paths, URLs, comma-separated lists and globs to a list of rasters.

    Raises:
        UserError: there are no inputs, or a glob matches nothing.
    """
    given = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    paths: list[str] = []
    for entry in (os.fspath(g) for g in given):
        for part in [entry] if os.path.exists(entry) else entry.split(","):
            path = os.path.expanduser(part.strip())
            if "://" in path or os.path.exists(path) or not glob.has_magic(path):
                paths += [path] if path else []
                continue
            matches = sorted(glob.glob(path, recursive=True))
            if not matches:
                raise UserError(f"no file matches {path} (--input)")
            paths += matches
    if not paths:
        raise UserError("--input=RASTER is needed: a path, a URL, a comma-separated list or a glob")
    return paths


def open_raster(path: str) -> rasterio.DatasetReader:
    """Opens a raster for reading.

    Raises:
        UserError: GDAL cannot open it.
    """
    try:
        with warnings.catch_warnings():  # `Source.scale_warning` reports it
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            return rasterio.open(path)
    except (rasterio.errors.RasterioIOError, rasterio.errors.CRSError) as error:
        raise UserError(f"{path} cannot be opened as a raster (--input): {error}") from error


def image_bands(raster: rasterio.DatasetReader) -> list[int]:
    """Numbers, from 1, of the bands that are not alpha."""
    return [i for i, c in enumerate(raster.colorinterp, 1) if c != ColorInterp.alpha]


def choose_bands(
    raster: rasterio.DatasetReader, wanted: Sequence[str], numbers: Sequence[int]
) -> list[int]:
    """The band numbers of a raster for the model's bands, in the model's order.

    Args:
        raster: the raster.
        wanted: names of the model's bands.
        numbers: the user's choice, or empty.

    Raises:
        UserError: the raster's bands do not fit the model.
    """
    descriptions = [(d or "").strip().lower() for d in raster.descriptions]
    images = image_bands(raster)
    listed = ", ".join(
        f"{i} ({' '.join(filter(None, (descriptions[i - 1], raster.colorinterp[i - 1].name)))})"
        for i in raster.indexes
    )
    both = f"the model takes {len(wanted)} bands ({', '.join(wanted)}), {raster.name} has {listed}"
    example = ",".join(str(i + 1) for i in range(len(wanted)))
    if numbers:
        wrong = [n for n in numbers if n not in raster.indexes]
        if wrong:
            raise UserError(f"--bands names band {wrong[0]}, which does not exist: {both}")
        if len(numbers) != len(wanted):
            chosen = ",".join(map(str, numbers))
            raise UserError(f"--bands={chosen} names {len(numbers)} bands: {both}")
        chosen_bands = list(numbers)
    elif all(descriptions.count(name) == 1 for name in wanted):
        chosen_bands = [descriptions.index(name) + 1 for name in wanted]
    elif len(images) == len(wanted):
        chosen_bands = images
    else:
        raise UserError(
            f"{both}. List the bands to use, in the model's order, for example --bands={example}"
        )
    for number in chosen_bands:
        dtype = raster.dtypes[number - 1]
        if dtype != "uint8":
            raise UserError(
                f"{raster.name} has pixels of {dtype}, and the model was trained on uint8. Scale "
                "them to 0..255 with the stretch of the training images, such as\n  gdal_translate "
                f"-ot Byte -scale LOW HIGH 0 255 {raster.name} bytes.tif"
            )
    return chosen_bands


def gdal_name(path: str, raster: rasterio.DatasetReader) -> str:
    """A name under which GDAL opens a raster from any working directory."""
    if os.path.exists(path):
        return os.path.abspath(path)
    return raster.files[0] if "://" in path and raster.files else path


def validity(raster: rasterio.DatasetReader, bands: Sequence[int]) -> str:
    """How a raster marks its valid pixels: "nodata", "mask", or "" if all are valid."""
    flags = raster.mask_flag_enums[bands[0] - 1]
    if MaskFlags.nodata in flags or raster.nodatavals[bands[0] - 1] is not None:
        return "nodata"
    if MaskFlags.alpha in flags:
        # An alpha band that is requested as an image band is not transparency.
        return "" if set(bands) - set(image_bands(raster)) else "mask"
    return "mask" if MaskFlags.per_dataset in flags else ""


def virtual_raster(
    paths: Sequence[str], wanted: Sequence[str], numbers: Sequence[int]
) -> tuple[str, str]:
    """Builds a virtual raster of the model's bands over all inputs.

    Args:
        paths: the inputs; where they overlap, the last one with a valid pixel is used.
        wanted, numbers: see `choose_bands`.

    Returns:
        The text of the VRT, and how it marks valid pixels, see `validity`.

    Raises:
        UserError: an input cannot be opened, or does not fit the others; the message names it.
    """
    with open_raster(paths[0]) as first:
        crs, transform, count = first.crs, first.transform, first.count
        bands = choose_bands(first, wanted, numbers)
        nodata = [first.nodatavals[b - 1] for b in bands]
        georeferenced = crs is not None or transform != Affine.identity()
    if len(paths) > 1 and not georeferenced:
        raise UserError(
            f"{paths[0]} is not georeferenced and cannot be mosaicked: detect on it alone, or "
            "georeference it first"
        )
    rectangles: list[tuple[str, int, int, int, int]] = []
    kinds = set()
    for path in paths:
        with open_raster(path) as raster:
            if choose_bands(raster, wanted, numbers) != bands or raster.count != count:
                raise UserError(
                    f"{path} and {paths[0]} have different bands: detect on them one by one"
                )
            if raster.crs != crs:
                raise UserError(
                    f"{path} is in {_short(raster.crs)}, {paths[0]} in {_short(crs)}: reproject "
                    f"to one of them, such as\n  gdalwarp -t_srs {_short(crs)} {path} warped.tif"
                )
            if [raster.nodatavals[b - 1] for b in bands] != nodata:
                raise UserError(
                    f"{path} and {paths[0]} have different NoData values: set one value for all, "
                    "such as\n  gdal_edit -a_nodata VALUE FILE"
                )
            x, y = _offset(path, raster, paths[0], transform)
            rectangles.append((gdal_name(path, raster), x, y, raster.width, raster.height))
            kinds.add(validity(raster, bands))
    left, top = min(r[1] for r in rectangles), min(r[2] for r in rectangles)
    width = max(r[1] + r[3] for r in rectangles) - left
    height = max(r[2] + r[4] for r in rectangles) - top
    if len(paths) > 1 and not kinds & {"nodata"}:
        kinds = {"mask"}  # so that gaps between the rasters are invalid
    kind = "nodata" if "nodata" in kinds else "mask" if "mask" in kinds else ""

    root = xml.Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
    if crs is not None:
        xml.SubElement(root, "SRS").text = crs.to_wkt()
    if georeferenced:
        coefficients = (transform @ Affine.translation(left, top)).to_gdal()
        xml.SubElement(root, "GeoTransform").text = ", ".join(map(repr, coefficients))
    sources = [(name, x - left, y - top, w, h) for name, x, y, w, h in rectangles]
    for i, (band, value) in enumerate(zip(bands, nodata, strict=True), 1):
        element = xml.SubElement(root, "VRTRasterBand", dataType="Byte", band=str(i))
        if value is not None:
            xml.SubElement(element, "NoDataValue").text = str(value)
        for source in sources:
            added = add_source(element, *source, band=str(band))
            if value is not None and len(paths) > 1:
                xml.SubElement(added, "NODATA").text = str(value)
            elif kind == "mask" and len(paths) > 1:
                xml.SubElement(added, "UseMaskBand").text = "true"
    if kind == "mask":
        mask = xml.SubElement(xml.SubElement(root, "MaskBand"), "VRTRasterBand", dataType="Byte")
        for source in sources:
            added = add_source(mask, *source, band=f"mask,{bands[0]}")
            xml.SubElement(added, "NODATA").text = "0"
    return xml.tostring(root, "unicode"), kind


def add_source(
    element: xml.Element, name: str, x: int, y: int, width: int, height: int, *, band: str
) -> xml.Element:
    """Adds a raster as a source of a VRT band at an offset, and returns the new element."""
    source = xml.SubElement(element, "ComplexSource")
    xml.SubElement(source, "SourceFilename", relativeToVRT="0").text = name
    xml.SubElement(source, "SourceBand").text = band
    size = {"xSize": str(width), "ySize": str(height)}
    xml.SubElement(source, "SrcRect", {"xOff": "0", "yOff": "0"} | size)
    xml.SubElement(source, "DstRect", {"xOff": str(x), "yOff": str(y)} | size)
    return source


def _offset(
    path: str, raster: rasterio.DatasetReader, first: str, transform: Affine
) -> tuple[int, int]:
    """The offset (x, y) of a raster on the pixel grid of the first one, in pixels."""
    to_first = ~transform @ raster.transform
    corner = np.array(to_first @ (0, 0))
    size = np.array(to_first @ (raster.width, raster.height)) - corner
    if not np.allclose(size, (raster.width, raster.height), rtol=0, atol=_CLOSE):
        raise UserError(
            f"{path} has another pixel size or orientation than {first} "
            f"({_pixel(raster.transform)} instead of {_pixel(transform)}): resample to one grid "
            "with gdalwarp -tr, or detect on them one by one"
        )
    offset = np.rint(corner)
    off = np.abs(corner - offset).max()
    if off > _CLOSE:
        raise UserError(
            f"{path} is not aligned with the pixel grid of {first}, but {off:.2f} pixels off: "
            "resample to one grid with gdalwarp -tap, or detect on them one by one"
        )
    return int(offset[0]), int(offset[1])


def _pixel(transform: Affine) -> str:
    return f"{np.hypot(transform.a, transform.d):g} x {np.hypot(transform.b, transform.e):g}"


def _short(crs: rasterio.crs.CRS | None) -> str:
    return "no coordinate system" if crs is None else crs.to_string()[:60]
