"""Polygons of class rasters, against rasterio.features and the areas of the rasters."""

import sys
from xml.etree import ElementTree as xml

import hypothesis
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from detecting import write
from etils import epath
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rasterio.crs import CRS
from rasterio.features import shapes
from rasterio.transform import Affine, from_origin

from flair_jax.data.nomenclature import BASELINE
from flair_jax.errors import UserError
from flair_jax.inference import polygons, vector
from flair_jax.inference.areas import class_areas
from flair_jax.inference.georeference import Georeference

PLACE = Georeference(CRS.from_epsg(2154), from_origin(900_000, 6_500_000, 0.2, 0.2))


def polygonised(folder, pixels, place=PLACE, first_class=1, **options):
    """What is read from the GeoPackage: classes, names, areas, geometries; and its path."""
    height, width = pixels.shape
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": height, "width": width}
    with rasterio.open(folder / "classes.tif", "w", **profile) as raster:
        raster.write(pixels.astype(np.uint8), 1)
    target = epath.Path(folder) / "map.gpkg"
    target.unlink(missing_ok=True)
    count = polygons.write_polygons(
        folder / "classes.tif", target, place, BASELINE, first_class, **options
    )
    meta, _, geometries, fields = pyogrio.raw.read(target, layer=options.get("layer", "land_cover"))
    assert list(meta["fields"]) == ["class", "name", "area_m2"]
    assert len(geometries) == count
    return *fields, shapely.from_wkb(geometries)


