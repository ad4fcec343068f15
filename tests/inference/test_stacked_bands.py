"""Bands from other files: alignment to the input, heights in metres, and what is refused."""

import detecting
import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine, from_origin
from rasterio.warp import transform as transform_points
from rasters import PLACE, RGB, RGBN, noise, read_all, write

from flair_jax.errors import UserError
from flair_jax.inference import resampling
from flair_jax.inference.band_files import BandFile, band_files
from flair_jax.inference.band_selection import Scaling
from flair_jax.inference.raster_source import Source
from tfds_builder.hub.patches import height_steps

HEIGHTS = (*RGB, "height")


def source(tmp_path, wanted, *, image=None, scaling=None, resolution=0.0, in_steps=True, **files):
    """A source whose image is 20 x 30 of noise in red, green and blue."""
    path = image or write(tmp_path / "image.tif", noise(3))
    found = band_files(wanted, **files)
    return Source(
        [str(path)], wanted, files=found, scaling=scaling or Scaling(), resolution=resolution,
        in_steps=in_steps,
    )  # fmt: skip


def metres(height=20, width=30, seed=1, highest=60.0):
    return np.random.default_rng(seed).uniform(0, highest, (1, height, width)).astype(np.float32)


def test_a_band_of_the_same_grid_is_taken_as_it_is(tmp_path):
    infrared = noise(3, seed=5)
    path = write(tmp_path / "cir.tif", infrared, photometric="rgb")
    found = source(tmp_path, RGBN, nir=f"{path}:2")
    image, valid = read_all(found)
    np.testing.assert_array_equal(image[:3], noise(3))
    np.testing.assert_array_equal(image[3], infrared[1])
    assert valid.all()
    assert found.bands == (f"red 1, green 2, blue 3 (position); nir from band 2 of {path}, uint8")
    assert [n for n in found.notes() if "cir" in n] == []
    assert path in found.files


def test_bands_keep_the_order_of_the_model(tmp_path):
    first, second = noise(1, seed=5), noise(1, seed=6)
    found = source(
        tmp_path, ("nir", "red", "swir", "green", "blue"),
        stack={"swir": write(tmp_path / "s.tif", second)}, nir=write(tmp_path / "n.tif", first),
    )  # fmt: skip
    image, _ = read_all(found)
    np.testing.assert_array_equal(image, [*first, noise(3)[0], *second, *noise(3)[1:]])


@pytest.mark.parametrize(("size", "pixel"), [((10, 15), 0.4), ((40, 60), 0.1), ((8, 12), 0.5)])
def test_resampling_is_that_of_the_option_resolution(tmp_path, size, pixel):
    """GDAL's warper against the project's own: the values of both, and where data is missing."""
    values = noise(1, *size, seed=2)
    values[0, 2:5, 3:8] = 0
    known = values[0] > 0
    path = write(
        tmp_path / "n.tif", values, nodata=0,
        transform=from_origin(900_000, 6_500_000, pixel, pixel),
    )  # fmt: skip
    image, valid = read_all(source(tmp_path, RGBN, nir=path))

    def read(top, left, height, width):
        part = np.s_[top : top + height, left : left + width]
        return values[0][part][..., None], known[part]

    factor = 0.2 / pixel
    axes = resampling.Axis(size[0], factor), resampling.Axis(size[1], factor)
    expected, ok = resampling.read_resampled(read, *axes, 0, 0, 20, 30)
    assert (valid == ok).mean() > 0.97  # GDAL decides ties, and partly valid pixels, otherwise
    both = valid & ok
    difference = np.abs(image[3].astype(int) - expected[..., 0])[both]
    assert (difference <= 1).mean() > 0.9
    assert (difference <= 1)[_interior(both)[both]].all()


def _interior(valid):
    """Pixels with none that is not valid within three pixels."""
    padded = np.pad(valid, 3, constant_values=True)
    views = np.lib.stride_tricks.sliding_window_view(padded, (7, 7))
    return views.all((2, 3))


