"""The raster to detect on, opened, checked and read in windows."""

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

TRAINED_AT = 0.2  # metres: FLAIR's pixel size
_FAR = 1.3  # factor from which a pixel size is called another one
_METRES_A_DEGREE = 111_320  # of latitude, and of longitude at the equator


class UnreadableError(UserError):
    """A part of the raster cannot be read: a truncated or damaged file, or a lost connection."""


class Source:
    """One raster of the model's bands, whatever files it comes from.

    Args:
        paths: see `mosaic.expand`.
        wanted: names of the model's bands.
        bands: see `Options.bands`.
        resolution: see `Options.resolution`.

    Attributes:
        width, height: in pixels.
        crs, transform: where it lies; None and the identity where nothing is known.
        remote: whether a part of it comes over a network.
        striped: whether any part of a row is stored with all of the row.

    Raises:
        UserError: it cannot be opened, or does not fit the model.
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
        """The file, or the first and how many more."""
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        return self.paths[0] + more

    @property
    def pixel_size(self) -> float | None:
        """Side of a pixel in metres, roughly where the raster is in degrees; None if unknown."""
        return _pixel_size(self._raster)

    def scale_warning(self) -> str:
        """What to say of a pixel size far from the model's; "" if there is nothing to say."""
        size = self.pixel_size
        if size is None:
            return (
                f"{self.name} does not say how large its pixels are: they are taken as "
                f"{TRAINED_AT} m, which the model was trained on"
            )
        if 1 / _FAR <= size / TRAINED_AT <= _FAR:
            return ""
        return (
            f"pixels of {self.name} are {size:.2g} m, and the model was trained on {TRAINED_AT} m: "
            f"expect worse results than with --resolution={TRAINED_AT}"
        )

    def read(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Reads the pixels of some rows and columns, which may come twice and in any order.

        Args:
            rows, columns: int, neighbouring pixels of the raster.

        Returns:
            The image (rows, columns, bands) uint8, 0 where it is not valid, or None if nothing of
            it is; and (rows, columns) bool, which of its pixels are valid.

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
                f"{columns.max()}, rows {top} to {rows.max()}: {reason}. Is it whole?"
            ) from error
        place = np.ix_(rows - top, columns - left)
        return (None if image is None else image[place]), valid[place]

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
                f"{self.name} is in degrees, --resolution={resolution:g} in metres. Bring it to a "
                f"metric coordinate system first, such as\n  gdalwarp -t_srs EPSG:{zone} -tr "
                f"{resolution:g} {resolution:g} -r bilinear {self.paths[0]} metres.tif"
            )
        size = _pixel_size(raster)
        if size is None:
            raise UserError(
                f"{self.name} does not say how large its pixels are, so --resolution cannot be "
                "reached: leave it out, or resize the raster by gdal_translate -outsize"
            )
        factor = resolution / size
        # A coordinate system is only wanted because GDAL wants one: the pixels stay where they are.
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
