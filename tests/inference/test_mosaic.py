"""Mosaics of input rasters: validity, orientation, extent; GCPs and RPCs."""

import os

import numpy as np
import pytest
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC
from rasterio.transform import Affine, from_origin
from rasters import PLACE, RGB, noise, read_all, write

from flair_jax.errors import UserError
from flair_jax.inference.raster_source import Source

FIVE = (*RGB, "nir", "height")


def test_a_mask_precedes_alpha_and_alpha_precedes_nodata(tmp_path):
    """As in GDAL; for one file and in a mosaic."""
    pixels = noise(4)
    pixels[:3, 2:6] = 0  # NoData
    pixels[3] = 255
    pixels[3, 8:12] = 0
    mask = np.full((20, 30), 255, np.uint8)
    mask[14:] = 0
    expected = {"mask": mask > 0, "alpha": pixels[3] > 0, "nodata": pixels[:3].any(0)}
    colours = ("red", "green", "blue", "alpha")
    for kind, valid in expected.items():
        path = write(
            tmp_path / f"{kind}.tif",
            pixels[:3] if kind == "nodata" else pixels,
            colours=colours[:3] if kind == "nodata" else colours,
            nodata=0,
            mask=mask if kind == "mask" else None,
        )
        image, found = read_all(Source([path], RGB))
        np.testing.assert_array_equal(found, valid)
        np.testing.assert_array_equal(image, np.where(valid, pixels[:3], 0))
    below = write(tmp_path / "below.tif", noise(3, seed=1))
    for kind, valid in expected.items():
        image, found = read_all(Source([below, str(tmp_path / f"{kind}.tif")], RGB))
        assert found.all()
        np.testing.assert_array_equal(image, np.where(valid, pixels[:3], noise(3, seed=1)))


def test_each_pixel_comes_from_one_input_for_all_bands(tmp_path):
    """Height 0 is a valid value, although 0 is NoData where all bands have it."""
    below, above = noise(5), noise(5, seed=1)
    above[4, 5:10] = 0
    above[:, 12:16] = 0
    paths = [
        write(tmp_path / f"{i}.tif", pixels, nodata=0) for i, pixels in enumerate((below, above))
    ]
    image, valid = read_all(Source(paths, FIVE))
    assert valid.all()
    np.testing.assert_array_equal(image, np.where(above.any(0), above, below))


def test_inputs_may_differ_in_nodata_and_order_of_bands(tmp_path):
    first, second = noise(3), noise(3, seed=1)
    first[:, :, :5], second[:, :, 25:] = 7, 9
    paths = [
        write(tmp_path / "a.tif", first, nodata=7),
        write(
            tmp_path / "b.tif", second[::-1], nodata=9, colours=("blue", "green", "red"),
            transform=PLACE @ Affine.translation(30, 0),
        ),
    ]  # fmt: skip
    source = Source(paths, RGB)
    image, valid = read_all(source)
    both = np.concatenate([first, second], 2)
    expected = np.ones((20, 60), bool)
    expected[:, :5] = expected[:, 55:] = False
    np.testing.assert_array_equal(valid, expected)
    np.testing.assert_array_equal(image, np.where(expected, both, 0))
    a, b = paths
    assert source.bands == (
        f"red 1, green 2, blue 3 (position) in {a}; "
        f"red 3, green 2, blue 1 (colour interpretation) in {b}"
    )
    assert source.validity == f"NoData 7 in {a}; NoData 9 in {b}"


@pytest.mark.parametrize("first", ["north", "south"])
def test_south_up_beside_north_up(tmp_path, first):
    pixels = noise(3, 20, 60)
    south_up = Affine(0.2, 0, PLACE.c + 30 * 0.2, 0, 0.2, PLACE.f - 20 * 0.2)
    paths = {
        "north": write(tmp_path / "north.tif", pixels[:, :, :30]),
        "south": write(tmp_path / "south.tif", pixels[:, ::-1, 30:], transform=south_up),
    }
    source = Source([paths[first], *(p for k, p in paths.items() if k != first)], RGB)
    image, valid = read_all(source)
    assert valid.all()
    np.testing.assert_array_equal(image, pixels if first == "north" else pixels[:, ::-1])
    bottom = Affine(0.2, 0, PLACE.c, 0, 0.2, PLACE.f - 20 * 0.2)
    expected = PLACE if first == "north" else bottom
    assert source.georeference.transform.almost_equals(expected, 1e-6)


def test_different_pixels_are_told_apart_in_the_message(tmp_path):
    first = write(tmp_path / "a.tif", noise(3, 8, 3000))
    other = write(
        tmp_path / "b.tif", noise(3, 8, 3000), transform=from_origin(PLACE.c, PLACE.f, 0.20001, 0.2)
    )
    with pytest.raises(UserError, match=r"\(0.20001 x 0.2 instead of 0.2 x 0.2\)"):
        Source([first, other], RGB)