def test_another_coordinate_system_and_extent(tmp_path):
    """The file holds a function of its coordinates, by which each pixel is known."""
    place = from_origin(900_000, 6_500_000, 10, 10)
    path = write(tmp_path / "image.tif", noise(3), transform=place)
    x, y = transform_points("EPSG:2154", "EPSG:32631", [900_150], [6_499_900])
    transform = from_origin(x[0] - 400, y[0] + 300, 5, 5)
    columns, rows = np.meshgrid(np.arange(200) + 0.5, np.arange(120) + 0.5)
    east, north = transform @ (columns, rows)
    ramp = (30 + 0.02 * (east - x[0]) + 0.03 * (north - y[0])).astype(np.float32)
    path_h = write(tmp_path / "h.tif", ramp[None], crs="EPSG:32631", transform=transform)
    found = source(tmp_path, HEIGHTS, image=path, height=path_h)
    image, valid = read_all(found)
    columns, rows = np.meshgrid(np.arange(30) + 0.5, np.arange(20) + 0.5)
    lambert = place @ (columns.ravel(), rows.ravel())
    east, north = np.array(transform_points("EPSG:2154", "EPSG:32631", *lambert))
    expected = (30 + 0.02 * (east - x[0]) + 0.03 * (north - y[0])).reshape(20, 30)
    assert valid.all()
    np.testing.assert_allclose(image[3], 5 * expected, atol=0.55)
    assert (
        f"{path_h}: pixels of 5 m in EPSG:32631 are resampled to those of the input"
        in found.notes()
    )


def test_windows_are_parts_of_the_whole(tmp_path):
    path = write(
        tmp_path / "h.tif", metres(50, 50), transform=from_origin(899_999, 6_500_001, 0.3, 0.3)
    )
    found = source(tmp_path, HEIGHTS, height=path)
    image, valid = read_all(found)
    for rows, columns in ((slice(3, 9), slice(7, 30)), (slice(0, 1), slice(0, 1))):
        part, known = found.read(np.arange(30)[rows], np.arange(30)[columns])
        np.testing.assert_array_equal(np.moveaxis(part, -1, 0), image[:, rows, columns])
        np.testing.assert_array_equal(known, valid[rows, columns])


def test_partial_cover_is_reported_and_no_data(tmp_path):
    right = PLACE @ Affine.translation(12, 0)
    path = write(tmp_path / "n.tif", noise(1), transform=right)
    found = source(tmp_path, RGBN, nir=path)
    image, valid = read_all(found)
    np.testing.assert_array_equal(valid, np.broadcast_to(np.arange(30) >= 12, (20, 30)))
    np.testing.assert_array_equal(image[3, :, 12:], noise(1)[0, :, :18])
    np.testing.assert_array_equal(image[:, :, :12], 0)
    share = next(note for note in found.notes() if "covers" in note)
    assert share == (
        f"{path} covers 59.4% of {tmp_path / 'image.tif'}: the rest of the map will be NoData"
    )
    assert not found.is_empty(np.arange(3), np.arange(3))  # the image has data there
    assert found.read(np.arange(3), np.arange(3))[0] is None


def test_a_file_much_smaller_than_the_raster_overlaps(tmp_path):
    image = write(tmp_path / "image.tif", noise(3, 300, 300))
    tiny = PLACE @ Affine.translation(101, 77)
    path = write(tmp_path / "n.tif", noise(1, 2, 2), transform=tiny)
    found = source(tmp_path, RGBN, image=image, nir=path)
    assert np.argwhere(read_all(found)[1]).tolist() == [[77, 101], [77, 102], [78, 101], [78, 102]]
    assert any("covers less than 0.1 % of" in note for note in found.notes())


