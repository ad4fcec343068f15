"""Reads and checks one patch, and makes the example that is stored."""

import collections
import contextlib
import datetime
import functools
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
import rasterio
import tensorflow_datasets as tfds
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import Affine

from tfds_builder.flair.faults import Fault
from tfds_builder.flair.source import File, Patch

BANDS = 5
MASK_VALUES = range(1, 20)
Size = tuple[int, int]  # rows, columns


def features() -> tfds.features.FeaturesDict:
    """Returns the features of a patch; README.md of this folder explains each."""
    text, tensor = tfds.features.Text, tfds.features.Tensor
    # Without an encoding uint8 is stored as int64, and float64 as float32, which is too coarse
    # for coordinates.
    return tfds.features.FeaturesDict(
        {
            "image": tensor(shape=(None, None, BANDS), dtype=np.uint8, encoding="bytes"),
            "mask": tensor(shape=(None, None), dtype=np.uint8, encoding="bytes"),
            "has_mask": tfds.features.Scalar(np.bool_),
            "id": text(),
            "domain": text(),
            "zone": text(),
            "date": text(),
            "time": text(),
            "camera": text(),
            "centroid": tensor(shape=(3,), dtype=np.float64, encoding="bytes"),
            "transform": tensor(shape=(6,), dtype=np.float64, encoding="bytes"),
            "crs": text(),
        }
    )


@contextlib.contextmanager
def gdal() -> Iterator[None]:
    """Configures GDAL for many small files, without log lines: its errors become faults."""
    logger = logging.getLogger("rasterio")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with (
            # Or else each open lists all of the folder, or of the zip.
            rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_PAM_ENABLED="NO"),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            yield
    finally:
        logger.setLevel(level)


