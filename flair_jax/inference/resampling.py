"""Bilinear resampling of a masked raster in windows, by a factor for each axis.

The kernel is a triangle as wide as two pixels of the coarser grid, as in GDAL's warper: enlarging
interpolates, reducing averages. Invalid pixels have no weight.
"""

import math
from collections.abc import Callable

import numpy as np

_PIXELS = 2**22  # of the source, read at a time
_VALID = 0.5 - 1e-4  # share of a pixel's weight that lies on valid pixels, at least

# (top, left, height, width) -> image (height, width, bands) or None, valid pixels (height, width)
Read = Callable[[int, int, int, int], tuple[np.ndarray | None, np.ndarray]]


class Axis:
    """The resampling along one axis.

    Args:
        length: of the source, in pixels.
        factor: how many of its pixels make up one of the result.

    Attributes:
        length: of the result.
    """

    def __init__(self, length: int, factor: float) -> None:
        self._source, self.factor = length, factor
        self.length = max(1, math.ceil(length / factor - 1e-6))

    def weights(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """For the pixels from `begin` to `end` of the result, (n, taps): source pixels, weights."""
        reach = max(self.factor, 1.0)
        centre = (np.arange(begin, end) + 0.5) * self.factor - 0.5
        taps = np.floor(centre - reach).astype(int)[:, None] + np.arange(math.ceil(2 * reach) + 2)
        weights = np.maximum(1 - np.abs(taps - centre[:, None]) / reach, 0)
        weights[(taps < 0) | (taps >= self._source)] = 0
        weights /= weights.sum(1, keepdims=True)
        return np.clip(taps, 0, self._source - 1), weights.astype(np.float32)

    def span(self, begin: int, end: int) -> tuple[int, int]:
        """Bounds of the source pixels that the result's pixels from `begin` to `end` depend on."""
        reach = max(self.factor, 1.0)
        return math.floor(begin * self.factor - reach), math.ceil(end * self.factor + reach)


def read_resampled(
    read: Read, vertical: Axis, horizontal: Axis, top: int, left: int, height: int, width: int
) -> tuple[np.ndarray | None, np.ndarray]:
    """Reads a window of the resampled raster.

    Args:
        read: reads a window of the source.
        vertical, horizontal: the resampling along the axes.
        top, left, height, width: the window, within the result.

    Returns:
        The same as `read`, of the result.
    """
    columns, column_weights = horizontal.weights(left, left + width)
    first_column, last_column = int(columns.min()), int(columns.max())
    source_width = last_column + 1 - first_column
    rows_at_once = max(1, int(_PIXELS / source_width / vertical.factor))
    image, valid = None, np.zeros((height, width), bool)
    for begin in range(0, height, rows_at_once):
        part = slice(begin, min(begin + rows_at_once, height))
        rows, row_weights = vertical.weights(top + part.start, top + part.stop)
        first_row, last_row = int(rows.min()), int(rows.max())
        source, known = read(first_row, first_column, last_row + 1 - first_row, source_width)
        if source is None:
            continue
        weights = (rows - first_row, row_weights), (columns - first_column, column_weights)
        values = _combine(source.astype(np.float32), *weights)
        enough = np.ones(values.shape[:2], bool)
        if not known.all():
            share = _combine(known[:, :, None].astype(np.float32), *weights)
            enough = share[:, :, 0] >= _VALID
            values /= np.maximum(share, _VALID)
        if image is None:
            image = np.zeros((height, width, source.shape[2]), np.uint8)
        image[part] = np.where(enough[:, :, None], np.rint(values), 0)
        valid[part] = enough
    return (image if valid.any() else None), valid


def _combine(
    values: np.ndarray,
    vertical: tuple[np.ndarray, np.ndarray],
    horizontal: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Weighted sums along both axes, (rows, columns, bands) float32, of the taps of `weights`."""
    values = _combine_rows(values, *vertical)
    values = _combine_rows(np.ascontiguousarray(values.swapaxes(0, 1)), *horizontal)
    return values.swapaxes(0, 1)


def _combine_rows(values: np.ndarray, indices: np.ndarray, weights: np.ndarray) -> np.ndarray:
    total = np.zeros((len(indices), *values.shape[1:]), np.float32)
    for index, weight in zip(indices.T, weights.T, strict=True):
        if weight.any():
            total += values[index] * weight[:, None, None]
    return total
