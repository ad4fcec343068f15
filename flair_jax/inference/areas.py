"""The area of each class on the ground: of a whole class raster, and of polygons in it."""

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import rasterio
from rasterio.features import bounds, rasterize
from rasterio.transform import Affine
from rasterio.windows import Window

from flair_jax.inference.georeference import Georeference
from flair_jax.inference.geotiff import NODATA


@dataclasses.dataclass(frozen=True)
class Feature:
    """A polygon to take the areas in.

    Attributes:
        geometry: a polygon or multipolygon in the raster's coordinate system, as GeoJSON or as an
            object with `__geo_interface__`, such as shapely's.
        id: what identifies it in the report.
        properties: its attributes, which are reported too.
    """

    geometry: Any
    id: int | str = 0
    properties: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Areas:
    """Pixels and areas of classes.

    Attributes:
        pixels: (classes,) int64.
        square_metres: (classes,) float64 on the ground; None if the pixels' size is unknown.
        nodata_pixels: pixels without a class.
        nodata_square_metres: their area; None if the pixels' size is unknown.
    """

    pixels: np.ndarray
    square_metres: np.ndarray | None
    nodata_pixels: int
    nodata_square_metres: float | None


class _Sum:
    """Adds up the pixels and areas of values from 0 to 255."""

    def __init__(self) -> None:
        self.pixels = np.zeros(256, np.int64)
        self.areas = np.zeros(256)

    def add(self, values: np.ndarray, areas: np.ndarray | None) -> None:
        if not values.size:
            return
        if (first := int(values.flat[0])) == values.min() == values.max():  # much faster
            self.pixels[first] += values.size
            self.areas[first] += 0.0 if areas is None else areas.sum()
            return
        flat = values.ravel()
        self.pixels += np.bincount(flat, minlength=256)
        if areas is not None:
            self.areas += np.bincount(flat, areas.ravel(), minlength=256)

    def result(self, classes: slice, has_areas: bool) -> Areas:
        return Areas(
            self.pixels[classes],
            self.areas[classes] if has_areas else None,
            int(self.pixels[NODATA]),
            float(self.areas[NODATA]) if has_areas else None,
        )


def class_areas(
    path: os.PathLike[str], classes: int, first_class: int, features: Sequence[Feature] = ()
) -> tuple[Areas, list[Areas]]:
    """Counts the pixels of each class, and adds up their areas on the WGS 84 ellipsoid.

    The raster is read block by block. A pixel belongs to all features that its centre lies in.

    Args:
        path: a class raster, see `geotiff.write_classes`.
        classes: their number.
        first_class: the value of the first one.
        features: polygons, of a raster with a geotransform.

    Returns:
        The areas of the whole raster, and those of each feature.
    """
    whole, parts = _Sum(), [_Sum() for _ in features]
    with rasterio.open(path) as raster:
        boxes = np.array([_pixel_box(raster, feature) for feature in features]).reshape(-1, 4)
        has_areas = True
        for window, areas in _blocks(raster):
            values = raster.read(1, window=window)
            has_areas &= areas is not None
            whole.add(values, areas)
            left, top = window.col_off, window.row_off
            right, bottom = left + window.width, top + window.height
            touching = (
                (boxes[:, 0] < right) & (boxes[:, 1] < bottom)
                & (boxes[:, 2] > left) & (boxes[:, 3] > top)
            )  # fmt: skip
            for index in np.flatnonzero(touching).tolist():
                begin = np.maximum(boxes[index, :2], (left, top))
                end = np.minimum(boxes[index, 2:], (right, bottom))
                inside = rasterize(
                    [features[index].geometry],
                    (end - begin)[::-1].tolist(),
                    transform=raster.transform @ Affine.translation(*begin.tolist()),
                    dtype="uint8",
                ).astype(bool)
                columns, rows = map(slice, begin - (left, top), end - (left, top))
                of_feature = None if areas is None else areas[rows, columns][inside]
                parts[index].add(values[rows, columns][inside], of_feature)
    of_classes = slice(first_class, first_class + classes)
    return (
        whole.result(of_classes, has_areas),
        [part.result(of_classes, has_areas) for part in parts],
    )


def _blocks(
    raster: rasterio.DatasetReader,
) -> Iterator[tuple[Window, np.ndarray | None]]:
    """The blocks of a raster, with the area of each pixel in square metres, None if unknown."""
    height, width = raster.block_shapes[0]
    lefts = np.append(np.arange(0, raster.width, width), raster.width)
    georeference = Georeference.of(raster)
    above = georeference.pixel_area(lefts, np.zeros(len(lefts)))
    for top in range(0, raster.height, height):
        bottom = min(top + height, raster.height)
        below = georeference.pixel_area(lefts, np.full(len(lefts), bottom))
        for i, (left, right) in enumerate(zip(lefts.tolist(), lefts[1:].tolist(), strict=False)):
            areas = None
            if above is not None and below is not None:
                corners = np.array([above[i : i + 2], below[i : i + 2]])
                areas = interpolated(corners, bottom - top, right - left)
            yield Window(left, top, right - left, bottom - top), areas
        above = below


def interpolated(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear interpolation between the corners of a block, at the centres of its pixels.

    Args:
        corners: (2, 2).
        height, width: of the block in pixels.

    Returns:
        (height, width) float64.
    """
    down = ((np.arange(height) + 0.5) / height)[:, None]
    right = (np.arange(width) + 0.5) / width
    first, last = (row[0] + (row[1] - row[0]) * right for row in corners)
    return first + (last - first) * down


def _pixel_box(raster: rasterio.DatasetReader, feature: Feature) -> list[int]:
    """The columns and rows (left, top, right, bottom) that a feature lies in."""
    left, bottom, right, top = bounds(feature.geometry)
    corners = [~raster.transform @ (x, y) for x in (left, right) for y in (bottom, top)]
    columns, rows = zip(*corners, strict=True)
    return [
        max(math.floor(min(columns)), 0), max(math.floor(min(rows)), 0),
        min(math.ceil(max(columns)), raster.width), min(math.ceil(max(rows)), raster.height),
    ]  # fmt: skip