@pytest.mark.parametrize("kind", ["nodata", "mask", "alpha", "nan", "all but alpha"])
def test_pixels_without_data_in_the_file_have_none_in_the_map(tmp_path, kind):
    values, known = noise(1, seed=4), np.ones((20, 30), bool)
    known[4:9, 5:20] = False
    more = {}
    if kind == "nodata":
        values[0][~known], more = 7, {"nodata": 7}
        known = values[0] != 7
    elif kind == "mask":
        more = {"mask": known}
    elif kind == "alpha":
        values = np.concatenate([values, np.where(known, 255, 0).astype(np.uint8)[None]])
        more = {"colours": ("gray", "alpha")}
    elif kind == "nan":
        values = values.astype(np.float32)
        values[0][~known] = np.nan
    else:  # near infrared in the fourth band, which GDAL tags alpha
        values, known = noise(4, seed=4), np.ones((20, 30), bool)
        values[3, 0, 0] = 0
        more = {"photometric": None}
    number = 4 if kind == "all but alpha" else 1
    path = write(tmp_path / "n.tif", values, **more)
    scaling = Scaling(by_user=(*[(0.0, 255.0)] * 4,))
    image, valid = read_all(source(tmp_path, RGBN, nir=f"{path}:{number}", scaling=scaling))
    np.testing.assert_array_equal(valid, known)
    np.testing.assert_array_equal(image[3], np.where(known, values[number - 1], 0))
    np.testing.assert_array_equal(image[:3], np.where(known, noise(3), 0))


def test_with_a_resolution_and_a_mosaic(tmp_path):
    """Both halves of the image, at 0.4 m; the band is as of the whole at 0.4 m."""
    infrared = noise(1, 20, 60, seed=8)
    both = noise(3, 20, 60)
    paths = [
        write(tmp_path / "a.tif", both[:, :, :30]),
        write(tmp_path / "b.tif", both[:, :, 30:], transform=PLACE @ Affine.translation(30, 0)),
    ]
    one = write(tmp_path / "one.tif", np.concatenate([both, infrared]))
    path = write(tmp_path / "n.tif", infrared)
    files = {"nir": (BandFile("--nir", path, 1),)}
    image, valid = read_all(Source(paths, RGBN, resolution=0.4, files=files))
    expected, _ = read_all(Source([one], RGBN, resolution=0.4))
    assert image.shape == (4, 10, 30)
    assert valid.all()
    np.testing.assert_array_equal(image[:3], expected[:3])
    assert np.abs(image[3].astype(int) - expected[3]).max() <= 1


# Heights.


def test_metres_become_steps(tmp_path):
    heights = metres()
    heights[0, :2, :3] = [[-3, 0, 0.09], [0.1, 51, 300]]
    path = write(tmp_path / "h.tif", heights)
    found = source(tmp_path, HEIGHTS, height=path)
    image, valid = read_all(found)
    assert valid.all()
    assert image[3, :2, :3].tolist() == [[0, 0, 0], [1, 255, 255]]
    np.testing.assert_array_equal(image[3], height_steps(heights[0], np.zeros((20, 30))))
    assert found.bands.endswith(
        f"height from band 1 of {path}, float32 metres x 5: steps of 0.2 m, at most 51 m"
    )


@settings(max_examples=200, deadline=None)
@given(st.floats(-2000, 2000, width=32))
def test_the_stretch_of_metres_is_that_of_the_builder(value):
    from tfds_builder.bands import stretched

    height = np.full((1, 1, 1), value, np.float32)
    found = stretched(height, ((0.0, 51.0),), np.ones((1, 1), bool))
    assert found[0, 0, 0] == height_steps(height[0], np.zeros((1, 1)))[0, 0]


def test_surface_less_terrain(tmp_path):
    """On grids of their own: a plane that slopes is met at every pixel."""
    rows = np.arange(20)[:, None] + np.zeros((1, 30))
    surface = (300 + rows * 0.2 + metres()[0] / 2).astype(np.float32)
    coarse = np.arange(12)[:, None] + np.zeros((1, 18))
    terrain = (300 + ((coarse - 1) * 2 + 0.5) * 0.2).astype(np.float32)
    place = PLACE @ Affine.translation(-2, -2) @ Affine.scale(2)
    found = source(
        tmp_path, HEIGHTS, surface=write(tmp_path / "dsm.tif", surface[None]),
        terrain=write(tmp_path / "dtm.tif", np.stack([terrain, terrain + 9]), transform=place)
        + ":1",
    )  # fmt: skip
    image, valid = read_all(found)
    assert valid.all()
    assert np.abs(image[3] - 5 * (surface - 300 - rows * 0.2)).max() < 0.51
    assert (
        f"height from band 1 of {tmp_path / 'dsm.tif'} less band 1 of {tmp_path / 'dtm.tif'}, "
        "float32 metres x 5"
    ) in found.bands


