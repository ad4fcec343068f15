"""The area of interest of a detection: polygons of a vector file, or bounds, on the pixel grid.

A pixel belongs to it if its centre lies within. pyogrio reads the file, shapely repairs polygons:
the extra `vector`; bounds need neither.
"""

import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points

from flair_jax.errors import UserError
from flair_jax.inference import vector
from flair_jax.inference.areas import Feature
from flair_jax.inference.georeference import short_name
from flair_jax.inference.input_files import is_remote
from flair_jax.inference.pixel_grid import PixelGrid, bounds_text, is_located
from flair_jax.inference.tiles import Grid

_SEGMENTS = 500  # of a polygon's edge as long as the whole, before its coordinates are transformed
_POLYGONS = ("Polygon", "MultiPolygon")


class OutsideError(UserError):
    """The area of interest does not touch the raster."""


@dataclasses.dataclass(frozen=True)
class Area:
    """The part of a raster that is wanted.

    Attributes:
        polygons: in pixels (column, row) of the raster, as GeoJSON.
        boxes: (N, 4) left, top, right, bottom of each, in pixels.
        window: (top, left, height, width) of the pixels that lie within the bounds of all of them.
        description: for reports.
        notes: what to report beside.
        features: all polygons of the file, in the raster's coordinates, with their attributes.
    """

    polygons: Sequence[Mapping[str, Any]]
    boxes: np.ndarray
    window: tuple[int, int, int, int]
    description: str
    notes: tuple[str, ...] = ()
    features: Sequence[Feature] = ()

    @classmethod
    def of(
        cls, polygons: Sequence[Mapping[str, Any]], boxes: np.ndarray, height: int, width: int,
        description: str, notes: Sequence[str] = (), features: Sequence[Feature] = (),
    ) -> "Area | None":  # fmt: skip
        """The area of some polygons in a raster; None if no centre of a pixel is within bounds."""
        # The first centre that is not before an edge; an edge on a border of pixels is rounded.
        (left, top), (right, bottom) = (
            np.ceil(np.round(edges, 6) - 0.5)
            for edges in (boxes[:, :2].min(0), boxes[:, 2:].max(0))
        )
        left, right = np.clip([left, right], 0, width).astype(int).tolist()
        top, bottom = np.clip([top, bottom], 0, height).astype(int).tolist()
        if left >= right or top >= bottom:
            return None
        window = top, left, bottom - top, right - left
        return cls(polygons, boxes, window, description, tuple(notes), features)

    def touches(self, top: int, left: int, bottom: int, right: int) -> bool:
        """Whether the bounds of any polygon reach into a window."""
        return bool(len(self._in(top, left, bottom, right)))

    def mask(self, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        """The pixels of a window that belong to the area, (height, width) bool."""
        shape = bottom - top, right - left
        shapes = [self.polygons[i] for i in self._in(top, left, bottom, right)]
        if not shapes:
            return np.zeros(shape, bool)
        return rasterize(
            shapes, shape, transform=Affine.translation(left, top), dtype="uint8"
        ).astype(bool)

    def tiles(self, grid: Grid) -> int:
        """The number of tiles whose core the bounds of a polygon reach into, at most."""
        rows = [grid.vertical.done(k) for k in range(grid.vertical.count)]
        columns = [grid.horizontal.done(k) for k in range(grid.horizontal.count)]
        return sum(self.touches(y[0], x[0], y[1], x[1]) for y in rows for x in columns)

    def _in(self, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        boxes = self.boxes
        return np.flatnonzero(
            (boxes[:, 0] < right) & (boxes[:, 1] < bottom)
            & (boxes[:, 2] > left) & (boxes[:, 3] > top)
        )  # fmt: skip


def within_bounds(bounds: Sequence[float], raster: PixelGrid) -> Area:
    """The area within (left, bottom, right, top) in the coordinates of the raster.

    Raises:
        OutsideError: no pixel is within.
        UserError: the raster has no coordinates.
    """
    left, bottom, right, top = bounds
    text = ",".join(f"{value:.10g}" for value in bounds)
    _check_georeferenced(raster, f"--bounds={text}")
    x, y = np.array([left, right, right, left, left]), np.array([top, top, bottom, bottom, top])
    columns, rows = ~raster.georeference.transform @ (x, y)
    box = np.array([[columns.min(), rows.min(), columns.max(), rows.max()]])
    polygon = {"type": "Polygon", "coordinates": [list(zip(columns, rows, strict=True))]}
    area = Area.of([polygon], box, raster.height, raster.width, f"--bounds={text}")
    if area is None:
        raise OutsideError(
            f"--bounds={text} is outside {raster.name}, which spans {raster.extent}; expected "
            "LEFT,BOTTOM,RIGHT,TOP in the raster's coordinates"
        )
    return area


def of_file(path: str | os.PathLike[str], raster: PixelGrid) -> Area:
    """The area of the polygons in a vector file of any coordinate system.

    Raises:
        OutsideError: no pixel is within.
        UserError: the file cannot be read, or has no polygons or no coordinate system; or the
            raster has none.
    """
    path = os.path.expanduser(os.fspath(path))
    _check_georeferenced(raster, f"--aoi={path}")
    if raster.georeference.crs is None:
        raise UserError(
            f"{raster.name} has no coordinate system, so that --aoi={path} cannot be placed on it: "
            "assign one, such as by gdal_edit.py -a_srs EPSG:CODE, or give --bounds"
        )
    geometries, crs, attributes, notes = read_polygons(path)
    import shapely

    crs_of_raster = raster.georeference.crs
    if crs != crs_of_raster:
        # An edge that is straight in the file may be curved in the raster.
        size = np.ptp(shapely.bounds(geometries).reshape(-1, 2, 2), axis=1).max(1)
        geometries = shapely.segmentize(geometries, np.maximum(size / _SEGMENTS, 1e-12))

    def to_pixels(points: np.ndarray) -> np.ndarray:
        x, y = points.T
        if crs != crs_of_raster:
            x, y = np.array(transform_points(crs, crs_of_raster, x, y)).reshape(2, -1)
        return np.stack(~raster.georeference.transform @ (x, y), -1)

    try:
        pixels = shapely.transform(geometries, to_pixels)
    except (rasterio.errors.RasterioError, CPLE_BaseError) as error:
        raise UserError(
            f"{path} (--aoi) is in {short_name(crs)}, {raster.name} in "
            f"{short_name(crs_of_raster)}, and GDAL cannot transform between them: {error}"
        ) from error
    boxes = shapely.bounds(pixels)
    if not np.isfinite(boxes).all():
        raise UserError(
            f"{path} (--aoi) reaches beyond what {short_name(crs_of_raster)} can hold: cut it to "
            f"the surroundings of {raster.name}"
        )
    digest = hashlib.sha256(b"".join(shapely.to_wkb(pixels))).hexdigest()
    description = (
        f"{path}: {len(pixels)} polygon{'s' * (len(pixels) > 1)} in {short_name(crs)}, sha256 of "
        f"their pixels {digest[:16]}"
    )
    near = (boxes[:, 0] < raster.width) & (boxes[:, 1] < raster.height) & (boxes[:, 2:] > 0).all(1)
    outside = OutsideError(
        f"{path} (--aoi) does not touch {raster.name}, which spans {raster.extent}; its polygons "
        f"span {bounds_text(shapely.total_bounds(geometries))} in {short_name(crs)}"
    )
    if not near.any():
        raise outside
    located = shapely.transform(
        pixels, lambda points: np.stack(raster.georeference.transform @ tuple(points.T), -1)
    )
    features = [
        Feature(geometry, *of_feature)
        for geometry, of_feature in zip(located, attributes, strict=True)
    ]
    pixels = pixels[near]
    polygons = [geometry.__geo_interface__ for geometry in pixels]
    area = Area.of(polygons, boxes[near], raster.height, raster.width, description, notes, features)
    if area is None:
        raise outside
    return area


def read_polygons(
    path: str, flag: str = "--aoi"
) -> tuple[np.ndarray, CRS, list[tuple[int, dict[str, Any]]], list[str]]:
    """The polygons of a vector file, repaired where they are invalid.

    Args:
        path: what OGR opens.
        flag: the option that names it, for messages.

    Returns:
        (N,) shapely geometries, polygons and multipolygons that are not empty, one for each feature
        that has any; their coordinate system; the number and the attributes of each; and what to
        report.

    Raises:
        UserError: it cannot be read, or has no polygons or no coordinate system.
    """
    pyogrio, shapely = vector.packages(flag)
    if not is_remote(path) and not os.path.exists(path):
        raise UserError(f"there is no file {path} ({flag})")
    try:
        layers = pyogrio.list_layers(path)
        # Tables and point layers are no choice; a layer of mixed types has the type "Unknown".
        names = [str(n) for n, kind in layers if kind is not None and _may_hold_polygons(kind)]
        if len(names) > 1:
            raise UserError(
                f"{path} ({flag}) has several layers of polygons, {', '.join(names)}: give a file "
                f"of one, such as by\n  ogr2ogr area.gpkg {path} {names[0]}"
            )
        kinds = ", ".join(str(kind or "none") for _, kind in layers) or "no layers"
        if not names:
            raise UserError(f"{path} ({flag}) has no polygons: it holds {kinds}")
        meta, ids, wkb, columns = pyogrio.raw.read(
            path, layer=names[0], force_2d=True, return_fids=True
        )
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, ValueError) as error:
        raise UserError(f"{path} cannot be read as vectors ({flag}): {error}") from error
    geometries = shapely.from_wkb(wkb, on_invalid="ignore")
    if not len(geometries):
        raise UserError(f"{path} ({flag}) is empty: it has no features")
    if not meta.get("crs"):
        raise UserError(
            f"{path} ({flag}) has no coordinate system: assign one, such as by\n  ogr2ogr -a_srs "
            f"EPSG:CODE area.gpkg {path}"
        )
    try:
        crs = CRS.from_user_input(meta["crs"])
    except rasterio.errors.CRSError as error:
        raise UserError(f"the coordinate system of {path} ({flag}) is unknown: {error}") from error
    found, kept, notes = _only_polygons(geometries, path, flag)
    attributes: list[tuple[int, dict[str, Any]]] = [
        (int(ids[i]), {name: c[i] for name, c in zip(meta["fields"], columns, strict=True)})
        for i in kept
    ]
    return found, crs, attributes, notes


def _may_hold_polygons(kind: str) -> bool:
    return any(word in kind for word in ("Polygon", "Unknown", "Collection", "Surface"))


def _only_polygons(
    geometries: np.ndarray, path: str, flag: str
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The polygons among some geometries, made valid; their indices; and what to report."""
    import shapely

    notes = []
    indices = np.flatnonzero(~shapely.is_missing(geometries))
    known = geometries[indices]
    broken = ~shapely.is_valid(known)
    if broken.any():
        notes.append(f"{int(broken.sum())} of {len(known)} polygons in {path} were invalid, and "
                     "are repaired")  # fmt: skip
        known[broken] = shapely.make_valid(known[broken])
    parts = [_polygons_in(geometry) for geometry in known]
    has_polygon = np.array([part is not None for part in parts], bool)
    found = np.array([part for part in parts if part is not None], object)
    if not len(found):
        kinds = ", ".join(sorted({geometry.geom_type for geometry in known})) or "nothing"
        raise UserError(f"{path} ({flag}) has no polygons: it holds {kinds}")
    left_out = len(geometries) - len(found)
    if left_out:
        notes.append(f"{left_out} features of {path} have no polygon, and are left out")
    return found, indices[has_polygon], notes


def _polygons_in(geometry: Any) -> Any:
    """The polygons of a geometry, as one; None if it has none."""
    import shapely

    if geometry.geom_type not in _POLYGONS:
        parts = [part for part in shapely.get_parts(geometry) if part.geom_type in _POLYGONS]
        geometry = shapely.union_all(parts) if parts else None
    return None if geometry is None or geometry.is_empty or geometry.area == 0 else geometry


def _check_georeferenced(raster: PixelGrid, flag: str) -> None:
    georeference = raster.georeference
    if not is_located(georeference):
        raise UserError(
            f"{flag} cannot be placed on {raster.name}, which has no geotransform "
            f"({georeference.description}): georeference or warp it first"
        )


def check_bounds(bounds: Sequence[float]) -> None:
    """Raises a UserError unless they are left, bottom, right and top."""
    if len(bounds) != 4 or not (
        all(map(math.isfinite, bounds)) and bounds[0] < bounds[2] and bounds[1] < bounds[3]
    ):
        given = ",".join(f"{value:g}" for value in bounds)
        raise UserError(
            f"--bounds={given}: expected LEFT,BOTTOM,RIGHT,TOP, the left less than the right and "
            "the bottom less than the top"
        )
