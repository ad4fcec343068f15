"""Partial results of a detection, to resume from: a folder with one file per finished row of tiles.

A file is renamed to its final name when it is complete, so the rows with a name are finished.
"""

import contextlib
import errno
import json
import shutil
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import rasterio
from etils import epath
from rasterio.windows import Window

from flair_jax.errors import UserError
from flair_jax.runtime.atomic_io import atomic_write

_BLOCK = 256


class PartialJob:
    """The folder of partial results beside an output, until the output is complete.

    Bands of a row's file: the class from 1 (0: no data), then, if requested, the probabilities of
    the classes, the margin and the entropy.

    Args:
        output: the path of the output raster.

    Attributes:
        directory: the folder.
    """

    def __init__(self, output: epath.Path) -> None:
        self.directory = output.with_name(output.name + ".partial")
        self._settings = self.directory / "settings.json"

    def begin(self, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Creates the folder, or opens an existing one.

        Args:
            settings: everything that the result depends on, as values that JSON keeps unchanged.
            resume: continue with an existing folder, if there is one.
            overwrite: remove an existing folder, unless `resume`.

        Raises:
            UserError: there is a folder, and neither `resume` nor `overwrite` is given, or it
                belongs to a detection with other settings.
        """
        if self._settings.exists() and resume:
            before = json.loads(self._settings.read_text())
            changed = [
                f"{key}: {before.get(key)} then, {settings.get(key)} now"
                for key in sorted(before.keys() | settings)
                if before.get(key) != settings.get(key)
            ]
            if changed:
                raise UserError(
                    f"--resume cannot continue {self.directory}, which is of another detection:\n"
                    "  " + "\n  ".join(changed) + "\nRepeat the original command, or give "
                    "--overwrite instead of --resume to start over."
                )
            return
        if self._settings.exists() and not overwrite:
            raise UserError(
                f"{self.directory} is left from an interrupted detection: continue it with "
                "--resume, or start over with --overwrite"
            )
        self.remove()
        self.directory.mkdir(parents=True)
        atomic_write(self._settings, json.dumps(settings, indent=1) + "\n")

    def remove(self) -> None:
        """Removes the folder, if it exists."""
        if self.directory.exists():
            shutil.rmtree(self.directory)

    def row_path(self, row: int) -> epath.Path:
        """The file of a row of tiles."""
        return self.directory / f"row_{row:06d}.tif"

    def finished(self, rows: int) -> int:
        """The number of finished rows before the first unfinished one."""
        return next((row for row in range(rows) if not self.row_path(row).exists()), rows)

    @contextlib.contextmanager
    def writing(self, row: int, height: int, width: int, bands: int) -> Iterator["RowWriter"]:
        """Opens the file of a row; it is renamed when the `with` block ends without an error."""
        path = self.row_path(row)
        unfinished = path.with_name("unfinished_" + path.name)
        profile = {
            "driver": "GTiff", "dtype": "uint8", "height": height, "width": width, "count": bands,
            "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "interleave": "band",
            "compress": "deflate", "zlevel": 1, "sparse_ok": True, "bigtiff": "if_safer",
            "photometric": "minisblack",
        }  # fmt: skip
        with warnings.catch_warnings():  # the output is georeferenced at the end
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            raster = rasterio.open(unfinished, "w", **profile)
        with raster:
            writer = RowWriter(raster)
            yield writer
        writer.check(unfinished)
        unfinished.replace(path)


class RowWriter:
    """Writes the pixels of one row of tiles; pixels that are never written are no data."""

    def __init__(self, raster: rasterio.io.DatasetWriter) -> None:
        self._raster = raster
        self._written: list[tuple[Window, int]] = []

    def write(self, left: int, results: dict[str, np.ndarray], valid: np.ndarray) -> None:
        """Writes the pixels that one tile completes.

        Args:
            left: their first column in the raster.
            results: see `tile_predictor.products`; (height of the row, width, ...).
            valid: (height, width) bool; other pixels become no data.
        """
        height, width = valid.shape
        layers = [results["classes"] + np.uint8(1)]
        for name in ("probabilities", "confidence"):
            if name in results:
                layers += list(np.moveaxis(results[name], -1, 0))
        window = Window(left, 0, width, height)
        pixels = np.where(valid, np.stack(layers), np.uint8(0))
        self._raster.write(pixels, window=window)
        self._written.append((window, zlib.crc32(pixels.tobytes())))

    def check(self, path: epath.Path) -> None:
        """Raises an OSError unless a closed file holds the pixels that were written.

        GDAL writes much of a file when it closes it, and then does not report a full disk.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path) as raster:
                for window, checksum in self._written:
                    if zlib.crc32(raster.read(window=window).tobytes()) != checksum:
                        raise OSError(errno.EIO, "the file is incomplete; is the disk full?", path)
