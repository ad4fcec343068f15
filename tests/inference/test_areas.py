"""Areas of classes on the ground, against geodesic areas of pyproj and masks of whole rasters."""

import hypothesis
import numpy as np
import pytest
import rasterio
from detecting import write
from hypothesis import strategies as st
from pyproj import Geod, Transformer
from rasterio.features import geometry_mask
from rasterio.transform import Affine, from_origin
from shapely import Polygon

from flair_jax.inference.areas import Feature, class_areas

WIDTH, HEIGHT, EDGE = 400, 300, 150


def geodesic_area(crs, transform, left, right, height):
    """Square metres of some columns of a raster on the WGS 84 ellipsoid."""
    steps = np.linspace(0, 1, 2001)
    columns = np.concatenate([left + (right - left) * steps, right + 0 * steps])
    columns = np.concatenate([columns, left + (right - left) * steps[::-1], left + 0 * steps])
    rows = height * np.concatenate([0 * steps, steps, 1 + 0 * steps, steps[::-1]])
    to_degrees = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    x, y = transform @ (columns, rows)
    area, _ = Geod(ellps="WGS84").polygon_area_perimeter(*to_degrees.transform(x, y))
    return abs(area)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:2154", from_origin(200_000, 6_200_000, 20, 20)),  # Lambert-93 far from its centre
        ("EPSG:2154", from_origin(900_000, 6_500_000, 20, 20) @ Affine.rotation(30)),
        ("EPSG:32631", from_origin(700_000, 5_500_000, 20, 30)),
        ("EPSG:3857", from_origin(1e6, 8_400_000, 30, 30)),
        ("EPSG:3035", from_origin(4e6, 3e6, 20, 20)),  # keeps areas
        ("EPSG:4326", from_origin(2, 60, 2e-4, 2e-4)),
        ("EPSG:2263", from_origin(900_000, 200_000, 50, 50)),  # in feet
    ],
    ids=["Lambert-93", "rotated", "UTM", "Web Mercator", "LAEA", "degrees", "feet"],
)
def test_areas_are_geodesic(tmp_path, crs, transform):
    pixels = np.full((1, HEIGHT, WIDTH), 3, np.uint8)
    pixels[:, :, EDGE:] = 5
    path = write(tmp_path / "map.tif", pixels, crs=crs, transform=transform)
    whole, _ = class_areas(path, 5, 1)
    assert whole.pixels.tolist() == [0, 0, HEIGHT * EDGE, 0, HEIGHT * (WIDTH - EDGE)]
    for value, left, right in ((3, 0, EDGE), (5, EDGE, WIDTH)):
        expected = geodesic_area(crs, transform, left, right, HEIGHT)
        assert whole.square_metres[value - 1] == pytest.approx(expected, rel=2e-6)
    assert (whole.nodata_pixels, whole.nodata_square_metres) == (0, 0.0)


def test_no_data_is_counted_apart(tmp_path):
    pixels = np.full((1, 20, 30), 255, np.uint8)
    pixels[:, :4] = 0
    transform = from_origin(4e6, 3e6, 20, 20)
    path = write(tmp_path / "map.tif", pixels, crs="EPSG:3035", transform=transform)
    whole, _ = class_areas(path, 2, 0)
    assert whole.pixels.tolist() == [120, 0]
    assert whole.square_metres == pytest.approx([120 * 400, 0], rel=1e-6)
    assert whole.nodata_pixels == 480
    assert whole.nodata_square_metres == pytest.approx(480 * 400, rel=1e-6)


def test_without_a_size_there_are_no_areas(tmp_path):
    pixels = np.ones((1, 4, 5), np.uint8)
    path = write(tmp_path / "map.tif", pixels, crs=None, transform=Affine.identity())
    whole, _ = class_areas(path, 2, 1)
    assert whole.pixels.tolist() == [20, 0]
    assert whole.square_metres is None
    assert whole.nodata_square_metres is None


CORNER = st.tuples(st.floats(-20, 90), st.floats(-20, 70))


@hypothesis.given(st.lists(st.tuples(CORNER, CORNER, CORNER), min_size=1, max_size=4))
@hypothesis.settings(
    max_examples=30, deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_features_are_those_of_a_mask_of_the_whole(tmp_path, corners):
    # Of blocks of 16 x 16 pixels.
    pixels = np.random.default_rng(0).integers(1, 5, (1, 50, 70), dtype=np.uint8)
    pixels[pixels == 4] = 255
    transform = from_origin(4e6, 3e6, 20, 20) @ Affine.rotation(10)
    path = tmp_path / "map.tif"
    if not path.exists():
        write(path, pixels, crs="EPSG:3035", transform=transform, tiled=True, blockxsize=16,
              blockysize=16)  # fmt: skip
    triangles = [
        Polygon([transform @ corner for corner in of_one])
        for of_one in corners
        if Polygon(of_one).area > 0
    ]
    _, found = class_areas(path, 3, 1, [Feature(triangle) for triangle in triangles])
    assert len(found) == len(triangles)
    for triangle, areas in zip(triangles, found, strict=True):
        inside = ~geometry_mask([triangle], (50, 70), transform)
        values = pixels[0][inside]
        assert areas.pixels.tolist() == [(values == k).sum() for k in (1, 2, 3)]
        assert areas.nodata_pixels == (values == 255).sum()
        assert areas.square_metres == pytest.approx(400 * areas.pixels, rel=1e-6)


def test_the_parts_add_up_to_the_whole(tmp_path):
    pixels = np.random.default_rng(1).integers(1, 4, (1, 60, 90), dtype=np.uint8)
    path = write(tmp_path / "map.tif", pixels, crs="EPSG:3857", transform=from_origin(0, 9e6, 9, 9))
    with rasterio.open(path) as raster:
        left, bottom, right, top = raster.bounds
    middle = left + 9 * 41
    halves = [
        Feature(Polygon([(a, bottom), (b, bottom), (b, top), (a, top)]), id=name)
        for name, a, b in (("west", left, middle), ("east", middle, right))
    ]
    whole, parts = class_areas(path, 3, 1, halves)
    assert [int(part.pixels.sum()) for part in parts] == [60 * 41, 60 * 49]
    np.testing.assert_array_equal(sum(part.pixels for part in parts), whole.pixels)
    np.testing.assert_allclose(
        sum(part.square_metres for part in parts), whole.square_metres, rtol=1e-12
    )
