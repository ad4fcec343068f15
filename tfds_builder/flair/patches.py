"""Reads and checks one patch, and makes the example that is stored."""

import collections
import contextlib
import datetime
import functools
import logging
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from math import hypot, isfinite
from typing import Any, NamedTuple

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.transform import Affine

from tfds_builder.flair.faults import Fault
from tfds_builder.flair.files import File, Unreadable
from tfds_builder.flair.reference import BANDS, CLASSES
from tfds_builder.flair.selection import Patch

Size = tuple[int, int]  # rows, columns
LAMBERT_93 = "EPSG:2154"
SYNTHETIC = "SYNTHETIC"  # a tag of images that are not real: YES
_NAME = "patch.tif"  # in memory; left out of GDAL's messages


@contextlib.contextmanager
def gdal() -> Iterator[None]:
    """Configures GDAL for many small files, without log lines: its errors become faults."""
    logger = logging.getLogger("rasterio")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with (
            rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_PAM_ENABLED="NO"),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def opened(content: bytes) -> Iterator[rasterio.DatasetReader]:
    """Opens a GeoTIFF, given as its content; raises Unreadable where it is damaged.

    The content comes from Python, as GDAL reads zips without checking them and takes only names
    that are UTF-8.
    """
    if not content:
        raise Unreadable("it is empty")
    try:
        with (
            rasterio.MemoryFile(content, filename=_NAME) as memory,
            memory.open(driver="GTiff") as src,
        ):
            yield src
    except (RasterioError, CRSError) as error:
        # rasterio's own message is often only "Read failed. See previous exception for details."
        reason = str(error.__cause__ or error)
        raise Unreadable(re.sub(rf"'?\S*{_NAME}'?[,:]?\s*", "", reason)) from error