def test_bytes_are_in_the_models_steps_already(tmp_path):
    path = write(tmp_path / "h.tif", noise(1, seed=3))
    for scaling in (Scaling(), Scaling(by_user=((0, 128),))):  # which is for the image
        found = source(tmp_path, HEIGHTS, height=path, scaling=scaling)
        np.testing.assert_array_equal(read_all(found)[0][3], noise(1, seed=3)[0])
        assert found.bands.endswith("uint8, taken as 1 for 0.2 m")


def test_ranges_for_each_band_hold_for_heights_too(tmp_path):
    path = write(tmp_path / "h.tif", metres())
    ranges = (*[(0.0, 255.0)] * 3, (10.0, 20.0))
    expected = np.rint(np.clip(25.5 * (metres()[0].astype(float) - 10), 0, 255))
    found = source(tmp_path, HEIGHTS, height=path, scaling=Scaling(by_user=ranges))
    np.testing.assert_array_equal(read_all(found)[0][3], expected)
    ground = write(tmp_path / "g.tif", np.full((1, 20, 30), 5, np.float32))
    found = source(
        tmp_path, HEIGHTS, surface=write(tmp_path / "s.tif", metres() + 5), terrain=ground,
        scaling=Scaling(by_user=ranges),
    )  # fmt: skip
    assert np.abs(read_all(found)[0][3] - expected).max() <= 1
    assert "float32 stretched from 10..20" in found.bands


def test_the_models_own_stretch_of_heights(tmp_path):
    """Of a model that was trained on heights of floats, stretched."""
    path = write(tmp_path / "h.tif", metres())
    scaling = Scaling(of_model=((0.0, 30.0),) * 4, trained_on=("float32",))
    found = source(
        tmp_path, HEIGHTS, height=path, scaling=scaling, in_steps=False,
        image=write(tmp_path / "i.tif", noise(3).astype(np.float32)),
    )  # fmt: skip
    expected = np.rint(np.clip(8.5 * metres()[0].astype(float), 0, 255))
    np.testing.assert_array_equal(read_all(found)[0][3], expected)
    with pytest.raises(UserError, match="the unit of this model's heights is not known"):
        source(tmp_path, HEIGHTS, height=path, in_steps=False)


def test_the_band_of_a_file_is_stretched_by_its_type(tmp_path):
    deep = np.random.default_rng(0).integers(0, 4000, (1, 20, 30)).astype(np.uint16)
    path = write(tmp_path / "n.tif", deep)
    with pytest.raises(UserError, match=f"{path} has pixels of uint16, and the model was trained"):
        source(tmp_path, RGBN, nir=path)
    ranges = (*[(0.0, 255.0)] * 3, (100.0, 3000.0))
    image, _ = read_all(source(tmp_path, RGBN, nir=path, scaling=Scaling(by_user=ranges)))
    np.testing.assert_array_equal(image[:3], noise(3))
    expected = np.rint(np.clip(255 * (deep[0].astype(float) - 100) / 2900, 0, 255))
    np.testing.assert_array_equal(image[3], expected)


def test_doubtful_heights(tmp_path):
    path = write(tmp_path / "h.tif", metres() + 200)
    found = source(tmp_path, HEIGHTS, height=path)
    assert any(
        note.startswith(f"warning: the median of the heights in {path} is 2")
        and note.endswith("if they are altitudes, give --surface and --terrain instead")
        for note in found.notes()
    )
    low = write(tmp_path / "low.tif", metres())
    with pytest.raises(UserError, match=r"--surface=.* is below --terrain=.*: are the two exchang"):
        source(tmp_path, HEIGHTS, surface=low, terrain=path)
    heights = metres()
    heights[0, 3, 4] = -9999
    path = write(tmp_path / "missing.tif", heights)
    with pytest.raises(UserError, match=r"holds -9999, which is no height .*\n.* -a_nodata -9999"):
        source(tmp_path, HEIGHTS, height=path)
    path = write(tmp_path / "declared.tif", heights, nodata=-9999)
    _, valid = read_all(source(tmp_path, HEIGHTS, height=path))
    assert np.argwhere(~valid).tolist() == [[3, 4]]
    with rasterio.open(path, "r+") as raster:
        raster.scales = (0.1,)
    with pytest.raises(UserError, match=r"holds values to be scaled by 0\.1 and shifted by 0"):
        source(tmp_path, HEIGHTS, height=path)
    with rasterio.open(path, "r+") as raster:
        raster.scales, raster.units = (1,), ("ft",)
    with pytest.raises(UserError, match="holds heights in ft: expected metres"):
        source(tmp_path, HEIGHTS, height=path)


