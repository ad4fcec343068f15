"""Polygons of a class raster in a GeoPackage: class, name, area on the ground (extra `vector`)."""

import os
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import rasterio
from etils import epath
from rasterio.features import shapes
from rasterio.warp import transform as transform_points

from flair_jax.data.nomenclature import Nomenclature
from flair_jax.errors import UserError
from flair_jax.inference import qgis_style, vector
from flair_jax.inference.georeference import Georeference
from flair_jax.inference.pixel_grid import is_located

_CHUNK = 20_000  # polygons written at a time
_EDGE = 100.0  # metres: longer edges are divided for their area
# Each needs about 140 bytes, while the polygons are made.
MOST_CORNERS = 100_000_000
_NOTHING = 0  # the value of pixels without a class


def check(georeference: Georeference) -> None:
    """Raises a UserError for a raster whose pixels have no place in a coordinate system."""
    if georeference.crs is None or not is_located(georeference):
        raise UserError(
            f"--polygons needs a raster with a coordinate system and a geotransform, and this has "
            f"{georeference.description}: warp or georeference it first, or omit --polygons"
        )


def write_polygons(
    source: os.PathLike[str],
    target: epath.Path,
    georeference: Georeference,
    nomenclature: Nomenclature,
    first_class: int,
    *,
    simplify: float = 0.0,
    layer: str = "land_cover",
    date: str = "",
) -> int:
    """Polygonises a class raster; polygons of one class share no sides.

    Each polygon has its class ("class", "name") and its area on the WGS 84 ellipsoid in square
    metres ("area_m2"), which is that of the polygon as it is written. A style for QGIS is in the
    file. The polygons are kept in memory, the pixels are not.

    Args:
        source: classes from 1, 0 for no class, uint8, without georeferencing: for another raster,
            GDAL gives no positions in pixels.
        target: the GeoPackage to write.
        georeference: of the raster, see `check`.
        nomenclature: the classes.
        first_class: the value that is written for the first one.
        simplify: corners that stand out by a triangle of less than the square of this, in metres,
            are removed (Visvalingam-Whyatt), of neighbours alike: without gaps and overlaps. The
            edge towards pixels without a class stays, and so does the sum of all areas.
        layer: name of the layer.
        date: when the contents were made, for the GeoPackage's own record; "" for now.

    Returns:
        The number of polygons.

    Raises:
        UserError: they have more than `MOST_CORNERS` corners; or the extra is not installed.
    """
    pyogrio, shapely = vector.packages("--polygons")
    with rasterio.open(source) as raster:
        values, geometries = _polygonised(raster, shapely)
        middle = raster.width / 2, raster.height / 2
        size = georeference.pixel_size(*middle) or (1.0, 1.0)
    if simplify and len(geometries):
        # All corners of the neighbours must be corners of a polygon, too.
        geometries = shapely.segmentize(geometries, 1.0)
        # In whole numbers, so that there is no rounding. Only the areas of triangles count.
        tolerance = simplify / np.sqrt(size[0] * size[1])
        geometries = shapely.coverage_simplify(geometries, tolerance, simplify_boundary=False)
        # Of the outer edge, only points on a straight line are removed.
        geometries = shapely.coverage_simplify(geometries, 1e-3)
    names = np.array(nomenclature.names, object)
    centre = georeference.degrees(*(np.array([side]) for side in middle))
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": date or None})
    try:
        # An empty map gives an empty layer.
        for begin in range(0, max(len(geometries), 1), _CHUNK):
            chunk = geometries[begin : begin + _CHUNK]
            labels = values[begin : begin + _CHUNK].astype(np.int32) - 1
            areas = _ground_areas(chunk, georeference, centre, size, shapely)
            placed = shapely.transform(
                chunk, lambda xy: np.stack(georeference.transform @ tuple(xy.T), -1)
            )
            pyogrio.raw.write(
                os.fspath(target),
                shapely.to_wkb(placed),
                [labels + first_class, names[labels], areas],
                ["class", "name", "area_m2"],
                layer=layer,
                driver="GPKG",
                geometry_type="Polygon",
                crs=georeference.crs.to_wkt() if georeference.crs else None,
                append=begin > 0,
                dataset_options={} if begin else {"VERSION": "1.2"},  # for GDAL before 3.7, too
            )
        style = qgis_style.polygon_style(nomenclature, first_class, "class")
        _write_style(pyogrio, target, layer, style, date)
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})
    return len(geometries)


def _write_style(pyogrio: ModuleType, path: epath.Path, layer: str, style: str, date: str) -> None:
    """Writes the table from which QGIS takes the style of a layer."""
    columns = {
        "f_table_catalog": "", "f_table_schema": "", "f_table_name": layer,
        "f_geometry_column": "geom", "styleName": "land cover", "styleQML": style, "styleSLD": "",
        "useAsDefault": True, "description": "", "owner": "",
        "update_time": date,
    }  # fmt: skip
    pyogrio.raw.write(
        os.fspath(path),
        None,
        [np.array([v], bool if v is True else object) for v in columns.values()],
        list(columns),
        layer="layer_styles",
        driver="GPKG",
        geometry_type=None,
        append=True,
        layer_options={"FID": "id"},
    )


def _polygonised(
    raster: rasterio.DatasetReader, shapely: ModuleType
) -> tuple[np.ndarray, np.ndarray]:
    """The value and the polygon, in pixels, of each patch of a class."""
    values: list[int] = []

    def rings() -> Iterator[list[np.ndarray]]:
        for geometry, value in shapes(rasterio.band(raster, 1), connectivity=4):
            if value != _NOTHING:
                values.append(int(value))
                yield [np.array(ring, np.float64) for ring in geometry["coordinates"]]

    points, lengths, counts, corners = [np.empty((0, 2))], [0], [0], 0
    for polygon in rings():
        corners += sum(map(len, polygon))
        if corners > MOST_CORNERS:
            raise UserError(
                f"the polygons of this map have more than {MOST_CORNERS:,} corners, too many for "
                "one file. The same command with --resume and a larger --min_area, or without "
                "--polygons, uses what is computed; or detect on parts of the area"
            )
        points += polygon
        lengths += map(len, polygon)
        counts.append(len(polygon))
    geometries = shapely.from_ragged_array(
        shapely.GeometryType.POLYGON,
        np.concatenate(points),
        (np.cumsum(lengths), np.cumsum(counts)),
    )
    return np.array(values, np.uint8), geometries


def _ground_areas(
    geometries: np.ndarray,
    georeference: Georeference,
    centre: np.ndarray | None,
    size: tuple[float, float],
    shapely: ModuleType,
) -> np.ndarray:
    """Square metres of polygons in pixels, by an equal-area projection around the raster."""
    if centre is None or not np.isfinite(centre).all() or not len(geometries):
        return shapely.area(geometries) * size[0] * size[1]
    longitude, latitude = centre[:, 0].tolist()
    equal_area = (
        f"+proj=laea +lon_0={longitude!r} +lat_0={latitude!r} +ellps=WGS84 +towgs84=0,0,0 +units=m"
    )

    def project(xy: np.ndarray) -> np.ndarray:
        x, y = georeference.transform @ tuple(xy.T)
        return np.array(transform_points(georeference.crs, equal_area, x, y)).T

    divided = shapely.segmentize(geometries, max(_EDGE / min(size), 1.0))
    return shapely.area(shapely.transform(divided, project))