def common_size(patches: Sequence[Patch], sample: int = 24) -> Size | None:
    """Returns the most frequent image size of a spread sample, or None if none can be read."""
    step = max(1, len(patches) // sample)
    sizes: collections.Counter[Size] = collections.Counter()
    with gdal():
        for patch in [*patches[::step], *patches]:
            if sizes.total() >= sample:
                break
            with contextlib.suppress(Unreadable), opened(patch.image.read()) as src:
                sizes[src.shape] += 1
    return max(sizes, key=lambda size: (sizes[size], size)) if sizes else None


class Header(NamedTuple):
    """The header of an image or a mask; `crs` is WKT, `EPSG:<code>` or ""."""

    shape: Size
    bands: int
    dtypes: tuple[str, ...]
    transform: Affine
    crs: str

    @property
    def has_position(self) -> bool:
        """Whether the file is georeferenced."""
        return self.transform != Affine.identity()


class Read(NamedTuple):
    """What was read of a patch's files.

    Attributes:
      header: of the image, or None if it cannot be opened.
      image: rows x columns x bands, uint8, or None if it cannot be used.
      mask: rows x columns, uint8, or None if it cannot be used or does not exist. One with wrong
        values is here, too.
      faults: of the files.
      crcs: CRC-32 of the content of image and mask; None if it cannot be read or does not exist.
    """

    header: Header | None
    image: np.ndarray | None
    mask: np.ndarray | None
    faults: list[Fault]
    crcs: tuple[int | None, int | None]


def read_files(
    patch: Patch, size: Size | None, bands: int = len(BANDS), values: Sequence[int] = tuple(CLASSES)
) -> Read:
    """Reads and checks image and mask of a patch, within `gdal()`, without its metadata.

    Args:
      patch: what to read.
      size: the rows and columns that all patches of the data set have; None takes any.
      bands: how many an image has.
      values: those that a mask may have, without a gap, in order.
    """
    faults: list[Fault] = []

    def fault(kind: str, file: File, detail: str) -> None:
        faults.append(Fault(patch.split, kind, str(file), detail))

    header: Header | None = None
    image: np.ndarray | None = None
    mask: np.ndarray | None = None
    image_crc: int | None = None
    mask_crc: int | None = None
    shape = size
    try:
        content, image_crc = read_with_crc(patch.image)
        with opened(content) as src:
            header = header_of(src)
            shape, dtypes = header.shape, set(header.dtypes)
            if header.bands != bands:
                fault(f"image without {bands} bands", patch.image, f"{header.bands} bands")
            if dtypes != {"uint8"}:
                fault("image not uint8", patch.image, ", ".join(sorted(dtypes)))
            if size is not None and shape != size:
                detail = f"{by(shape)}, where the others are {by(size)}"
                fault("size not the data set's", patch.image, detail)
            if header.bands == bands and dtypes == {"uint8"} and size in (None, shape):
                image = np.moveaxis(src.read(), 0, -1)
    except Unreadable as error:
        fault("image unreadable", patch.image, str(error))

    if patch.mask is not None:
        try:
            content, mask_crc = read_with_crc(patch.mask)
            with opened(content) as src:
                of_mask = header_of(src)
                if of_mask.bands != 1 or of_mask.dtypes[0] != "uint8":
                    detail = f"{of_mask.bands} bands of {of_mask.dtypes[0]}"
                    fault("mask not one band of uint8", patch.mask, detail)
                elif shape is not None and of_mask.shape != shape:
                    detail = f"{by(of_mask.shape)}, where the image is {by(shape)}"
                    fault("mask of another size than the image", patch.mask, detail)
                else:
                    mask = src.read(1)
                    if header is not None and (found := displacement(header, of_mask)):
                        fault(found[0], patch.mask, found[1])
        except Unreadable as error:
            fault("mask unreadable", patch.mask, str(error))
        if mask is not None and (mask.min() < values[0] or mask.max() > values[-1]):
            wrong = sorted(set(np.unique(mask).tolist()) - set(values))
            detail = "found " + ", ".join(map(str, wrong))
            fault(f"mask value outside {values[0]}..{values[-1]}", patch.mask, detail)
    return Read(header, image, mask, faults, (image_crc, mask_crc))


def read_with_crc(file: File) -> tuple[bytes, int]:
    """Returns the content of a file, and its CRC-32.

    Raises:
      Unreadable: if it is damaged or gone.
    """
    content = file.read()
    return content, zlib.crc32(content) if file.crc is None else file.crc


def header_of(src: rasterio.DatasetReader) -> Header:
    """Returns the header of an open image or mask."""
    crs = src.crs.to_wkt() if src.crs else ""
    return Header(src.shape, src.count, src.dtypes, src.transform, crs)


def displacement(image: Header, mask: Header, what: str = "mask") -> tuple[str, str] | None:
    """Returns the kind and detail of a fault where a mask, or `what`, does not cover its image.

    Many files of FLAIR have an unnamed local CRS, or none: such files are not compared by it.
    """
    systems = [crs_name(header.crs) for header in (image, mask)]
    if not {UNNAMED, NONE} & set(systems) and systems[0] != systems[1]:
        detail = f"{systems[1]}, where the image has {systems[0]}"
        return f"{what} in another CRS than the image", detail
    if not (image.has_position and mask.has_position):
        return None
    rows, columns = image.shape
    corners = ((0, 0), (columns, 0), (0, rows), (columns, rows))
    of_image = [image.transform @ corner for corner in corners]
    of_mask = [mask.transform @ corner for corner in corners]
    offset = max(hypot(a[0] - b[0], a[1] - b[1]) for a, b in zip(of_image, of_mask, strict=True))
    if offset <= pixel_width(image.transform) / 2:
        return None
    upper_left = "{:.10g}, {:.10g}"
    return f"{what} at another position than the image", (
        f"upper left corner at {upper_left.format(*of_mask[0])}, where the image has"
        f" {upper_left.format(*of_image[0])}"
    )


class Outcome(NamedTuple):
    """What becomes of a patch.

    Attributes:
      example: for `features.features`, or None with faults.
      faults: everything wrong with it.
      warnings: what is implausible of a patch that is stored.
      crcs: see `Read`; and that of the elevation, if it is a file of its own.
      ranges: the lowest and the highest value of each band; empty with faults.
    """

    example: dict[str, Any] | None
    faults: list[Fault]
    warnings: list[Fault]
    crcs: tuple[int | None, ...]
    ranges: Sequence[tuple[int, int]] = ()


def read_patch(patch: Patch, size: Size | None) -> Outcome:
    """Reads and checks a patch, within `gdal()`.

    Args:
      patch: what to read.
      size: the rows and columns that all patches of the data set have; None takes any.
    """
    name = str(patch.image)
    kind = "no metadata" if patch.metadata is None else "malformed metadata"
    faults = [Fault(patch.split, kind, name, detail) for detail in metadata_faults(patch)]
    read = read_files(patch, size)
    faults += read.faults
    if patch.mask is None and patch.split != "test":
        faults.append(Fault(patch.split, "mask missing", name, "only test patches may have none"))
    if faults or read.header is None or read.image is None:
        return Outcome(None, faults, [], read.crcs)
    entry = patch.metadata
    centroid = [float(entry[f"patch_centroid_{axis}"]) for axis in "xyz"]
    warned = []
    if entry["date"][:4] != patch.key.domain[-4:]:
        warned.append(Fault(patch.split, "date outside the domain's year", name, entry["date"]))
    metres = distance(read.header, centroid)
    if metres is not None and is_outside(read.header, metres):
        detail = f"{metres:,.1f} m from the image's centre"
        warned.append(Fault(patch.split, "centroid outside the image", name, detail))
    example = {
        "image": read.image,
        "mask": np.zeros(read.header.shape, np.uint8) if read.mask is None else read.mask,
        "has_mask": patch.mask is not None,
        "id": patch.key.number,
        "domain": patch.key.domain,
        "zone": patch.key.zone,
        "date": entry["date"],
        "time": entry["time"],
        "camera": entry["camera"],
        "centroid": np.array(centroid, np.float64),
        "transform": np.array(read.header.transform[:6], np.float64),
        "crs": _crs_text(read.header, centroid),
    }
    ranges = [(int(band.min()), int(band.max())) for band in np.moveaxis(read.image, -1, 0)]
    return Outcome(example, [], warned, read.crcs, ranges)


def by(shape: Sequence[int]) -> str:
    """Returns `rows x columns`."""
    return f"{shape[0]} x {shape[1]}"


def centre(transform: Sequence[float], shape: Sequence[int]) -> tuple[float, float]:
    """Returns the coordinates of an image's centre.

    Args:
      transform: a, b, c, d, e, f (and more): x = a column + b row + c, y = d column + e row + f.
      shape: rows and columns.
    """
    a, b, c, d, e, f = transform[:6]
    row, column = shape[0] / 2, shape[1] / 2
    return a * column + b * row + c, d * column + e * row + f


def pixel_width(transform: Sequence[float]) -> float:
    """Returns the width of a pixel, in units of the CRS."""
    return hypot(transform[0], transform[3])


def distance(header: Header, centroid: Sequence[float]) -> float | None:
    """Returns the metres from an image's centre to its centroid in Lambert-93.

    None if the image is not georeferenced, or is in another known CRS.
    """
    if not header.has_position or crs_name(header.crs) not in (LAMBERT_93, UNNAMED, NONE):
        return None
    x, y = centre(header.transform, header.shape)
    return hypot(x - centroid[0], y - centroid[1])


def is_outside(header: Header, metres: float | None) -> bool:
    """Returns whether a point so far from the centre of an image is outside the image."""
    return metres is not None and metres > pixel_width(header.transform) * min(header.shape) / 2


def metadata_faults(patch: Patch) -> Iterator[str]:
    """Yields the faults of a patch's metadata: the field and its value."""
    entry = patch.metadata
    if entry is None:
        yield f"no entry IMG_{patch.key.number} in the metadata files"
        return
    if not isinstance(entry, dict):
        yield f"the entry is not an object: {_short(entry)}"
        return
    for field, expected in (("domain", patch.key.domain), ("zone", patch.key.zone)):
        if entry.get(field) != expected:
            yield f"{field}: {_short(entry.get(field))}, where the path has {expected!r}"
    if not _parses(r"\d{4}-\d\d-\d\d", "%Y-%m-%d", entry.get("date")):
        yield f"date: {_short(entry.get('date'))} is not a day as YYYY-MM-DD"
    if not _parses(r"\d\dh\d\d", "%Hh%M", entry.get("time")):
        yield f"time: {_short(entry.get('time'))} is not a time as HHhMM"
    camera = entry.get("camera")
    if not isinstance(camera, str) or not camera.strip() or not _is_unicode(camera):
        yield f"camera: {_short(camera)} is not a name"
    for axis in "xyz":
        value = entry.get(f"patch_centroid_{axis}")
        if not _is_finite(value):
            yield f"patch_centroid_{axis}: {_short(value)} is not a finite number"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text):,} characters)"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold
        return False
    return True


