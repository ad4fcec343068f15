"""Rasters of other types than uint8: the model's own stretch, the user's, or a refusal."""

import dataclasses
import json

import detecting
import numpy as np
import own_images as own
import pytest
import rasterio
from rasters import RGB, noise, read_all, write

from flair_jax import config as configuration
from flair_jax.cli import detect
from flair_jax.cli.parser import Parser
from flair_jax.data import dataset
from flair_jax.errors import UsageError, UserError
from flair_jax.inference.band_selection import Scaling
from flair_jax.inference.raster_source import Source
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime import checksums
from tfds_builder.build import build_own

DEEP = Scaling(of_model=((0.0, 4000.0),) * 3, trained_on=("uint16",))
STRETCH = ((0.0, 4000.0), (100.0, 3000.0), (-50.0, 2000.0))


def deep(dtype="uint16", seed=0):
    values = np.random.default_rng(seed).integers(0, 5000, (3, 20, 30))
    return values.astype(dtype)


def expected(pixels, stretch):
    bands = [
        np.rint(np.clip(255 * (band.astype(float) - low) / (high - low), 0, 255))
        for band, (low, high) in zip(pixels, stretch, strict=True)
    ]
    return np.stack(bands).astype(np.uint8)


def test_the_type_of_the_training_images_is_stretched_as_these_were(tmp_path):
    scaling = Scaling(of_model=STRETCH, trained_on=("uint16",))
    source = Source([write(tmp_path / "a.tif", deep())], RGB, scaling=scaling)
    np.testing.assert_array_equal(read_all(source)[0], expected(deep(), STRETCH))
    assert source.bands == (
        "red 1, green 2, blue 3 (position), uint16 with red from 0..4000, green from 100..3000, "
        "blue from -50..2000 stretched as in the model's training"
    )
    # By the model's bands, not by the raster's.
    path = write(tmp_path / "b.tif", deep(), descriptions=("blue", "green", "red"))
    source = Source([path], RGB, scaling=scaling)
    np.testing.assert_array_equal(read_all(source)[0], expected(deep()[::-1], STRETCH))


@pytest.mark.parametrize("dtype", ["int16", "uint32", "float32", "float64"])
def test_another_type_is_refused_or_stretched_by_the_user(tmp_path, dtype):
    path = write(tmp_path / "a.tif", deep(dtype))
    with pytest.raises(UserError) as error:
        Source([path], RGB, scaling=DEEP)
    assert str(error.value).startswith(
        f"{path} has pixels of {dtype}, and the model was trained on uint16 stretched from "
        "0..4000: give the values that become 0 and 255 as --stretch=MIN,MAX"
    )
    scaling = dataclasses.replace(DEEP, by_user=((0, 1000),))
    source = Source([path], RGB, scaling=scaling)
    np.testing.assert_array_equal(read_all(source)[0], expected(deep(dtype), ((0, 1000),) * 3))
    assert source.bands.endswith(f", {dtype} stretched from 0..1000 by --stretch")


def test_bytes_are_taken_as_stretched_already_with_a_warning(tmp_path):
    path = write(tmp_path / "a.tif", noise(3))
    source = Source([path], RGB, scaling=DEEP)
    np.testing.assert_array_equal(read_all(source)[0], noise(3))
    assert (
        f"{path}: warning: its pixels are uint8, and the model was trained on uint16 stretched "
        "from 0..4000: they are taken as stretched so already; if not, give --stretch"
    ) in source.notes()
    # Of a model whose training images were bytes and stretched, they are not.
    scaling = Scaling(of_model=((10.0, 200.0),) * 3, trained_on=("uint8",))
    source = Source([path], RGB, scaling=scaling)
    np.testing.assert_array_equal(read_all(source)[0], expected(noise(3), ((10, 200),) * 3))


def test_rasters_of_two_types_in_one_mosaic(tmp_path):
    beside = rasterio.Affine.translation(6, 0) @ rasterio.transform.from_origin(
        900_000, 6_500_000, 0.2, 0.2
    )
    paths = [
        write(tmp_path / "a.tif", deep()),
        write(tmp_path / "b.tif", noise(3), transform=beside),
    ]
    image, _ = read_all(Source(paths, RGB, scaling=DEEP))
    np.testing.assert_array_equal(image[:, :, :30], expected(deep(), ((0, 4000),) * 3))
    np.testing.assert_array_equal(image[:, :, 30:], noise(3))


def test_pixels_that_are_no_numbers_are_not_valid(tmp_path):
    pixels = deep("float32")
    pixels[1, 3, 4], pixels[2, 5, 6] = np.nan, np.inf
    source = Source([write(tmp_path / "a.tif", pixels)], RGB, scaling=Scaling(by_user=((0, 1000),)))
    image, valid = read_all(source)
    missing = np.argwhere(~valid).tolist()
    assert missing == [[3, 4], [5, 6]]
    np.testing.assert_array_equal(image[:, ~valid], 0)
    pixels[:, ~valid] = 0
    np.testing.assert_array_equal(image, expected(pixels, ((0, 1000),) * 3))


