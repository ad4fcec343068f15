"""Reads users' own images and masks, in windows of the size of a patch."""

import contextlib
import dataclasses
import functools
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.transform import Affine
from rasterio.windows import Window

from tfds_builder import bands
from tfds_builder.flair.faults import Fault
from tfds_builder.flair.files import File, Unreadable
from tfds_builder.flair.patches import (
    SYNTHETIC,
    Header,
    Outcome,
    Size,
    by,
    crs_name,
    displacement,
    header_of,
)
from tfds_builder.flair.selection import Patch
from tfds_builder.own.classes import UNLISTED, Classes

DRIVERS = ("GTiff", "PNG", "JPEG")
LEFT_OUT, ALPHA = "-", "alpha"  # in place of the names of bands
VALUES_NAMED = 8


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How patches are made of images and masks; it is pickled.

    Attributes:
      bands: a name for each band of the files; `LEFT_OUT` and `ALPHA` are not stored.
      stretch: (lowest, highest) of each band of the files, which become 0 and 255; or nothing.
      classes: of the masks.
      unlisted: "error" or "ignore": mask values and colours that are no class.
      masks_by: "auto", "values" or "colours".
    """

    bands: tuple[str, ...]
    stretch: tuple[tuple[float, float], ...]
    classes: Classes
    unlisted: str
    masks_by: str

    @property
    def stored_bands(self) -> tuple[str, ...]:
        """Names of the bands of a patch."""
        return tuple(name for name in self.bands if name not in (LEFT_OUT, ALPHA))

    @functools.cached_property
    def indices(self) -> list[int]:
        """Indices of the stored bands in the files, from 0."""
        return [i for i, name in enumerate(self.bands) if name not in (LEFT_OUT, ALPHA)]


class ImageHeader(NamedTuple):
    """What is known of an image before its pixels are read."""

    header: Header
    descriptions: tuple[str, ...]
    interpretations: tuple[ColorInterp, ...]
    is_synthetic: bool


@contextlib.contextmanager
def opening() -> Iterator[None]:
    """Configures GDAL for files beside which others may lie, and turns its errors into ours."""
    try:
        with (
            rasterio.Env(
                GDAL_DISABLE_READDIR_ON_OPEN="FALSE",  # for world files
                GDAL_PAM_ENABLED="YES",  # for .aux.xml
                GDAL_ERROR_ON_LIBJPEG_WARNING="TRUE",  # or a truncated file would end in grey
            ),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            yield
    except (RasterioError, CRSError) as error:
        raise Unreadable(str(error.__cause__ or error)) from error
    except UnicodeError as error:
        raise Unreadable(f"its metadata is not UTF-8 ({error})") from error


def read_header(path: str) -> ImageHeader:
    """Reads the header of an image.

    Raises:
      Unreadable: if it cannot be opened.
    """
    with opening(), rasterio.open(path) as src:
        if src.driver not in DRIVERS:
            raise Unreadable(f"it is {src.driver}; expected {', '.join(DRIVERS)}")
        return ImageHeader(
            header_of(src),
            tuple((text or "").strip().lower() for text in src.descriptions),
            tuple(src.colorinterp),
            src.tags().get(SYNTHETIC) == "YES",
        )


def band_names(image: ImageHeader) -> tuple[str, ...] | str:
    """Returns the names of an image's bands, or why they are not known.

    By description (see `bands.name_of`), else by colour interpretation.
    """
    names = []
    for number, (text, colour) in enumerate(
        zip(image.descriptions, image.interpretations, strict=True), 1
    ):
        name = bands.name_of(text)
        if not name and colour == ColorInterp.alpha:
            return (
                f"band {number} is tagged alpha, which it may not be: GDAL tags the fourth band so"
            )
        if not name and colour == ColorInterp.palette:
            return "its pixels are indices of colours; convert it to red, green and blue"
        if not name and (
            colour == ColorInterp.undefined
            or (colour == ColorInterp.gray and len(image.descriptions) > 1)
        ):
            return f"band {number} has neither a description nor a colour"
        names.append(name or colour.name)
    if len(set(names)) < len(names):
        return f"two of its bands have one name ({', '.join(names)})"
    return tuple(names)


def starts(length: int, side: int, overlap: int, remainder: str) -> list[int]:
    """Returns where patches begin along an axis of an image.

    Args:
      length: of the axis.
      side: of a patch.
      overlap: of neighbouring patches.
      remainder: "pad": the last patch may reach beyond the image; "drop": none does.
    """
    step = side - overlap
    first = list(range(0, max(length - overlap, 1), step))
    return first if remainder == "pad" else [start for start in first if start + side <= length]


@functools.lru_cache(maxsize=8)
def _opened(path: str, time: int) -> rasterio.DatasetReader:
    del time  # of modification: a file that was replaced is opened anew
    return rasterio.open(path)


@functools.lru_cache(maxsize=64)
def _crc(path: str, time: int) -> int:
    del time
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc


def crc_of(file: File) -> int:
    """Returns the CRC-32 of a file's content.

    Raises:
      Unreadable: if it cannot be read.
    """
    try:
        return _crc(file.path, file.time)
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error


def read_own_patch(patch: Patch, size: Size | None, recipe: Recipe) -> Outcome:
    """Reads and checks a patch of an image.

    Args:
      patch: its metadata has `window` (row, column), `date` and `camera`.
      size: rows and columns of a patch.
      recipe: how it is made.
    """
    assert size is not None
    faults: list[Fault] = []

    def fault(kind: str, file: File, detail: str) -> None:
        faults.append(Fault(patch.split, kind, str(file), detail))

    row, column = patch.metadata["window"]
    image = mask = header = None
    image_crc = mask_crc = None
    valid = np.zeros(size, bool)
    ignore = recipe.classes.ignore
    try:
        image_crc = crc_of(patch.image)
        with opening():
            src = _opened(patch.image.path, patch.image.time)
            header = header_of(src)
            rows, columns = (
                min(side, length - start)
                for side, length, start in zip(size, header.shape, (row, column), strict=True)
            )
            window = Window(column, row, columns, rows)
            inside = np.s_[:rows, :columns]
            pixels, valid[inside] = _read_image(src, window, recipe)
        image = np.zeros((*size, len(recipe.indices)), np.uint8)
        image[inside] = np.where(valid[inside][..., None], np.moveaxis(pixels, 0, -1), 0)
    except Unreadable as error:
        fault("image unreadable", patch.image, str(error))
    if patch.mask is not None:
        try:
            mask_crc = crc_of(patch.mask)
            with opening():
                src = _opened(patch.mask.path, patch.mask.time)
                of_mask = header_of(src)
                if header is not None and of_mask.shape != header.shape:
                    detail = f"{by(of_mask.shape)}, where the image is {by(header.shape)}"
                    fault("mask of another size than the image", patch.mask, detail)
                elif header is not None and (found := displacement(header, of_mask)):
                    fault(found[0], patch.mask, found[1])
                elif header is not None:
                    values, problem = _read_mask(src, window, recipe)
                    mask = np.zeros(size, np.uint8) if ignore is None else np.full(
                        size, ignore, np.uint8
                    )  # fmt: skip
                    mask[inside] = values
                    if problem is not None:
                        lossy = src.driver == "JPEG"
                        hint = "; JPEG does not keep masks as they were: use PNG" if lossy else ""
                        fault(problem[0], patch.mask, problem[1] + hint)
                    elif not valid.all() and ignore is None:
                        detail = "all 256 values are classes, and none is left for missing pixels"
                        fault("pixels to ignore", patch.mask, detail)
                    elif ignore is not None:
                        mask[~valid] = ignore
        except Unreadable as error:
            fault("mask unreadable", patch.mask, str(error))
    elif patch.split != "test":
        fault("mask missing", patch.image, "only test patches may have none")
    if faults or header is None or image is None:
        return Outcome(None, faults, [], (image_crc, mask_crc))
    # Without coordinates the identity, which stands for none: see patches.csv for the position.
    transform = header.transform
    if header.has_position:
        transform = transform @ Affine.translation(column, row)
    name = crs_name(header.crs)
    example = {
        "image": image,
        "mask": np.zeros(size, np.uint8) if mask is None else mask,
        "has_mask": mask is not None,
        "id": patch.key.number,
        "domain": patch.key.domain,
        "zone": patch.key.zone,
        "date": patch.metadata["date"],
        "time": "",
        "camera": patch.metadata["camera"],
        "centroid": np.full(3, np.nan),
        "transform": np.array(transform[:6], np.float64),
        "crs": name if name.startswith("EPSG:") else header.crs,
    }
    ranges = [(int(b.min()), int(b.max())) for b in image[valid].T] if valid.any() else []
    return Outcome(example, [], [], (image_crc, mask_crc), ranges)


def _read_image(
    src: rasterio.DatasetReader, window: Window, recipe: Recipe
) -> tuple[np.ndarray, np.ndarray]:
    """Returns pixels (bands, rows, columns) uint8, and which of them hold data."""
    numbers = [i + 1 for i in recipe.indices]
    pixels = src.read(numbers, window=window)
    valid = np.ones(pixels.shape[1:], bool)
    if src.nodata is not None:
        missing = np.isnan(pixels) if np.isnan(src.nodata) else pixels == src.nodata
        valid &= ~missing.all(0)
    if np.issubdtype(pixels.dtype, np.floating):
        valid &= np.isfinite(pixels).all(0)
    flags = src.mask_flag_enums[numbers[0] - 1]
    # By default GDAL takes the fourth band for transparency, whatever it is.
    if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
        valid &= src.read_masks(numbers[0], window=window) > 0
    if ALPHA in recipe.bands:
        valid &= src.read(recipe.bands.index(ALPHA) + 1, window=window) > 0
    if recipe.stretch:
        pixels = bands.stretched(pixels, [recipe.stretch[i] for i in recipe.indices], valid)
    return pixels, valid


def _read_mask(
    src: rasterio.DatasetReader, window: Window, recipe: Recipe
) -> tuple[np.ndarray, tuple[str, str] | None]:
    """Returns what is stored of a mask, (rows, columns) uint8; and kind and detail of a fault."""
    nothing = np.zeros((window.height, window.width), np.uint8)
    if not all(np.issubdtype(np.dtype(dtype), np.integer) for dtype in src.dtypes):
        return nothing, ("mask not of integers", ", ".join(src.dtypes))
    palette = src.colorinterp[0] == ColorInterp.palette
    if src.count not in (1, 3, 4):
        return nothing, ("mask of neither one band nor colours", f"{src.count} bands")
    if src.count == 1 and (not palette or recipe.masks_by == "values"):
        if recipe.masks_by == "colours":
            return nothing, ("mask without colours", "one band without a palette")
        return _by_values(src.read(1, window=window), recipe)
    if recipe.masks_by == "values":
        return nothing, ("mask of colours, not of values", f"{src.count} bands")
    if palette:
        table = np.zeros((256, 3), np.int64)
        for value, colour in src.colormap(1).items():
            table[value] = colour[:3]
        colours = table[src.read(1, window=window)]
    else:
        if set(src.dtypes) != {"uint8"}:
            return nothing, ("mask of colours not of uint8", ", ".join(src.dtypes))
        colours = np.moveaxis(src.read([1, 2, 3], window=window), 0, -1)
    return _by_colours(colours, recipe)


def _by_values(values: np.ndarray, recipe: Recipe) -> tuple[np.ndarray, tuple[str, str] | None]:
    within = (values >= 0) & (values <= 255)
    stored = recipe.classes.stored_values()[np.where(within, values, 0).astype(np.uint8)]
    unlisted = (stored == UNLISTED) | ~within
    found = [str(value) for value in np.unique(values[unlisted])]
    return _without_unlisted(stored, unlisted, found, "values", recipe)


def _by_colours(colours: np.ndarray, recipe: Recipe) -> tuple[np.ndarray, tuple[str, str] | None]:
    packed = colours.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    stored = np.full(packed.shape, UNLISTED, np.int16)
    for colour, value in recipe.classes.colours.items():
        stored[packed == colour[0] << 16 | colour[1] << 8 | colour[2]] = value
    unlisted = stored == UNLISTED
    found = [f"#{value:06x}" for value in np.unique(packed[unlisted])]
    return _without_unlisted(stored, unlisted, found, "colours", recipe)


def _without_unlisted(
    stored: np.ndarray, unlisted: np.ndarray, found: Sequence[str], what: str, recipe: Recipe
) -> tuple[np.ndarray, tuple[str, str] | None]:
    problem = None
    if found and (recipe.unlisted == "error" or recipe.classes.ignore is None):
        named = ", ".join(found[:VALUES_NAMED]) + (
            f" and {len(found) - VALUES_NAMED} more" if len(found) > VALUES_NAMED else ""
        )
        detail = f"{named}, in {int(unlisted.sum()):,} pixels"
        problem = (f"mask {what} that classes.csv does not list", detail)
    ignore = recipe.classes.ignore or 0
    return np.where(unlisted, ignore, stored).astype(np.uint8), problem


def file_of(path: str) -> File:
    """Returns a file with its size and time of modification.

    Raises:
      Unreadable: if it is not there.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error
    return File("", path, status.st_size, time=status.st_mtime_ns)


def facts_of(recipe: Recipe) -> dict[str, Any]:
    """Returns what metadata.json states of bands and classes."""
    return {
        "bands": list(recipe.stored_bands),
        "stretch": {
            name: list(recipe.stretch[i])
            for i, name in zip(recipe.indices, recipe.stored_bands, strict=True)
        }
        if recipe.stretch
        else None,
        **recipe.classes.facts(),
    }
