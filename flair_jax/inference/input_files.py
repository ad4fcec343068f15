"""The input files of a detection: paths, URLs, lists and globs; opening; what VRTs refer to."""

import contextlib
import glob
import logging
import os
import re
import shlex
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import rasterio
from rasterio.windows import Window

from flair_jax.errors import UserError

_LISTED = 8  # subdatasets of an error message
_COMMAS = 8  # of one name, at most
_REMOTE = re.compile(r"[a-z][\w+.-]*://|/vsi", re.IGNORECASE)


def is_remote(path: str) -> bool:
    """Whether a path is a URL or one of GDAL's virtual file systems."""
    return bool(_REMOTE.match(path))


def expand(inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """Expands paths, URLs, comma-separated lists and globs to a list of rasters.

    Commas and brackets in the name of an existing file or folder are part of the name.

    Raises:
        UserError: there are no inputs, or a glob matches nothing.
    """
    entries = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    paths: list[str] = []
    for entry in [os.fspath(entry) for entry in entries]:
        pieces = [entry] if _existing(entry) else entry.split(",")
        while pieces:
            count, names = _first_input(pieces)
            paths += names
            del pieces[:count]
    if not paths:
        raise UserError("--input=RASTER is needed: a path, a URL, a comma-separated list or a glob")
    return paths


def _first_input(pieces: Sequence[str]) -> tuple[int, list[str]]:
    """How many of the pieces between commas make up the first input, and its files."""
    for count in range(min(len(pieces), _COMMAS + 1), 0, -1):
        names = _existing(",".join(pieces[:count]))
        if names:
            return count, names
    count = 1
    name = os.path.expanduser(pieces[0].strip())
    if is_remote(name):  # commas may be part of a URL
        while count < len(pieces) and not (
            is_remote(pieces[count].strip()) or _existing(pieces[count])
        ):
            count += 1
        return count, [",".join(pieces[:count]).strip()]
    if glob.has_magic(name):
        raise UserError(f"no file matches {name} (--input)")
    return count, [name] if name else []


def _existing(text: str) -> list[str]:
    """The existing files that a path or a glob names."""
    for path in (text, os.path.expanduser(text.strip())):
        if os.path.exists(path):
            return [path]
    if not path or is_remote(path):
        return []
    if not glob.has_magic(path):
        return []
    parts = Path(path).parts
    folder = ""  # as far as it exists under its literal name
    while len(parts) > 1 and os.path.isdir(os.path.join(folder, parts[0])):
        folder, parts = os.path.join(folder, parts[0]), parts[1:]
    pattern = os.path.join(glob.escape(folder), *parts)
    return sorted(glob.glob(pattern, recursive=True))


class UnreadableError(UserError):
    """A window cannot be read: the file is truncated or damaged, or the connection was lost."""


@contextlib.contextmanager
def reading(path: str, window: Window, of: str = "") -> Iterator[None]:
    """Explains a failure to read a window of a raster.

    A damaged JPEG stream is a warning for GDAL, and the pixels after the damage are wrong.

    Args:
        path: of the raster.
        window: that is read.
        of: whose pixels the window counts, if not the raster's.

    Raises:
        UnreadableError: by the block, in place of rasterio's errors.
    """
    damage = _JpegDamage(logging.WARNING)
    logger = logging.getLogger("rasterio")
    logger.addHandler(damage)
    try:
        with rasterio.Env(GDAL_ERROR_ON_LIBJPEG_WARNING=True):
            yield
        if damage.message:
            raise rasterio.errors.RasterioIOError(damage.message)
    except rasterio.errors.RasterioError as error:
        raise UnreadableError(
            f"{path} cannot be read at columns {window.col_off} to "
            f"{window.col_off + window.width - 1}, rows {window.row_off} to "
            f"{window.row_off + window.height - 1}{of and f' of {of}'}: "
            f"{error.__cause__ or error}. Is the file complete?"
        ) from error
    finally:
        logger.removeHandler(damage)


class _JpegDamage(logging.Handler):
    """Keeps the warning of libjpeg that rasterio logs for a damaged JPEG stream in a TIFF."""

    message = ""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "JPEGLib:" in text:
            self.message = text.partition("JPEGLib:")[2]


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Silences rasterio's warnings of what is reported in the project's own words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        warnings.simplefilter("ignore", rasterio.errors.NodataShadowWarning)
        yield


def open_raster(path: str, flag: str = "--input") -> rasterio.DatasetReader:
    """Opens a raster for reading.

    Args:
        path: of the raster.
        flag: the option that names it, for messages.

    Raises:
        UserError: GDAL cannot open it, or it is a folder or a container of several rasters.
    """
    try:
        # For GDAL and rasterio, a relative name may have another meaning: "zip:a.tif".
        raster = rasterio.open(os.path.abspath(path) if os.path.exists(path) else path)
    except (rasterio.errors.RasterioError, rasterio.errors.CRSError, UnicodeError) as error:
        if os.path.isdir(path):
            pattern = shlex.quote(os.path.join(path, "*.tif"))
            raise UserError(
                f"{path} is a folder, not a raster: name its files, such as {flag}={pattern}"
                if flag == "--input"
                else f"{path} is a folder, not a raster ({flag})"
            ) from error
        raise UserError(f"{path} cannot be opened as a raster ({flag}): {error}") from error
    if raster.count == 0:
        names = [shlex.quote(name) for name in raster.subdatasets]
        if not names:
            raise UserError(f"{path} has no bands ({flag})")
        if len(names) > _LISTED:
            names[_LISTED:] = [f"and {len(names) - _LISTED} more, listed by gdalinfo"]
        raise UserError(
            f"{path} is a container of {len(raster.subdatasets)} rasters. Give one of them, or "
            f"several of one grid combined by gdalbuildvrt -separate, as {flag}:\n  "
            + "\n  ".join(names)
        )
    return raster


def with_sources(files: Iterable[str]) -> list[str]:
    """Local files, and those that the VRTs among them refer to, directly or not."""
    todo, known = list(files), set()
    while todo:
        path = todo.pop()
        if path in known or not os.path.isfile(path):
            continue
        known.add(path)
        with open(path, "rb") as file:
            is_vrt = file.read(64).lstrip().startswith(b"<VRTDataset")
        if is_vrt:
            try:
                with rasterio.open(path) as raster:
                    todo += raster.files
            except rasterio.errors.RasterioError:
                continue  # it was not needed for the inputs that could be opened
    return sorted(known)
