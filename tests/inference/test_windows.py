"""Windows of classes without files: the same pixels as the map's."""

import detecting
import numpy as np
import pytest
import rasterio
from rasters import noise, write

import flair_jax
from flair_jax.errors import UserError

TILES = {"engine": "jax", "tile": detecting.TILE, "margin": detecting.MARGIN, "batch_size": 4}


def assembled(windows, bands=0):
    """The classes, (H, W), or the probabilities, (bands, H, W); and how often each pixel came."""
    shape = windows.height, windows.width
    classes, times = np.full(shape, 255, np.uint8), np.zeros(shape, int)
    probabilities = np.zeros((bands, *shape), np.uint8)
    for window, of_window, *more in windows:
        part = window.toslices()
        assert of_window.shape == (window.height, window.width)
        assert of_window.dtype == np.uint8
        assert not of_window.mask.all()
        classes[part] = of_window.filled()
        times[part] += 1
        if bands:
            assert more[0].shape == (*of_window.shape, bands)
            probabilities[(slice(None), *part)] = np.moveaxis(more[0].filled(), -1, 0)
    return classes, probabilities, times


@pytest.mark.parametrize("blend", ["crop", "hann"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"first_class": 0, "tta": True},
        {"bounds": (900_003.1, 6_499_991.2, 900_014.7, 6_499_998)},
        {"resolution": 0.3},
    ],
)
def test_they_are_the_map(model, scene, tmp_path, blend, options):
    options = {"blend": blend, **options}
    detecting.detect(model, scene[0], tmp_path / "a.tif", probabilities=True, **options)
    windows = flair_jax.predict_windows(model, scene[0], probabilities=True, **TILES, **options)
    classes, probabilities, times = assembled(windows, bands=13)
    np.testing.assert_array_equal(classes, detecting.read(tmp_path / "a.tif")[0])
    expected = detecting.read(tmp_path / "a_probabilities.tif")
    np.testing.assert_array_equal(probabilities, expected)
    assert times.max() == 1
    with rasterio.open(tmp_path / "a.tif") as raster:
        assert windows.crs == raster.crs
        assert windows.transform.almost_equals(raster.transform)
        assert (windows.height, windows.width) == raster.shape
    assert windows.nomenclature.names[0] == "building"


def test_they_can_be_written_and_iterated_over_again(model, scene, tmp_path):
    windows = flair_jax.predict_windows(model, scene[0], **TILES)
    with rasterio.open(tmp_path / "own.tif", "w", **windows.profile) as raster:
        for window, classes in windows:
            raster.write(classes.filled(), 1, window=window)
    detecting.detect(model, scene[0], tmp_path / "a.tif")
    expected = detecting.read(tmp_path / "a.tif")
    np.testing.assert_array_equal(detecting.read(tmp_path / "own.tif"), expected)
    np.testing.assert_array_equal(assembled(windows)[0], expected[0])
    valid = scene[2]
    for window, classes in windows:
        np.testing.assert_array_equal(classes.mask, ~valid[window.toslices()])


def test_what_has_no_data_is_left_out(checkpoint, tmp_path):
    pixels = detecting.patches(60, 200)
    pixels[:, :, 100:] = 0
    path = detecting.write(tmp_path / "in.tif", pixels, nodata=0)
    windows = list(flair_jax.predict_windows(checkpoint, path, **TILES))
    assert 0 < len(windows) < 14
    assert max(window.col_off for window, _ in windows) < 100
    assert list(tmp_path.iterdir()) == [path]


def test_stopping_early_ends_the_reading(model, scene):
    for _window, _classes in flair_jax.predict_windows(model, scene[0], **TILES):
        break


@pytest.mark.parametrize("name", ["confidence", "overwrite", "resume"])
def test_options_of_files_are_refused(model, scene, name):
    with pytest.raises(UserError, match=f"writes no files: leave out the option {name}"):
        flair_jax.predict_windows(model, scene[0], **{name: True})


def test_rasters_that_do_not_fit_are_refused_at_once(model, tmp_path):
    path = write(tmp_path / "a.tif", noise(2))
    with pytest.raises(UserError, match="the model takes 5 bands"):
        flair_jax.predict_windows(model, path)
    with pytest.raises(UserError, match="--tile=5 is not a multiple"):
        flair_jax.predict_windows(model, path, tile=5)
