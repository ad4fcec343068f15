"""What an interrupted detection leaves behind: a folder with a file for each finished row of tiles.

A row gets its name when it is whole, so at any moment the finished rows are those with a name.
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
    """The folder beside an output, until that is whole.

    The bands of a row's file: the class from 1 (0: no data), and behind it, as far as wanted, the
    probabilities of the classes, margin and entropy.

    Args:
        output: the raster to be.

    Attributes:
        directory: the folder.
    """

    def __init__(self, output: epath.Path) -> None:
        self.directory = output.with_name(output.name + ".partial")
        self._settings = self.directory / "settings.json"

    def begin(self, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Makes the folder, or takes the one that is there.

        Args:
            settings: everything that the result depends on, as JSON has it.
            resume: go on with what is there, if anything.
            overwrite: remove what is there, unless `resume`.

        Raises:
            UserError: there is one, and nothing was said of it, or it has other settings.
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
                    f"--resume cannot go on with {self.directory}, which is of another detection:\n"
                    "  " + "\n  ".join(changed) + "\nGive the command as it was, or --overwrite in "
                    "place of --resume to start afresh."
                )
            return
        if self._settings.exists() and not overwrite:
            raise UserError(
                f"{self.directory} is left of an interrupted detection: go on with it with "
                "--resume, or start afresh with --overwrite"
            )
        self.remove()
        self.directory.mkdir(parents=True)
        atomic_write(self._settings, json.dumps(settings, indent=1) + "\n")

    def remove(self) -> None:
        """Removes the folder, if it is there."""
        if self.directory.exists():
            shutil.rmtree(self.directory)

    def row_path(self, row: int) -> epath.Path:
        """The file of a row of tiles."""
        return self.directory / f"row_{row:06d}.tif"

    def finished(self, rows: int) -> int:
        """How many of the first rows are finished."""
        return next((row for row in range(rows) if not self.row_path(row).exists()), rows)

    @contextlib.contextmanager
    def writing(self, row: int, height: int, width: int, bands: int) -> Iterator["RowWriter"]:
        """Opens the file of a row; it gets its name when the `with` block ends well."""
        path = self.row_path(row)
        unfinished = path.with_name("unfinished_" + path.name)
        profile = {
            "driver": "GTiff", "dtype": "uint8", "height": height, "width": width, "count": bands,
            "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "interleave": "band",
            "compress": "deflate", "zlevel": 1, "sparse_ok": True, "bigtiff": "if_safer",
            "photometric": "minisblack",
        }  # fmt: skip
        with warnings.catch_warnings():  # where the row lies is said in the end
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            raster = rasterio.open(unfinished, "w", **profile)
        with raster:
            writer = RowWriter(raster)
            yield writer
        writer.check(unfinished)
        unfinished.replace(path)


class RowWriter:
    """Writes the pixels of one row of tiles; what is never written is no data."""

    def __init__(self, raster: rasterio.io.DatasetWriter) -> None:
        self._raster = raster
        self._written: list[tuple[Window, int]] = []

    def write(self, left: int, made: dict[str, np.ndarray], valid: np.ndarray) -> None:
        """Writes the pixels that a tile made known.

        Args:
            left: first column in the raster.
            made: see `predict_tiles.products`; (height of the row, width, ...).
            valid: (height, width) bool; other pixels become no data.
        """
        height, width = valid.shape
        layers = [made["classes"] + np.uint8(1)]
        for name in ("probabilities", "confidence"):
            if name in made:
                layers += list(np.moveaxis(made[name], -1, 0))
        window = Window(left, 0, width, height)
        pixels = np.where(valid, np.stack(layers), np.uint8(0))
        self._raster.write(pixels, window=window)
        self._written.append((window, zlib.crc32(pixels.tobytes())))

    def check(self, path: epath.Path) -> None:
        """Raises an OSError unless a closed file holds what was written.

        GDAL writes much of it at closing, where it does not report a full disk.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path) as raster:
                for window, checksum in self._written:
                    if zlib.crc32(raster.read(window=window).tobytes()) != checksum:
                        raise OSError(errno.EIO, "not all was written; is the disk full?", path)