@pytest.mark.parametrize("dtype", ["int16", "uint16"])
def test_heights_of_integers_have_no_known_unit(tmp_path, dtype):
    path = write(tmp_path / "h.tif", metres().astype(dtype))
    with pytest.raises(UserError, match=f"has pixels of {dtype}"):
        source(tmp_path, HEIGHTS, height=path)
    with pytest.raises(UserError, match=r"hold float32 and .*int16: expected metres as float32"):
        source(tmp_path, HEIGHTS, surface=write(tmp_path / "s.tif", metres()), terrain=path)


# Georeferencing.


def test_without_georeference_the_size_must_be_the_same(tmp_path):
    path = write(tmp_path / "n.tif", noise(1, seed=3), transform=Affine.identity(), crs=None)
    found = source(tmp_path, RGBN, nir=path)
    image, valid = read_all(found)
    np.testing.assert_array_equal(image[3], noise(1, seed=3)[0])
    assert valid.all()
    assert (
        f"{path}: its pixels are taken as those of {tmp_path / 'image.tif'}, which has the same "
        f"size, as {path} is not georeferenced"
    ) in found.notes()
    # At another resolution, too.
    image, _ = read_all(source(tmp_path, RGBN, nir=path, resolution=0.4))
    placed = write(tmp_path / "placed.tif", noise(1, seed=3))
    expected, _ = read_all(source(tmp_path, RGBN, nir=placed, resolution=0.4))
    np.testing.assert_array_equal(image, expected)
    other = write(tmp_path / "o.tif", noise(1, 20, 31), transform=Affine.identity(), crs=None)
    with pytest.raises(
        UserError, match=r"not georeferenced, and .* has 31 x 20 pixels, .* 30 x 20"
    ):
        source(tmp_path, RGBN, nir=other)
    # Neither is.
    image = write(tmp_path / "i.tif", noise(3), transform=Affine.identity(), crs=None)
    pixels, _ = read_all(source(tmp_path, RGBN, image=image, nir=path))
    np.testing.assert_array_equal(pixels[3], noise(1, seed=3)[0])


def test_coordinates_without_a_system_are_those_of_the_input(tmp_path):
    path = write(tmp_path / "n.tif", noise(1, seed=3), crs=None)
    found = source(tmp_path, RGBN, nir=path)
    np.testing.assert_array_equal(read_all(found)[0][3], noise(1, seed=3)[0])
    assert (
        f"warning: {path} has coordinates without a coordinate system: they are taken as EPSG:2154"
    ) in found.notes()


@pytest.mark.parametrize("image_place", ["north", "south", "rotated"])
@pytest.mark.parametrize("file_place", ["north", "south"])
def test_orientations(tmp_path, image_place, file_place):
    """The file has a value for each metre of the ground."""
    places = {
        "north": from_origin(900_000, 6_500_000, 1, 1),
        "south": Affine(1, 0, 900_000, 0, 1, 6_499_980),
        "rotated": from_origin(900_005, 6_499_995, 0.3, 0.3) @ Affine.rotation(20),
    }
    place = places[file_place]
    columns, rows = np.meshgrid(np.arange(30) + 0.5, np.arange(20) + 0.5)
    x, y = place @ (columns, rows)
    values = np.rint(5 * (x - 900_000) + 3 * (6_500_000 - y)).astype(np.uint8)
    path = write(tmp_path / "n.tif", values[None], transform=place)
    image = write(tmp_path / "image.tif", noise(3), transform=places[image_place])
    pixels, valid = read_all(source(tmp_path, RGBN, image=image, nir=path))
    x, y = places[image_place] @ (columns, rows)
    inside = (x > 900_001) & (x < 900_029) & (y < 6_499_999) & (y > 6_499_981)
    assert valid[inside].all()
    expected = 5 * (x - 900_000) + 3 * (6_500_000 - y)
    np.testing.assert_allclose(pixels[3][inside], expected[inside], atol=1.1)


