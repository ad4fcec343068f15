"""Opening, checking, mosaicking and reading of input rasters."""

import re

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.enums import Resampling
from rasterio.transform import Affine, from_origin
from rasterio.vrt import WarpedVRT
from rasters import PLACE, RGB, noise, read_all, write

from flair_jax.errors import UserError
from flair_jax.inference import resampling
from flair_jax.inference.input_files import UnreadableError
from flair_jax.inference.raster_source import Source


def test_bands_by_number_and_by_description(tmp_path):
    pixels = noise(4)
    plain = write(tmp_path / "plain.tif", pixels)
    chosen, valid = read_all(Source([plain], RGB, bands=(4, 1, 2)))
    np.testing.assert_array_equal(chosen, pixels[[3, 0, 1]])
    assert valid.all()
    described = write(tmp_path / "named.tif", pixels, descriptions=["Blue", "nir", "green", "Red"])
    np.testing.assert_array_equal(read_all(Source([described], RGB))[0], pixels[[3, 2, 0]])


def test_a_wrong_number_of_bands_names_both_lists(tmp_path):
    path = write(tmp_path / "four.tif", noise(4))
    with pytest.raises(
        UserError,
        match=r"model takes 3 bands \(red, green, blue\).* has 1 \(gray\), 2 .*--bands=1,2,3",
    ):
        Source([path], RGB)
    with pytest.raises(UserError, match="--bands=1,2 names 2 bands"):
        Source([path], RGB, bands=(1, 2))
    with pytest.raises(UserError, match="--bands names band 5, which does not exist"):
        Source([path], RGB, bands=(1, 2, 5))


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_other_pixels_than_bytes_are_refused_with_the_remedy(tmp_path, dtype):
    path = write(tmp_path / "deep.tif", noise(3).astype(dtype))
    with pytest.raises(UserError, match=rf"pixels of {dtype}, and .* uint8: .* --stretch=MIN,MAX"):
        Source([path], RGB)


def test_an_alpha_band_is_a_mask_unless_requested(tmp_path):
    pixels = noise(4)
    pixels[3] = 255
    pixels[3, :5] = 0
    path = write(tmp_path / "rgba.tif", pixels, photometric="rgb", alpha="yes")
    image, valid = read_all(Source([path], RGB))
    np.testing.assert_array_equal(valid, pixels[3] > 0)
    np.testing.assert_array_equal(image, np.where(valid, pixels[:3], 0))
    image, valid = read_all(Source([path], (*RGB, "nir"), bands=(1, 2, 3, 4)))
    np.testing.assert_array_equal(image, pixels)
    assert valid.all()
    with pytest.raises(UserError, match=r"4 bands .* has .*4 \(alpha\)"):
        Source([path], (*RGB, "nir"))


def test_a_pixel_is_nodata_if_all_bands_have_the_value(tmp_path):
    pixels = noise(3)
    pixels[:, 3:6, 3:6] = 7
    pixels[0, 10] = 7
    path = write(tmp_path / "holes.tif", pixels, nodata=7)
    image, valid = read_all(Source([path], RGB))
    expected = (pixels != 7).any(0)
    assert (~expected).sum() == 9
    np.testing.assert_array_equal(valid, expected)
    np.testing.assert_array_equal(image, np.where(expected, pixels, 0))
    assert image_of_hole(path) is None


def image_of_hole(path):
    return Source([path], RGB).read(np.arange(3, 6), np.arange(3, 6))[0]


def test_an_internal_mask_is_used(tmp_path):
    pixels = noise(3)
    mask = np.full((20, 30), 255, np.uint8)
    mask[5:9, 20:] = 0
    path = write(tmp_path / "masked.tif", pixels, mask=mask)
    image, valid = read_all(Source([path], RGB))
    np.testing.assert_array_equal(valid, mask > 0)
    np.testing.assert_array_equal(image, np.where(valid, pixels, 0))


@pytest.mark.parametrize("kind", ["", "nodata", "mask"])
def test_touching_rasters_are_one(tmp_path, kind):
    pixels = noise(3, 40, 50)
    valid = np.ones((40, 50), bool)
    if kind:
        valid[10:30, 15:35] = False
        pixels[:, ~valid] = 0
    mask = np.where(valid, 255, 0).astype(np.uint8)
    paths = []
    for top, left in ((20, 25), (0, 0), (0, 25)):  # one corner is missing
        part = np.s_[top : top + 20, left : left + 25]
        path = tmp_path / f"{top}_{left}.tif"
        paths.append(
            write(
                path, pixels[:, *part], transform=PLACE @ Affine.translation(left, top),
                nodata=0 if kind == "nodata" else None, mask=mask[part] if kind == "mask" else None,
            )
        )  # fmt: skip
    source = Source(paths, RGB, bands=(3, 2, 1))
    assert (source.height, source.width) == (40, 50)
    assert source.georeference.transform.almost_equals(PLACE)
    assert source.georeference.crs.to_epsg() == 2154
    valid[20:, :25] = False
    image, found = read_all(source)
    np.testing.assert_array_equal(found, valid)
    np.testing.assert_array_equal(image, np.where(valid, pixels[::-1], 0))


