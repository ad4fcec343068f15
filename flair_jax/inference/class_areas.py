"""The area of each class on the ground."""

import numpy as np
import rasterio
from rasterio.windows import Window

from flair_jax.inference.geotiff import Rows

_CHUNK = 4096  # columns for which one pixel's area is taken


def class_areas(rows: Rows, classes: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Counts the pixels of each class, and adds up their areas.

    Projections that stretch are corrected for: a pixel's area is taken at the centre of a part of
    a row of tiles.

    Args:
        rows: the finished rows.
        classes: their number.

    Returns:
        (classes,) int64 pixels; (classes,) float64 square metres, or None if the ground sample
        distance is unknown.
    """
    pixels = np.zeros(classes, np.int64)
    areas: np.ndarray | None = np.zeros(classes)
    lefts = np.arange(0, rows.width, _CHUNK)
    widths = np.minimum(_CHUNK, rows.width - lefts)
    top = 0
    for path, height in zip(rows.paths, rows.heights, strict=True):
        middle = np.full(len(lefts), top + height / 2)
        each = rows.georeference.pixel_area(lefts + widths / 2, middle)
        with rasterio.open(path) as raster:
            for number, (left, width) in enumerate(
                zip(lefts.tolist(), widths.tolist(), strict=True)
            ):
                values = raster.read(1, window=Window(left, 0, width, height))
                if not values.any():
                    continue
                counts = np.array([np.count_nonzero(values == k + 1) for k in range(classes)])
                pixels += counts
                areas = None if each is None or areas is None else areas + counts * each[number]
        top += height
    return pixels, areas