def test_files_that_do_not_lie_there(tmp_path):
    far = write(tmp_path / "far.tif", noise(1), transform=PLACE @ Affine.translation(30, 0))
    with pytest.raises(UserError, match=r"far.tif \(--nir\) does not overlap with .*image.tif: 9"):
        source(tmp_path, RGBN, nir=far)
    points = [
        rasterio.control.GroundControlPoint(r, c, 900_000 + c, 6_500_000 - r)
        for r, c in ((0, 0), (0, 30), (20, 0))
    ]
    path = tmp_path / "gcps.tif"
    write(path, noise(1), transform=Affine.identity(), crs=None)
    with rasterio.open(path, "r+") as raster:
        raster.gcps = points, rasterio.crs.CRS.from_epsg(2154)
    with pytest.raises(UserError, match=r"3 ground control points in EPSG:2154 instead of a geotr"):
        source(tmp_path, RGBN, nir=path)
    found = write(tmp_path / "found.tif", noise(1))
    image = write(tmp_path / "image.tif", noise(3), transform=Affine.identity(), crs=None)
    with rasterio.open(image, "r+") as raster:
        raster.gcps = points, rasterio.crs.CRS.from_epsg(2154)
    with pytest.raises(
        UserError, match=r"found.tif \(--nir\) cannot be aligned to .*, which has 3 gr"
    ):
        source(tmp_path, RGBN, image=image, nir=found)
    engineering = 'LOCAL_CS["site",UNIT["metre",1]]'
    path = write(tmp_path / "site.tif", noise(1), crs=engineering)
    with pytest.raises(UserError, match=r"GDAL cannot transform between them: "):
        source(tmp_path, RGBN, nir=path)


def test_a_damaged_file_is_reported_by_the_pixels_of_the_input(tmp_path):
    path = tmp_path / "n.tif"
    write(path, noise(1, 200, 300))
    path.write_bytes(path.read_bytes()[:20_000])
    image = write(tmp_path / "image.tif", noise(3, 200, 300))
    found = source(tmp_path, RGBN, image=image, nir=path)
    message = rf"n.tif cannot be read at columns 0 to 29, rows 90 to 199 of {tmp_path}/image.tif: "
    with pytest.raises(UserError, match=message):
        found.read(np.arange(90, 200), np.arange(30))


# Wrong uses.


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"nir": "no.tif"}, r"there is no file no.tif \(--nir\)"),
        ({"nir": "no*.tif:1"}, r"there is no file no\*.tif \(--nir\): one file is expected"),
        ({"nir": "{one}:2"}, r"--nir names band 2, which does not exist: .*one.tif has 1 \("),
        ({"nir": "{one}:0"}, r"--nir=.*one.tif:0: bands are numbered from 1"),
        ({"nir": "{three}"}, r"which band is nir is not clear: .*Give its number, such as "
         r"--nir=.*three.tif:1 \(in false-colour composites"),
        ({"nir": "{text}"}, r"text.tif cannot be opened as a raster \(--nir\)"),
        ({"nir": "{folder}"}, r"is a folder, not a raster \(--nir\)"),
        ({"nir": "{palette}"}, "has a colour table"),
        ({"height": "{one}", "stack": {"height": "{one}"}},
         "height is given twice, by --stack height and by --height"),
        ({"stack": {"nir": "{one}", "infrared": "{one}"}},
         "nir is given twice, by --stack nir and by --stack infrared"),
        ({"stack": {"swir": "{one}"}},
         "--stack swir gives swir, and the model takes red, green, blue, nir, height: leave it"),
        ({"surface": "{one}"}, "--surface needs --terrain"),
        ({"terrain": "{one}"}, "--terrain needs --surface"),
        ({"surface": "{one}", "terrain": "{one}", "height": "{one}"}, "height is given twice"),
        ({"stack": dict.fromkeys(["red", "green", "blue", "nir", "height"], "{one}")},
         "all bands of the model .* give at least one of them as --input"),
        ({"stack": {"nir": ""}}, "--stack nir needs a file"),
    ],
)  # fmt: skip
def test_wrong_files(tmp_path, files, message):
    names = {name: tmp_path / f"{name}.tif" for name in ("one", "three", "text", "palette")}
    write(names["one"], noise(1))
    write(names["three"], noise(3), photometric="rgb")
    names["text"].write_text("no raster")
    write(names["palette"], noise(1), colours=("palette",))
    (tmp_path / "folder").mkdir()
    names["folder"] = tmp_path / "folder"

    def filled(value):
        if isinstance(value, dict):
            return {key: filled(text) for key, text in value.items()}
        return value.format(**names)

    with pytest.raises(UserError, match=message):
        source(tmp_path, RGBN if list(files) == ["nir"] else (*RGBN, "height"), **filled(files))