def test_where_rasters_overlap_the_last_valid_pixel_is_used(tmp_path):
    below, above = noise(3), noise(3, seed=1)
    mask = np.full((20, 30), 255, np.uint8)
    mask[:10] = 0
    paths = [write(tmp_path / "below.tif", below), write(tmp_path / "above.tif", above, mask=mask)]
    image, valid = read_all(Source(paths, RGB))
    assert valid.all()
    np.testing.assert_array_equal(image, np.where(mask > 0, above, below))


def test_rasters_that_do_not_fit_together_are_named(tmp_path):
    first = write(tmp_path / "first.tif", noise(3))
    moved = PLACE @ Affine.translation(30, 0)
    for name, profile, message in (
        ("crs", {"crs": "EPSG:32631"}, "is in EPSG:32631, .*first.tif in EPSG:2154"),
        ("size", {"transform": moved @ Affine.scale(2)}, "has another pixel size .*0.4 x 0.4"),
        ("turned", {"transform": moved @ Affine.rotation(3)}, "has another pixel size"),
        ("grid", {"transform": PLACE @ Affine.translation(30.5, 0)}, "but 0.50 pixels off"),
    ):
        other = write(tmp_path / f"{name}.tif", noise(3), **profile)
        with pytest.raises(UserError, match=rf"{name}\.tif (.|\n)*{message}|{name}.*{message}"):
            Source([first, other], RGB)
    other = write(tmp_path / "bands.tif", noise(2), transform=moved)
    with pytest.raises(UserError, match=r"bands\.tif"):
        Source([first, other], RGB)
    nowhere = write(tmp_path / "nowhere.tif", noise(3), transform=Affine.identity(), crs=None)
    for paths in ([nowhere, first], [first, nowhere]):
        with pytest.raises(UserError, match=r"nowhere\.tif is not georeferenced"):
            Source(paths, RGB)


def test_resampling_to_metres(tmp_path):
    values = np.zeros((3, 20, 30), np.uint8)
    values[:] = np.arange(20)[None, :, None] * 4 + np.arange(30) * 4
    values[:, :, 25:] = 255
    path = write(tmp_path / "half.tif", values, transform=from_origin(0, 0, 0.4, 0.4), nodata=255)
    source = Source([path], RGB, resolution=0.2)
    assert (source.height, source.width) == (40, 60)
    assert source.pixel_size == pytest.approx((0.2, 0.2))
    assert source.notes() == []
    image, valid = read_all(source)
    assert valid[:, :50].all()
    assert not valid[:, 51:].any()
    # A bilinear kernel keeps a slope of 4 digital numbers a pixel: 2 a pixel of half the size.
    slope = np.add.outer(2 * np.arange(40), 2 * np.arange(60)) - 2.0
    np.testing.assert_allclose(image[0, 2:-2, 2:48], slope[2:-2, 2:48], atol=1)


@pytest.mark.parametrize("kind", ["mask", "alpha", "unknown", "feet"])
def test_resampling_keeps_masks_and_knows_units(tmp_path, kind):
    pixels = noise(4 if kind == "alpha" else 3)
    mask = np.full((20, 30), 255, np.uint8)
    mask[:, :10] = 0
    transform, crs = from_origin(0, 0, 0.1, 0.1), "EPSG:2154"
    if kind == "feet":
        transform, crs = from_origin(0, 0, 0.1 / 0.3048006096, 0.1 / 0.3048006096), "EPSG:2263"
    profile = {"transform": transform, "crs": None if kind == "unknown" else crs}
    if kind == "alpha":
        pixels[3] = mask
        profile |= {"photometric": "rgb", "alpha": "yes"}
    path = write(tmp_path / "in.tif", pixels, mask=mask if kind == "mask" else None, **profile)
    source = Source([path], RGB, resolution=0.2)
    assert (source.height, source.width) == (10, 15)
    image, valid = read_all(source)
    masked = kind in ("mask", "alpha")
    assert valid[:, 5:].all()
    assert valid[:, :4].any() != masked
    # The bilinear kernel extends a little beyond the 2 x 2 pixels that are averaged here.
    rough = pixels[:3].reshape(3, 10, 2, 15, 2).mean((2, 4))
    assert np.abs(image - rough)[:, 1:-1, 6:-1].mean() < 25
    np.testing.assert_allclose(image[:, :, 6:].mean(), rough[:, :, 6:].mean(), atol=3)
    assert source.georeference.crs == (
        None if kind == "unknown" else rasterio.crs.CRS.from_string(crs)
    )


