"""`detect --adapt`: batch statistics of the raster in place of the training images'."""

import dataclasses

import numpy as np
import pytest
import rasterio
from detecting import detect, patches, read, undated, write

import flair_jax
from flair_jax.inference.adaptation import WINDOWS, adapt_to_raster
from flair_jax.inference.predictor import Model
from flair_jax.inference.raster_source import Source


@pytest.fixture(scope="module")
def model(checkpoint):
    """With patches of 64 x 64 pixels."""
    loaded = flair_jax.load_model(checkpoint)
    spec = dataclasses.replace(loaded.spec, patch_size=(64, 64))
    return Model(loaded.path, loaded._mesh, spec, loaded.params, loaded.batch_stats, loaded.step)


def source_of(path, model):
    return Source([str(path)], model.spec.bands, (), 0.0, model.spec.pixel_size)


@pytest.fixture(scope="module")
def rasters(tmp_path_factory):
    """A raster, and the same half as bright."""
    folder = tmp_path_factory.mktemp("rasters")
    pixels = patches(200, 260) // 2 * 2
    return write(folder / "bright.tif", pixels), write(folder / "dark.tif", pixels // 2)


def test_an_adapted_model_sees_through_a_change_of_brightness(model, rasters, tmp_path):
    """Behind a convolution without bias, a factor is all in the statistics."""
    maps = {}
    for adapt in (False, True):
        for path in rasters:
            output = tmp_path / f"{path.stem}_{adapt}.tif"
            detect(model, path, output, adapt=adapt)
            maps[path.stem, adapt] = read(output)
    assert np.mean(maps["bright", False] == maps["dark", False]) < 0.95
    assert np.mean(maps["bright", True] == maps["dark", True]) > 0.98
    assert (maps["bright", True] != maps["bright", False]).any()


def test_it_is_repeatable_and_told(model, rasters, tmp_path, capsys):
    first, again = tmp_path / "a.tif", tmp_path / "b.tif"
    for output in (first, again):
        detect(model, rasters[0], output, adapt=True, confidence=True)
    assert undated(first) == undated(again)
    note = "batch statistics of 20 of 20 windows of 64 pixels"
    assert f"adapted  {note}" in capsys.readouterr().out
    with rasterio.open(first) as raster:
        assert raster.tags()["MODEL_ADAPTED"] == note
    detect(model, rasters[0], tmp_path / "c.tif")
    with rasterio.open(tmp_path / "c.tif") as raster:
        assert "MODEL_ADAPTED" not in raster.tags()
    assert "adapted" not in capsys.readouterr().out


def test_windows_are_valid_ones(model, tmp_path):
    """The values beneath NoData do not count."""
    pixels = patches(256, 256)
    pixels[:, :, 128:] = 0
    holed = write(tmp_path / "holed.tif", pixels, nodata=0)
    whole = write(tmp_path / "whole.tif", pixels[:, :, :128])
    mesh = model._mesh
    adapted, note = adapt_to_raster(model, source_of(holed, model), mesh)
    assert note == "batch statistics of 8 of 16 windows of 64 pixels"
    _, other = adapt_to_raster(model, source_of(whole, model), mesh)
    assert other == "batch statistics of 8 of 8 windows of 64 pixels"
    mean = np.asarray(adapted.batch_stats["encoder.bn1.mean"])
    assert np.abs(mean - np.asarray(model.batch_stats["encoder.bn1.mean"])).max() > 0.01
    assert adapted.params is model.params


def test_without_a_window_of_valid_pixels(model, tmp_path):
    pixels = patches(64, 64)
    pixels[:, 10:] = 0
    part = write(tmp_path / "part.tif", pixels, nodata=0)
    _, note = adapt_to_raster(model, source_of(part, model), model._mesh)
    assert note == "batch statistics of 1 of 1 windows of 64 pixels, too few to rely on"
    nothing = write(tmp_path / "nothing.tif", np.zeros_like(pixels), nodata=0)
    same, note = adapt_to_raster(model, source_of(nothing, model), model._mesh)
    assert same is model
    assert note == "not at all: no pixel is valid"


def test_a_large_raster_is_sampled(model, tmp_path):
    large = write(tmp_path / "large.tif", patches(64 * 12, 64 * 12))
    _, note = adapt_to_raster(model, source_of(large, model), model._mesh)
    assert note == f"batch statistics of {WINDOWS} of 144 windows of 64 pixels"
