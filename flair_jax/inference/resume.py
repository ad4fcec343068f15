"""Partial results of a detection, to resume from: a folder with one file per finished row of tiles.

A file is renamed to its final name when it is complete, so the rows with a name are finished.
"""

import contextlib
import datetime
import errno
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import rasterio
from etils import epath
from rasterio.windows import Window

from flair_jax.errors import UserError
from flair_jax.runtime.atomic_io import atomic_write

_BLOCK = 256
_OWN_FILES = re.compile(
    r"(unfinished_)?row_\d+\.tif|settings\.json(\.tmp)?|moving|rows\.vrt|merged\.tif"
)
_WRITTEN_BY = "flair-jax detect"


class PartialJob:
    """The folder of partial results beside an output, until the output is complete.

    Bands of a row's file: the class from 1 (0: no data), then, if requested, the probabilities of
    the classes, the probability of the class, the margin and the entropy.

    Args:
        output: the path of the output raster.
        products: names of the files that are built in the folder.

    Attributes:
        directory: the folder.
    """

    def __init__(self, output: epath.Path, products: Sequence[str] = ()) -> None:
        self.directory = output.with_name(output.name + ".partial")
        self._settings = self.directory / "settings.json"
        self._moving = self.directory / "moving"
        self._products = tuple(products)

    @property
    def exists(self) -> bool:
        """Whether there are partial results."""
        return self._read_settings() is not None

    @property
    def is_moving(self) -> bool:
        """Whether output files may have been moved into place already."""
        return self._moving.exists()

    def check_directory(self) -> None:
        """Raises a UserError if something else has the name of the folder."""
        if not self.directory.exists() or self.exists:
            return
        if not self.directory.is_dir() or not all(map(self._is_own, os.listdir(self.directory))):
            raise UserError(
                f"{self.directory} is in the way: partial results are written to a folder of that "
                "name, and it holds something else. Rename it, or give another --output"
            )

    def begin(self, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> str:
        """Creates the folder, or opens an existing one.

        Args:
            settings: everything that the result depends on, as values that JSON keeps unchanged.
            resume: continue with an existing folder, if there is one.
            overwrite: remove existing partial results, unless `resume`.

        Returns:
            When the job was begun the first time, in UTC: "2025-06-30T09:05:00Z".

        Raises:
            UserError: there are partial results, and neither `resume` nor `overwrite` is given, or
                they are of a detection with other settings; or something else has the name.
        """
        self.check_directory()
        before = self._read_settings()
        if before is not None and resume:
            changed = _differences(before, settings)
            if changed:
                raise UserError(
                    f"--resume cannot continue {self.directory}, which is of another detection:\n"
                    "  " + "\n  ".join(changed) + "\nRepeat the original command, or give "
                    "--overwrite instead of --resume to start over."
                )
            return self._read()["started"]
        if before is not None and not overwrite:
            raise UserError(
                f"{self.directory} is left from an interrupted detection: continue it with "
                "--resume, or start over with --overwrite"
            )
        self.remove()
        self.directory.mkdir(parents=True, exist_ok=True)
        started = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        content = {"written_by": _WRITTEN_BY, "started": started, "settings": settings}
        atomic_write(self._settings, json.dumps(content, indent=1) + "\n")
        return started

    def _read_settings(self) -> dict[str, Any] | None:
        """The settings of the partial results, or None if there are none."""
        return self._read().get("settings")

    def _read(self) -> dict[str, Any]:
        """What `begin` wrote, or {} if there are no partial results."""
        try:
            content = json.loads(self._settings.read_text())
        except (OSError, ValueError):
            return {}
        if not isinstance(content, dict) or content.get("written_by") != _WRITTEN_BY:
            return {}
        return content

    def begin_moving(self) -> None:
        """Notes that the output files are complete and are being moved into place."""
        self._moving.touch()

    def remove(self) -> None:
        """Removes the folder, but no files that are not of a detection."""
        if not self.directory.is_dir():
            return
        names = [name for name in os.listdir(self.directory) if self._is_own(name)]
        for name in sorted(names, key=lambda name: name == self._settings.name):  # that last
            (self.directory / name).unlink()
        with contextlib.suppress(OSError):  # not empty
            os.rmdir(self.directory)

    def _is_own(self, name: str) -> bool:
        # Temporary files have the name of a product and a suffix.
        return bool(_OWN_FILES.fullmatch(name)) or name.startswith(self._products)

    def row_path(self, row: int) -> epath.Path:
        """The file of a row of tiles."""
        return self.directory / f"row_{row:06d}.tif"

    def finished(self, rows: int) -> int:
        """The number of finished rows before the first unfinished one."""
        return next((row for row in range(rows) if not self.row_path(row).exists()), rows)

    def remove_damaged(self, rows: int) -> list[str]:
        """Removes the files of rows that cannot be read, and names them."""
        damaged = []
        for path in map(self.row_path, range(rows)):
            try:
                with rasterio.open(path) as raster:
                    raster.read()
            except rasterio.errors.RasterioError:
                path.unlink()
                damaged.append(path.name)
        return damaged

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
        with rasterio.open(unfinished, "w", **profile) as raster:
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
        with rasterio.open(path) as raster:
            for window, checksum in self._written:
                if zlib.crc32(raster.read(window=window).tobytes()) != checksum:
                    reason = "the file is incomplete; is the disk full?"
                    raise OSError(errno.EIO, reason, os.fspath(path))


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A line for each setting that is not the same; of long lists, the first difference."""
    lines = []
    for key in sorted(before.keys() | now):
        a, b = before.get(key), now.get(key)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            lines += _differences(a, b)
        elif key in ("inputs", "files") and isinstance(a, list) and isinstance(b, list):
            other = [item for item in a if item not in b] + [item for item in b if item not in a]
            first = f"the first that differs: {other[0]}" if other else "in another order"
            lines.append(f"{key}: {len(a):,} then, {len(b):,} now, {first}")
        else:
            lines.append(f"{key}: {a} then, {b} now")
    return lines