def test_an_unknown_size_cannot_be_resampled(tmp_path):
    path = write(tmp_path / "nowhere.tif", noise(3), transform=Affine.identity(), crs=None)
    with pytest.raises(UserError, match="is unknown, so --resolution cannot"):
        Source([path], RGB, resolution=0.2)
    (note,) = Source([path], RGB, trained_at=0.2).notes()
    assert note.endswith("is unknown and assumed to be 0.2 m, as the model was trained at")


@pytest.mark.parametrize(
    "place",
    [
        {"gcps": [(0, 0, 2, 48)]},
        {"gcps": [(0, 0, 2, 48), (0, 30, 2.1, 48)]},
        {"gcps": [(row, column, 2, 48) for row in (0, 20) for column in (0, 30)]},
        {"transform": Affine(1e-6, 0, 2, 0, -1e-6, 95)},
        {"transform": Affine(0, 0, 2, 0, 0, 48)},
    ],
    ids=["one point", "two points", "points at one place", "beyond the pole", "no size"],
)
@pytest.mark.filterwarnings("error")
def test_degenerate_georeferencing_has_no_size(tmp_path, place):
    if "gcps" in place:
        place = {"gcps": [GroundControlPoint(*p) for p in place["gcps"]], "transform": None}
    path = write(tmp_path / "in.tif", noise(3), crs="EPSG:4326", **place)
    source = Source([path], RGB)
    assert source.pixel_size is None
    assert [note for note in source.notes() if "is unknown" not in note] == []


def test_a_pixel_without_size_cannot_be_mosaicked(tmp_path):
    path = write(tmp_path / "in.tif", noise(3), transform=Affine(0, 0, 2, 0, 0, 48))
    with pytest.raises(UserError, match=r"in.tif is not georeferenced and cannot be mosaicked"):
        Source([path, path], RGB)


@pytest.mark.parametrize("resolution", [1e-9, 1e9])
def test_a_resolution_beyond_the_raster(tmp_path, resolution):
    path = write(tmp_path / "in.tif", noise(3))
    message = r"--resolution=\S+ would make .*is 0\.2 x 0\.2 m"
    with pytest.raises(UserError, match=message):
        Source([path], RGB, resolution=resolution)


# Metres on the ground for a unit of the coordinate system along x and y. At this latitude a degree
# of the WGS 84 ellipsoid is 73.38 km from west to east, and 111.20 km from south to north; Web
# Mercator stretches them to 111.32 km (radius 6,378,137 m) and to 111.32 km / cos(latitude).
LATITUDE = 48.85
DEGREE = 73_382.9, 111_204.9


@pytest.mark.parametrize(
    ("crs", "origin", "unit"),
    [
        ("EPSG:4326", (2.35, LATITUDE), DEGREE),
        ("EPSG:4807", (0.0, LATITUDE / 0.9), (0.9 * DEGREE[0], 0.9 * DEGREE[1])),
        ("EPSG:3857", (261_600, 6_250_000), (0.6592, 0.6573)),
        ("EPSG:2154", (900_000, 6_500_000), (1, 1)),
        ("EPSG:2154", (0, 0), (1, 1)),  # outside of its region: a false place, not a false size
        ("EPSG:2263", (1e6, 2e5), (0.3048006, 0.3048006)),
        (None, (0, 0), (1, 1)),
    ],
    ids=["degrees", "grads", "Web Mercator", "metres", "elsewhere", "feet", "no CRS"],
)
def test_resolution_is_on_the_ground_for_each_axis(tmp_path, crs, origin, unit):
    sides = 0.4 / unit[0], 0.2 / unit[1]
    path = write(
        tmp_path / "in.tif", noise(3, 200, 300), crs=crs, transform=from_origin(*origin, *sides)
    )
    assert Source([path], RGB).pixel_size == pytest.approx((0.4, 0.2), 1e-3)
    source = Source([path], RGB, resolution=0.1)
    assert source.height == pytest.approx(400, abs=1)
    assert source.width == pytest.approx(1200, abs=2)
    assert source.pixel_size == pytest.approx((0.1, 0.1), 1e-6)
    transform = source.georeference.transform
    assert (transform.c, transform.f) == pytest.approx(origin)
    assert (transform.a * unit[0], -transform.e * unit[1]) == pytest.approx((0.1, 0.1), 1e-3)