def common_size(patches: Sequence[Patch], sample: int = 24) -> Size | None:
    """Returns the most frequent image size of a spread sample, or None if none can be read."""
    step = max(1, len(patches) // sample)
    sizes: collections.Counter[Size] = collections.Counter()
    with gdal():
        for patch in [*patches[::step], *patches]:
            if sizes.total() >= sample:
                break
            with contextlib.suppress(RasterioError), rasterio.open(patch.image.for_gdal()) as src:
                sizes[src.shape] += 1
    return max(sizes, key=lambda size: (sizes[size], size)) if sizes else None


class Raster(NamedTuple):
    """The header of an image file."""

    shape: Size
    bands: int
    dtypes: tuple[str, ...]
    transform: Affine
    crs: CRS | None


def read_files(
    patch: Patch, size: Size | None
) -> tuple[Raster | None, np.ndarray | None, np.ndarray | None, list[Fault]]:
    """Reads and checks the files of a patch, within `gdal()`; whatever its metadata is.

    Args:
      patch: what to read.
      size: the rows and columns that all patches of the data set have; None takes any.

    Returns:
      The image's header, or None if it cannot be opened; the image, rows x columns x
      bands, and the mask, rows x columns, both uint8, or None where they cannot be used or do
      not exist; the faults. A mask with wrong values is returned, too.
    """
    faults: list[Fault] = []

    def fault(kind: str, file: File, detail: str) -> None:
        faults.append(Fault(patch.split, kind, str(file), detail))

    raster: Raster | None = None
    image: np.ndarray | None = None
    mask: np.ndarray | None = None
    shape = size
    try:
        with rasterio.open(patch.image.for_gdal()) as src:
            raster = Raster(src.shape, src.count, src.dtypes, src.transform, src.crs)
            shape, dtypes = raster.shape, set(raster.dtypes)
            if src.count != BANDS:
                fault(f"image without {BANDS} bands", patch.image, f"{src.count} bands")
            if dtypes != {"uint8"}:
                fault("image not uint8", patch.image, ", ".join(sorted(dtypes)))
            if size is not None and shape != size:
                detail = f"{_by(shape)}, where the others are {_by(size)}"
                fault("size not the data set's", patch.image, detail)
            if src.count == BANDS and dtypes == {"uint8"} and size in (None, shape):
                image = np.moveaxis(src.read(), 0, -1)
    except RasterioError as error:
        fault("image unreadable", patch.image, _reason(error))

    if patch.mask is not None:
        try:
            with rasterio.open(patch.mask.for_gdal()) as src:
                if src.count != 1 or src.dtypes[0] != "uint8":
                    detail = f"{src.count} bands of {src.dtypes[0]}"
                    fault("mask not one band of uint8", patch.mask, detail)
                elif shape is not None and src.shape != shape:
                    detail = f"{_by(src.shape)}, where the image is {_by(shape)}"
                    fault("mask of another size than the image", patch.mask, detail)
                else:
                    mask = src.read(1)
        except RasterioError as error:
            fault("mask unreadable", patch.mask, _reason(error))
        if mask is not None and (mask.min() not in MASK_VALUES or mask.max() not in MASK_VALUES):
            wrong = sorted(set(np.unique(mask).tolist()) - set(MASK_VALUES))
            detail = "found " + ", ".join(map(str, wrong))
            fault(f"mask value outside 1..{MASK_VALUES[-1]}", patch.mask, detail)
    return raster, image, mask, faults


def read_patch(patch: Patch, size: Size | None) -> tuple[dict[str, Any] | None, list[Fault]]:
    """Reads and checks a patch, within `gdal()`.

    Args:
      patch: what to read.
      size: the rows and columns that all patches of the data set have; None takes any.

    Returns:
      The example for `features()` and no faults, or None and all faults.
    """
    name = str(patch.image)
    kind = "no metadata" if patch.metadata is None else "malformed metadata"
    faults = [Fault(patch.split, kind, name, detail) for detail in metadata_faults(patch)]
    raster, image, mask, of_files = read_files(patch, size)
    faults += of_files
    if patch.mask is None and patch.split != "test":
        faults.append(Fault(patch.split, "mask missing", name, "only test patches may have none"))
    if faults or raster is None or image is None:
        return None, faults
    centroid = [float(patch.metadata[f"patch_centroid_{axis}"]) for axis in "xyz"]
    example = {
        "image": image,
        "mask": np.zeros(raster.shape, np.uint8) if mask is None else mask,
        "has_mask": patch.mask is not None,
        "id": patch.key.number,
        "domain": patch.key.domain,
        "zone": patch.key.zone,
        "date": patch.metadata["date"],
        "time": patch.metadata["time"],
        "camera": patch.metadata["camera"],
        "centroid": np.array(centroid, np.float64),
        "transform": np.array(raster.transform[:6], np.float64),
        "crs": _crs_text(raster, centroid),
    }
    return example, []


def centre(transform: Sequence[float], shape: Sequence[int]) -> tuple[float, float]:
    """Returns the coordinates of an image's centre.

    Args:
      transform: a, b, c, d, e, f (and more): x = a column + b row + c, y = d column + e row + f.
      shape: rows and columns.
    """
    a, b, c, d, e, f = transform[:6]
    row, column = shape[0] / 2, shape[1] / 2
    return a * column + b * row + c, d * column + e * row + f


def _by(shape: Sequence[int]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _reason(error: RasterioError) -> str:
    # rasterio's own message is often only "Read failed. See previous exception for details."
    return str(error.__cause__ or error)


def metadata_faults(patch: Patch) -> Iterator[str]:
    """Yields the faults of a patch's metadata: the field and its value."""
    entry = patch.metadata
    if entry is None:
        yield f"no entry IMG_{patch.key.number} in the metadata files"
        return
    if not isinstance(entry, dict):
        yield f"the entry is not an object: {entry!r}"
        return
    for field, expected in (("domain", patch.key.domain), ("zone", patch.key.zone)):
        if entry.get(field) != expected:
            yield f"{field}: {entry.get(field)!r}, where the path has {expected!r}"
    if not _parses(r"\d{4}-\d\d-\d\d", "%Y-%m-%d", entry.get("date")):
        yield f"date: {entry.get('date')!r} is not a day as YYYY-MM-DD"
    if not _parses(r"\d\dh\d\d", "%Hh%M", entry.get("time")):
        yield f"time: {entry.get('time')!r} is not a time as HHhMM"
    camera = entry.get("camera")
    if not isinstance(camera, str) or not camera.strip():
        yield f"camera: {camera!r} is not a name"
    for axis in "xyz":
        value = entry.get(f"patch_centroid_{axis}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
            yield f"patch_centroid_{axis}: {value!r} is not a finite number"


def _parses(pattern: str, form: str, value: Any) -> bool:
    if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
        return False
    try:
        datetime.datetime.strptime(value, form)
    except ValueError:
        return False
    return True


@functools.lru_cache(maxsize=64)
def _epsg(crs: CRS) -> int | None:
    return crs.to_epsg()


def _crs_text(raster: Raster, centroid: Sequence[float]) -> str:
    """Returns `EPSG:<code>` or WKT; empty where there is none.

    FLAIR is in Lambert-93, but many of its files name an unnamed local CRS or none. If the
    patch's centre is at the Lambert-93 coordinates of its metadata, it is EPSG:2154.
    """
    crs = raster.crs
    code = _epsg(crs) if crs else None
    if code:
        return f"EPSG:{code}"
    if not crs or not (crs.is_projected or crs.is_geographic):
        x, y = centre(raster.transform, raster.shape)
        pixel = max(abs(raster.transform.a), abs(raster.transform.e))
        if abs(x - centroid[0]) <= pixel and abs(y - centroid[1]) <= pixel:
            return "EPSG:2154"
    return crs.to_wkt() if crs else ""
