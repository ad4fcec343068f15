"""The pixel grid of a detection, to which other files and areas of interest are placed."""

import dataclasses

import numpy as np
from rasterio.transform import Affine

from flair_jax.inference.georeference import Georeference, short_name


@dataclasses.dataclass(frozen=True)
class PixelGrid:
    """The pixels of a raster.

    Attributes:
        name: of the raster, for messages.
        georeference, width, height: of the grid.
        base: (width, height) before the raster is resampled.
        factors: (x, y): how many of these pixels make up one of the grid.
    """

    name: str
    georeference: Georeference
    width: int
    height: int
    base: tuple[int, int]
    factors: tuple[float, float] = (1.0, 1.0)

    @property
    def extent(self) -> str:
        """Its bounds in its coordinates, in words."""
        return extent(self.georeference, self.width, self.height)


def is_located(georeference: Georeference) -> bool:
    """Whether a geotransform says where the pixels lie."""
    return georeference.transform != Affine.identity() and georeference.is_invertible


def extent(georeference: Georeference, width: int, height: int) -> str:
    """The bounds of a raster in its coordinates, such as "0, 0, 10, 20 in EPSG:2154"."""
    columns, rows = np.array([0, width, 0, width]), np.array([0, 0, height, height])
    x, y = georeference.transform @ (columns, rows)
    bounds = bounds_text((x.min(), y.min(), x.max(), y.max()))
    return f"{bounds} in {short_name(georeference.crs)}"


def bounds_text(bounds: tuple[float, ...] | np.ndarray) -> str:
    """Bounds with commas between them."""
    return ", ".join(f"{value:.10g}" for value in bounds)