@pytest.mark.parametrize("factor", [0.37, 1.0, 2.0, 3.7])
def test_resampling_is_that_of_gdal(tmp_path, factor):
    pixels = noise(3, 90, 70)
    path = write(tmp_path / "in.tif", pixels)
    image, valid = read_all(Source([path], RGB, resolution=0.2 * factor))
    assert valid.all()
    with (
        rasterio.open(path) as raster,
        WarpedVRT(
            raster, crs=raster.crs, transform=PLACE @ Affine.scale(factor),
            height=image.shape[1], width=image.shape[2], resampling=Resampling.bilinear,
        ) as warped,
    ):  # fmt: skip
        expected = warped.read()
    reach = int(np.ceil(1 / factor)) + 1  # at the ends, GDAL's kernel differs
    inside = np.s_[:, reach:-reach, reach:-reach]
    # GDAL takes the kernel's weights from a table.
    np.testing.assert_allclose(image[inside].astype(int), expected[inside].astype(int), atol=2)


def test_windows_of_a_resampled_raster_are_its_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(resampling, "_PIXELS", 500)  # several parts of each window
    pixels = noise(3, 60, 70)
    pixels[:, 20:30, 10:40] = 0
    source = Source([write(tmp_path / "in.tif", pixels, nodata=0)], RGB, resolution=0.13)
    image, valid = read_all(source)
    rows, columns = np.arange(13, 60), np.arange(5, 90)
    part, known = source.read(rows, columns)
    np.testing.assert_array_equal(known, valid[np.ix_(rows, columns)])
    np.testing.assert_array_equal(part, np.moveaxis(image, 0, -1)[np.ix_(rows, columns)])
    assert 0 < (~valid).sum() == pytest.approx(10 * 30 * (0.2 / 0.13) ** 2, rel=0.1)


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ((0.5, 0.5), "is 0.5 m, and the model was trained at 0.2 m: expect worse .*resolution=0.2"),
        ((0.25, 0.25), None),
        ((0.2, 0.4), "oblong, 0.2 x 0.4 m on the ground; .*--resolution=0.2 makes them so"),
    ],
)
def test_pixel_sizes_unlike_the_models_give_a_warning(tmp_path, sides, message):
    path = write(tmp_path / "in.tif", noise(3), transform=from_origin(0, 0, *sides))
    notes = Source([path], RGB, trained_at=0.2).notes()
    assert len(notes) == (message is not None)
    assert all(re.search(message, note) for note in notes)
    # A model that does not know its size makes no claim.
    assert [n for n in Source([path], RGB).notes() if "trained at" in n] == []


@pytest.mark.parametrize("several", [False, True])
def test_a_truncated_file_is_named_with_the_window(tmp_path, several):
    path = write(tmp_path / "cut.tif", noise(3, 200, 300), compress="deflate", blockysize=10)
    content = (tmp_path / "cut.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(content[: len(content) // 2])
    paths = [path]
    if several:
        moved = PLACE @ Affine.translation(300, 0)
        paths.insert(0, write(tmp_path / "good.tif", noise(3, 200, 300), transform=moved))
    source = Source(paths, RGB)
    source.read(np.arange(20), np.arange(50))
    with pytest.raises(UnreadableError, match=r"cut.tif .*columns 10 to 59, rows 100 to 199"):
        source.read(np.arange(100, 200), np.arange(10, 60))


def test_a_truncated_file_is_named_when_alpha_is_looked_at(tmp_path):
    path = write(tmp_path / "cut.tif", noise(4, 200, 300), photometric=None)
    content = (tmp_path / "cut.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableError, match=r"cut.tif cannot be read at columns .*complete\?"):
        Source([path], RGB)


def test_a_damaged_jpeg_stream_is_not_read_on(tmp_path):
    path = write(tmp_path / "in.tif", noise(3, 64, 64), compress="jpeg", blockysize=64)
    content = bytearray((tmp_path / "in.tif").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    (tmp_path / "in.tif").write_bytes(content)
    with pytest.raises(UnreadableError, match=r"in.tif cannot be read .*: Corrupt JPEG data"):
        Source([path], RGB).read(np.arange(64), np.arange(64))


def test_of_several_images_in_a_file_the_first_is_taken_and_reported(tmp_path):
    first, second = (Image.fromarray(np.full((8, 9, 3), value, np.uint8)) for value in (50, 60))
    path = str(tmp_path / "pages.tif")
    first.save(path, save_all=True, append_images=[second])
    source = Source([path], RGB)
    assert (read_all(source)[0] == 50).all()
    note = f"note: {path} holds 2 images, and the first one is taken; gdalinfo lists the names"
    assert any(text.startswith(note) for text in source.notes())
    page = Source([f"GTIFF_DIR:2:{path}"], RGB)
    assert (read_all(page)[0] == 60).all()
    assert not any("first one" in text for text in page.notes())