def blobs(height, width, seed=0):
    """(height, width): classes from 1 to 4 in patches, and some of no class."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 5, (-(-height // 5), -(-width // 5)))
    pixels = coarse.repeat(5, 0).repeat(5, 1)[:height, :width]
    return np.where(rng.random(pixels.shape) < 0.1, rng.integers(0, 5, pixels.shape), pixels)


CLASSES = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 3)
)
WITH_FOLDER = hypothesis.settings(
    max_examples=40, deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)  # fmt: skip


@hypothesis.given(CLASSES)
@WITH_FOLDER
def test_polygons_are_those_of_rasterio(tmp_path, pixels):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polygons, "_CHUNK", 7)
        classes, names, _, found = polygonised(tmp_path, pixels)
    assert names.tolist() == [BASELINE.names[value - 1] for value in classes]
    expected = {
        (int(value), shapely.normalize(shapely.geometry.shape(shape)).wkt)
        for shape, value in shapes(pixels, connectivity=4, transform=PLACE.transform)
        if value
    }
    rounded = shapely.normalize(found)
    assert {(int(c), polygon.wkt) for c, polygon in zip(classes, rounded, strict=True)} == expected


@hypothesis.given(CLASSES, st.sampled_from([0.1, 0.3, 1.0, 5.0]))
@WITH_FOLDER
def test_simplified_polygons_have_no_gaps_or_overlaps(tmp_path, pixels, tolerance):
    classes, _, areas, found = polygonised(tmp_path, pixels, simplify=tolerance)
    plain_classes, _, plain_areas, plain = polygonised(tmp_path, pixels)
    np.testing.assert_array_equal(classes, plain_classes)
    assert shapely.is_valid(found).all()
    if not len(found):
        return
    assert not shapely.is_empty(found).any()
    assert shapely.coverage_is_valid(found)
    # The outer edge is as it was.
    outside = shapely.symmetric_difference(shapely.union_all(found), shapely.union_all(plain))
    assert outside.area < 1e-9
    assert areas.sum() == pytest.approx(plain_areas.sum(), rel=1e-7)


def test_simplifying_straightens_stairs(tmp_path):
    pixels = np.tri(40, dtype=int) + 1
    _, _, _, found = polygonised(tmp_path, pixels)
    assert shapely.get_num_coordinates(found).sum() > 150
    _, _, areas, found = polygonised(tmp_path, pixels, simplify=1)
    assert shapely.get_num_coordinates(found).sum() <= 14
    assert areas.sum() == pytest.approx(64 * 1.0016, rel=1e-4)
    assert sorted(areas) == pytest.approx([31.2, 32.8], rel=0.03)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:2154", from_origin(200_000, 6_200_000, 20, 20)),
        ("EPSG:2154", from_origin(900_000, 6_500_000, 20, 20) @ Affine.rotation(30)),
        ("EPSG:3857", from_origin(1e6, 8_400_000, 30, 30)),
        ("EPSG:4326", from_origin(2, 60, 2e-4, 2e-4)),
        ("EPSG:3031", from_origin(-4000, 3000, 50, 50)),  # with the pole inside
        ("EPSG:4326", from_origin(179.99, 0.01, 2e-4, 2e-4)),  # over the antimeridian
    ],
    ids=["Lambert-93", "rotated", "Web Mercator", "degrees", "South Pole", "antimeridian"],
)
def test_areas_sum_to_those_of_the_raster(tmp_path, crs, transform):
    pixels = blobs(120, 160)
    place = Georeference(CRS.from_user_input(crs), transform)
    classes, _, areas, found = polygonised(tmp_path, pixels, place)
    as_written = np.where(pixels == 0, 255, pixels).astype(np.uint8)
    path = write(tmp_path / "map.tif", as_written[None], crs=crs, transform=transform)
    whole, _ = class_areas(path, 13, 1)
    of_class = np.bincount(classes, areas, minlength=14)[1:]
    np.testing.assert_allclose(of_class, whole.square_metres, rtol=2e-6)
    planar = shapely.area(found).sum()
    assert planar == pytest.approx(abs(transform.determinant) * (pixels > 0).sum(), rel=1e-9)


def test_values_begin_at_the_first_class(tmp_path):
    classes, names, _, _ = polygonised(tmp_path, np.array([[1, 2]]), first_class=0)
    assert dict(zip(classes.tolist(), names, strict=True)) == {
        0: BASELINE.names[0],
        1: BASELINE.names[1],
    }


def test_a_map_of_nothing_is_an_empty_layer(tmp_path):
    classes, _, _, _ = polygonised(tmp_path, np.zeros((3, 4)), layer="map", simplify=1)
    assert len(classes) == 0
    layers = pyogrio.list_layers(tmp_path / "map.gpkg").tolist()
    assert layers == [["map", "Polygon"], ["layer_styles", None]]


def test_the_style_for_qgis_is_in_the_file(tmp_path):
    polygonised(tmp_path, np.array([[1, 2]]), first_class=0)
    meta, _, _, fields = pyogrio.raw.read(tmp_path / "map.gpkg", layer="layer_styles")
    row = dict(zip(meta["fields"], (field[0] for field in fields), strict=True))
    assert (row["f_table_name"], row["f_geometry_column"]) == ("land_cover", "geom")
    assert row["useAsDefault"]
    assert "update_time" in row  # by which QGIS sorts
    style = xml.fromstring(row["styleQML"].partition("\n")[2])
    categories = [(c.get("value"), c.get("label")) for c in style.iter("category")]
    assert categories == [(str(i), name) for i, name in enumerate(BASELINE.names)]
    fills = [prop.get("v") for prop in style.iter("prop") if prop.get("k") == "color"]
    assert fills == [",".join(map(str, [*rgb, 255])) for rgb in BASELINE.rgb.tolist()]


def test_the_same_map_gives_the_same_bytes(tmp_path):
    contents = []
    for _ in range(2):
        polygonised(tmp_path, blobs(30, 40), date="2025-06-30T09:05:00Z")
        contents.append((tmp_path / "map.gpkg").read_bytes())
    assert contents[0] == contents[1]
    assert b"2025-06-30T09:05:00" in contents[0]


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyogrio", None)
    with pytest.raises(UserError, match=r"pip install 'flair-jax\[vector\]'"):
        vector.packages("--polygons")


@pytest.mark.parametrize(
    "place",
    [
        Georeference(None, PLACE.transform),
        Georeference(CRS.from_epsg(2154), Affine.identity()),
    ],
)
def test_pixels_without_a_place_are_refused(place):
    with pytest.raises(UserError, match="needs a raster with a coordinate system and a geotransf"):
        polygons.check(place)