def test_names_that_look_like_a_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "odd.tif:2", noise(1, seed=3))
    assert BandFile.parse("--nir", path) == BandFile("--nir", path, 0)
    assert BandFile.parse("--nir", f"{path}:1") == BandFile("--nir", path, 1)
    url = "https://example.org/a.tif"
    assert BandFile.parse("--nir", f"{url}:3") == BandFile("--nir", url, 3)
    image, _ = read_all(source(tmp_path, RGBN, nir=path))
    np.testing.assert_array_equal(image[3], noise(1, seed=3)[0])


def test_a_band_with_a_description_is_found(tmp_path):
    values = noise(3, seed=3)
    path = write(tmp_path / "n.tif", values, descriptions=("red", "Near infrared", "green"))
    np.testing.assert_array_equal(read_all(source(tmp_path, RGBN, nir=path))[0][3], values[1])


# Maps.


def test_the_map_is_that_of_one_raster_of_all_bands(tmp_path, model):
    pixels = detecting.patches(70, 90)
    detecting.write(tmp_path / "all.tif", pixels)
    detecting.write(tmp_path / "rgb.tif", pixels[:3])
    detecting.write(tmp_path / "cir.tif", pixels[[3, 0, 1]])
    detecting.write(tmp_path / "h.tif", pixels[4:] / np.float32(5))
    files = {"nir": tmp_path / "cir.tif", "height": f"{tmp_path / 'h.tif'}"}
    with pytest.raises(UserError, match="which band is nir is not clear"):
        detecting.detect(model, tmp_path / "rgb.tif", tmp_path / "b.tif", **files)
    files["nir"] = f"{tmp_path / 'cir.tif'}:1"
    detecting.detect(model, tmp_path / "all.tif", tmp_path / "a.tif")
    detecting.detect(model, tmp_path / "rgb.tif", tmp_path / "b.tif", **files)
    expected = detecting.read(tmp_path / "a.tif")
    np.testing.assert_array_equal(detecting.read(tmp_path / "b.tif"), expected)
    with rasterio.open(tmp_path / "b.tif") as raster:
        tags = raster.tags()
    assert "nir from band 1 of" in tags["INPUT_BANDS"]
    assert "float32 metres x 5: steps of 0.2 m" in tags["INPUT_BANDS"]
    # Everything that the result depends on is in the settings.
    again = {"resume": True, **files}
    detecting.detect(model, tmp_path / "rgb.tif", tmp_path / "b.tif", **again)
    for changed in ({"nir": f"{tmp_path / 'cir.tif'}:2"}, {"height": f"{tmp_path / 'all.tif'}:5"}):
        with pytest.raises(UserError, match="but not from an interrupted detection with these set"):
            detecting.detect(
                model, tmp_path / "rgb.tif", tmp_path / "b.tif", **{**again, **changed}
            )
    detecting.write(tmp_path / "h.tif", pixels[4:] / np.float32(4))
    with pytest.raises(UserError, match="but not from an interrupted detection with these set"):
        detecting.detect(model, tmp_path / "rgb.tif", tmp_path / "b.tif", **again)
    # An output must not replace one of them.
    with pytest.raises(UserError, match=r"would replace the input .*cir.tif"):
        detecting.detect(model, tmp_path / "rgb.tif", tmp_path / "cir.tif", overwrite=True, **files)
