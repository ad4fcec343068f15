"""The input raster of a detection: checked against the model and read in windows."""

import math
import os
from collections.abc import Sequence

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from flair_jax.errors import UserError
from flair_jax.inference.mosaic import open_raster, virtual_raster

TRAINED_AT = 0.2  # metres: FLAIR's ground sample distance
_FAR = 1.3  # ratio of ground sample distances from which a warning is printed
_METRES_A_DEGREE = 111_320  # of latitude, and of longitude on the equator


class UnreadableError(UserError):
    """A window cannot be read: the file is truncated or damaged, or the connection was lost."""


class Source:
    """One raster of the model's bands, from one or several files.

    Args:
        paths: see `mosaic.expand`.
        wanted: names of the model's bands.
        bands: see `Options.bands`.
        resolution: see `Options.resolution`.

    Attributes:
        width, height: in pixels.
        crs, transform: its georeferencing; None and the identity if unknown.
        remote: whether an input is read over a network.
        striped: whether the first input is stored in strips, that is, in blocks of full rows.

    Raises:
        UserError: an input cannot be opened, or does not fit the model.
    """

    def __init__(
        self,
        paths: Sequence[str],
        wanted: Sequence[str],
        bands: Sequence[int] = (),
        resolution: float = 0.0,
    ) -> None:
        self.paths = list(paths)
        self.remote = any("://" in path for path in paths)
        with open_raster(paths[0]) as first:
            self.striped = first.block_shapes[0][1] == first.width
        text, self._validity = virtual_raster(paths, wanted, bands)
        raster = open_raster(text)
        self.crs = raster.crs
        if resolution:
            raster = self._resampled(raster, resolution)
        self._raster = raster
        self._indexes = list(range(1, len(wanted) + 1))
        self.width, self.height = raster.width, raster.height
        self.transform = raster.transform

    @property
    def name(self) -> str:
        """The first file, and the number of others."""
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        return self.paths[0] + more

    @property
    def pixel_size(self) -> float | None:
        """Ground sample distance in metres, approximate for degrees; None if unknown."""
        return _pixel_size(self._raster)

    def scale_warning(self) -> str:
        """A warning if the ground sample distance differs from the model's; "" if it does not."""
        size = self.pixel_size
        if size is None:
            return (
                f"the ground sample distance of {self.name} is unknown and assumed to be "
                f"{TRAINED_AT} m, on which the model was trained"
            )
        if 1 / _FAR <= size / TRAINED_AT <= _FAR:
            return ""
        return (
            f"the ground sample distance of {self.name} is {size:.2g} m, and the model was trained "
            f"on {TRAINED_AT} m: expect worse results than with --resolution={TRAINED_AT}"
        )

    def read(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Reads the pixels of some rows and columns, which may be repeated and in any order.

        Args:
            rows, columns: int, indices of adjacent pixels of the raster.

        Returns:
            The image (rows, columns, bands) uint8, 0 where it is not valid, or None if no pixel is
            valid; and the valid pixels, (rows, columns) bool.

        Raises:
            UnreadableError: GDAL cannot read it.
        """
        top, left = int(rows.min()), int(columns.min())
        window = Window(left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top)
        try:
            with rasterio.Env(GDAL_ERROR_ON_LIBJPEG_WARNING=True):
                image, valid = self._read(window)
        except rasterio.errors.RasterioError as error:
            reason = str(error.__cause__ or error)
            named = [path for path in self.paths if os.path.basename(path) in reason]
            raise UnreadableError(
                f"{named[0] if named else self.name} cannot be read at columns {left} to "
                f"{columns.max()}, rows {top} to {rows.max()}: {reason}. Is the file complete?"
            ) from error
        pixels = np.ix_(rows - top, columns - left)
        return (None if image is None else image[pixels]), valid[pixels]

    def _read(self, window: Window) -> tuple[np.ndarray | None, np.ndarray]:
        raster = self._raster
        if self._validity == "mask":
            if isinstance(raster, WarpedVRT):
                valid = raster.read(raster.count, window=window) > 0
            else:
                valid = raster.read_masks(1, window=window) > 0
            if not valid.any():
                return None, valid
        image = raster.read(self._indexes, window=window)
        if self._validity == "":
            valid = np.ones(image.shape[1:], bool)
        elif self._validity == "nodata":
            valid = np.zeros(image.shape[1:], bool)
            for band, nodata in zip(image, raster.nodatavals, strict=False):
                valid |= True if nodata is None else band != nodata
        if not valid.any():
            return None, valid
        image = np.ascontiguousarray(np.moveaxis(image, 0, -1))
        image[~valid] = 0
        return image, valid

    def _resampled(self, raster: rasterio.DatasetReader, resolution: float) -> WarpedVRT:
        if raster.crs is not None and raster.crs.is_geographic:
            x, y = _centre(raster)
            zone = (32600 if y >= 0 else 32700) + min(max(int((x + 180) // 6) + 1, 1), 60)
            raise UserError(
                f"{self.name} is in degrees, --resolution={resolution:g} in metres. Reproject it "
                f"to a metric coordinate system first, such as\n  gdalwarp -t_srs EPSG:{zone} -tr "
                f"{resolution:g} {resolution:g} -r bilinear {self.paths[0]} metres.tif"
            )
        size = _pixel_size(raster)
        if size is None:
            raise UserError(
                f"the ground sample distance of {self.name} is unknown, so --resolution cannot be "
                "used: omit it, or resize the raster with gdal_translate -outsize"
            )
        factor = resolution / size
        # GDAL requires a coordinate system to warp; any will do, since the pixels stay in place.
        crs = raster.crs or "EPSG:3857"
        return WarpedVRT(
            raster,
            src_crs=crs,
            crs=crs,
            transform=raster.transform @ Affine.scale(factor),
            width=max(1, math.ceil(raster.width / factor - 1e-6)),
            height=max(1, math.ceil(raster.height / factor - 1e-6)),
            resampling=Resampling.bilinear,
            add_alpha=self._validity == "mask",
        )


def _centre(raster: rasterio.DatasetReader) -> tuple[float, float]:
    return raster.transform @ (raster.width / 2, raster.height / 2)


def _pixel_size(raster: rasterio.DatasetReader) -> float | None:
    transform, crs = raster.transform, raster.crs
    if transform == Affine.identity():
        return None
    side = math.sqrt(abs(transform.determinant))
    if crs is not None and crs.is_geographic:
        latitude = math.radians(_centre(raster)[1])
        return side * _METRES_A_DEGREE * math.sqrt(max(math.cos(latitude), 0))
    if crs is not None and crs.is_projected:
        return side * crs.linear_units_factor[1]
    return side