def test_many_inputs_are_not_all_kept_open(tmp_path):
    paths = []
    for i in range(100):
        place = PLACE @ Affine.translation(i % 10 * 4, i // 10 * 4)
        pixels = np.full((3, 4, 4), i + 1, np.uint8)
        paths.append(write(tmp_path / f"{i}.tif", pixels, transform=place))
    before = len(os.listdir("/proc/self/fd"))
    image, _ = read_all(Source(paths, RGB))
    expected = np.arange(1, 101).reshape(10, 10).repeat(4, 0).repeat(4, 1)
    np.testing.assert_array_equal(image[0], expected)
    assert len(os.listdir("/proc/self/fd")) - before < 80


def test_places_far_apart_are_refused(tmp_path):
    paths = [
        write(tmp_path / "here.tif", noise(3)),
        write(tmp_path / "near.tif", noise(3), transform=PLACE @ Affine.translation(500, 0)),
        write(tmp_path / "far.tif", noise(3), transform=from_origin(400_000, 6_900_000, 0.2, 0.2)),
    ]
    message = (
        r"here.tif and .*far.tif lie too far apart .* 2,500,530 x 2,000,020 pixels, of which they "
        r"cover 4e-08 %. Run detect on each of these areas on its own"
    )
    with pytest.raises(UserError, match=message):
        Source(paths, RGB)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857"])
def test_both_sides_of_the_antimeridian(tmp_path, crs):
    end, size = (180, 2e-6) if crs == "EPSG:4326" else (20_037_508, 0.2)
    east = write(
        tmp_path / "e.tif", noise(3), crs=crs, transform=from_origin(-end, -16, size, size)
    )
    west = write(
        tmp_path / "w.tif",
        noise(3),
        crs=crs,
        transform=from_origin(end - 30 * size, -16, size, size),
    )
    message = (
        rf"w.tif lies west and .*e.tif east of the antimeridian, a full turn apart in {crs}: "
        r"(.|\n)*\n  gdalwarp -t_srs EPSG:32760 -r bilinear .*/e.tif warped.tif"
    )
    with pytest.raises(UserError, match=message):
        Source([west, east], RGB)


def test_an_extent_that_is_mostly_empty_is_reported_and_skipped(tmp_path, monkeypatch):
    paths = [
        write(tmp_path / "a.tif", noise(3)),
        write(tmp_path / "b.tif", noise(3), transform=PLACE @ Affine.translation(1000, 1000)),
    ]
    source = Source(paths, RGB)
    (note,) = source.notes()
    assert "the box around all inputs, which cover at most 0.11 % of it" in note
    inside, outside = np.arange(10), np.arange(100, 200)
    assert not source.is_empty(inside, inside)
    assert source.is_empty(inside, outside)
    assert source.is_empty(outside, outside)
    resampled = Source(paths, RGB, resolution=0.4)
    assert not resampled.is_empty(np.arange(505, 509), np.arange(505, 509))
    assert resampled.is_empty(np.arange(200, 300), np.arange(200, 300))


CORNERS = [(0, 0), (0, 30), (20, 0), (20, 30)]
RPCS = RPC(
    err_bias=0.0, err_rand=0.0, height_off=100.0, height_scale=500.0, lat_off=48.8, lat_scale=0.1,
    line_den_coeff=[1.0] + [0.0] * 19, line_num_coeff=[0.0, 0.0, -1.0] + [0.0] * 17, line_off=9.5,
    line_scale=10.0, long_off=2.3, long_scale=0.1, samp_den_coeff=[1.0] + [0.0] * 19,
    samp_num_coeff=[0.0, 1.0] + [0.0] * 18, samp_off=14.5, samp_scale=15.0,
)  # fmt: skip


def with_gcps(path, crs="EPSG:2154"):
    points = [GroundControlPoint(*c, *(PLACE @ c[::-1])) for c in CORNERS]
    return write(path, noise(3), crs=crs, transform=None, gcps=points)


def test_ground_control_points_are_known_and_scaled(tmp_path):
    source = Source([with_gcps(tmp_path / "in.tif")], RGB)
    assert source.georeference.description == "4 ground control points in EPSG:2154"
    assert source.pixel_size == pytest.approx((0.2, 0.2))
    resampled = Source([with_gcps(tmp_path / "in.tif")], RGB, resolution=0.4)
    assert (resampled.height, resampled.width) == (10, 15)
    assert resampled.pixel_size == pytest.approx((0.4, 0.4))
    points = [(p.row, p.col) for p in resampled.georeference.gcps]
    np.testing.assert_allclose(points, np.array(CORNERS) / 2)


def test_inputs_without_a_transform_cannot_be_mosaicked(tmp_path):
    first = write(tmp_path / "a.tif", noise(3))
    gcps = with_gcps(tmp_path / "it's.tif")
    for paths in ([first, gcps], [gcps, first]):
        with pytest.raises(
            UserError,
            match=r"4 ground control points .*\n  gdalwarp -r bilinear '.*it'\"'\"'s.tif'",
        ):
            Source(paths, RGB)
    rpcs = write(tmp_path / "rpc.tif", noise(3), crs=None, transform=None, rpcs=RPCS)
    with pytest.raises(
        UserError, match=r"has RPCs instead .*\n  gdalwarp -rpc -t_srs EPSG:CODE -r"
    ):
        Source([rpcs, first], RGB)


def test_rpcs_are_scaled(tmp_path):
    path = write(tmp_path / "rpc.tif", noise(3), crs=None, transform=None, rpcs=RPCS)
    source = Source([path], RGB)
    assert source.georeference.description == "RPCs"
    assert source.pixel_size is None
    scaled = source.georeference.resampled(2.0, 4.0).rpcs
    # Pixel centres: 14.5 is the middle of 30 columns, and 7 that of 15.
    assert (scaled.samp_off, scaled.samp_scale) == (7.0, 7.5)
    assert (scaled.line_off, scaled.line_scale) == (2.0, 2.5)
    assert scaled.lat_off == RPCS.lat_off