def test_sixteen_bit_near_infrared_tagged_alpha_is_image_data(tmp_path):
    pixels = np.random.default_rng(0).integers(1, 5000, (4, 20, 30)).astype(np.uint16)
    colours = ("red", "green", "blue", "alpha")
    scaling = Scaling(of_model=((0.0, 5000.0),) * 4, trained_on=("uint16",))
    source = Source(
        [write(tmp_path / "a.tif", pixels, colours=colours)], (*RGB, "nir"), scaling=scaling
    )
    np.testing.assert_array_equal(read_all(source)[0], expected(pixels, ((0, 5000),) * 4))
    pixels[3] = np.where(np.arange(30) < 9, 0, 65535)
    source = Source(
        [write(tmp_path / "b.tif", pixels, colours=colours)], RGB,
        scaling=dataclasses.replace(scaling, of_model=((0.0, 5000.0),) * 3),
    )  # fmt: skip
    np.testing.assert_array_equal(read_all(source)[1], pixels[3] > 0)


@pytest.mark.parametrize(
    ("stretch", "message"),
    [
        (((5, 5),), "--stretch=5,5: expected a lower and a higher value"),
        (((0, float("nan")),), "--stretch=0,nan: expected"),
        (((0, 9), (0, 9)), "--stretch has 2 ranges, and the model takes 5 bands"),
    ],
)
def test_stretches_that_are_none(tmp_path, model, stretch, message):
    path = detecting.write(tmp_path / "a.tif", detecting.patches(40, 40).astype(np.uint16))
    with pytest.raises(UserError, match=message):
        detecting.detect(model, path, tmp_path / "o.tif", stretch=stretch)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


@pytest.mark.parametrize(
    ("flags", "stretch"),
    [
        (["--stretch=0,3000"], ((0, 3000),)),
        (["--stretch=-1.5,2e3"], ((-1.5, 2000),)),
        (["--stretch", "-1,9", "0,.5", "-.5,7"], ((-1, 9), (0, 0.5), (-0.5, 7))),
        (["--stretch=-1,9", "3,4"], ((-1, 9), (3, 4))),
        ([], ()),
    ],
)
def test_the_flag(flags, stretch):
    parser = Parser("flair-jax detect", "", ())
    detect.add_flags(parser)
    values = parser.parse(["--checkpoint=a", "--input=b", "--output=c", *flags])
    assert tuple(values.stretch) == stretch
    with pytest.raises(UsageError, match=r"'5' is not a range such as 0,3000"):
        parser.parse(["--checkpoint=a", "--input=b", "--output=c", "--stretch=5"])


def test_a_stretched_map_is_that_of_the_stretched_image(tmp_path, model):
    """And an interrupted job of another stretch is not resumed: the settings differ."""
    pixels = detecting.patches(70, 90).astype(np.uint16) * 10
    detecting.write(tmp_path / "deep.tif", pixels)
    scaled = expected(pixels, ((100, 2000),) * 5)
    detecting.write(tmp_path / "bytes.tif", scaled)
    detecting.detect(model, tmp_path / "bytes.tif", tmp_path / "a.tif")
    detecting.detect(model, tmp_path / "deep.tif", tmp_path / "b.tif", stretch=((100.0, 2000.0),))
    np.testing.assert_array_equal(
        detecting.read(tmp_path / "a.tif"), detecting.read(tmp_path / "b.tif")
    )
    with rasterio.open(tmp_path / "b.tif") as raster:
        assert "uint16 stretched from 100..2000 by --stretch" in raster.tags()["INPUT_BANDS"]


def test_from_the_data_set_to_the_map(tmp_path):
    """Built, the spec of a training on it, and what detection reads of the same files."""
    source = own.places(tmp_path / "in", shape=(64, 64), suffix="tif", driver="GTiff")
    values = np.random.default_rng(0).integers(0, 3000, (3, 64, 64)).astype(np.uint16)
    for name in "abc":
        path = own.write(tmp_path / f"in/{name}/images/1.tif", values)
        with rasterio.open(path, "r+") as raster:
            raster.descriptions = ("Near infrared", "Red band", "Soil moisture")
    stretch = ((0.0, 2500.0), (100.0, 3000.0), (0.0, 1000.0))
    folder = build_own(
        "deep",
        data_dir=tmp_path / "built",
        num_workers=1,
        progress=False,
        stretch=stretch,
        **source,
    )
    split = dataset.open_split(folder, "test")
    assert split.data.image_types == ("uint16",)
    config = configuration.default()
    config.nomenclature, config.bands = "data", ("red", "soil_moisture", "nir")
    spec = ModelSpec.from_config(config, (64, 64), 0.2, split.data)
    assert spec.stretch == ((100.0, 3000.0), (0.0, 1000.0), (0.0, 2500.0))
    spec.save(tmp_path)
    assert ModelSpec.load(tmp_path) == spec
    scaling = Scaling((), spec.stretch, spec.image_types)
    image, _ = read_all(Source([str(tmp_path / "in/a/images/1.tif")], spec.bands, scaling=scaling))
    np.testing.assert_array_equal(
        np.moveaxis(image, 0, -1), split.records[0]["image"][..., [1, 2, 0]]
    )
    # Scoring on a data set of another stretch would be of other numbers.
    other = dataclasses.replace(split.data, stretch=((0.0, 255.0),) * 3)
    with pytest.raises(UserError, match=r"with red from 100..3000, .* build it with the model's"):
        spec.check_data(other, "here", scored=False)
    spec.check_data(split.data, "here", scored=False)


def test_models_of_earlier_versions_have_no_stretch(tmp_path):
    detecting.random_spec().save(tmp_path)
    saved = json.loads((tmp_path / "model.json").read_text())
    for key in ("stretch", "image_types", checksums.KEY):
        del saved[key]
    (tmp_path / "model.json").write_text(json.dumps(saved))
    spec = ModelSpec.load(tmp_path)
    assert (spec.stretch, spec.image_types) == ((), ("uint8",))