def _is_finite(value: Any) -> bool:
    try:
        return type(value) in (int, float) and isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        return False


def _parses(pattern: str, form: str, value: Any) -> bool:
    if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
        return False
    try:
        datetime.datetime.strptime(value, form)
    except ValueError:
        return False
    return True


UNNAMED, NONE = "unnamed", "none"


@functools.lru_cache(maxsize=64)
def crs_name(crs: str) -> str:
    """Returns `EPSG:<code>`, the name of another CRS, "unnamed" for a local one, or "none"."""
    if not crs:
        return NONE
    parsed = CRS.from_user_input(crs)
    code = parsed.to_epsg()
    if code:
        return f"EPSG:{code}"
    if not (parsed.is_projected or parsed.is_geographic):
        return UNNAMED
    name = re.search(r'"([^"]+)"', crs)
    return name[1] if name else "other"


def _crs_text(header: Header, centroid: Sequence[float]) -> str:
    """Returns `EPSG:<code>` or WKT; empty where there is none.

    FLAIR is in Lambert-93, but many of its files name an unnamed local CRS or none. If the
    patch's centre is at the Lambert-93 coordinates of its metadata, it is EPSG:2154.
    """
    name = crs_name(header.crs)
    if name.startswith("EPSG:"):
        return name
    if name in (UNNAMED, NONE):
        x, y = centre(header.transform, header.shape)
        pixel = max(abs(header.transform.a), abs(header.transform.e))
        if abs(x - centroid[0]) <= pixel and abs(y - centroid[1]) <= pixel:
            return LAMBERT_93
    return header.crs
