"""Percentiles as the limits of a stretch: of each band, in the whole raster."""

import detecting
import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from rasters import PLACE, RGB, RGBN, read_all, write

from flair_jax.cli import detect
from flair_jax.cli.parser import Parser
from flair_jax.errors import UsageError, UserError
from flair_jax.inference import percentiles
from flair_jax.inference.band_files import BandFile
from flair_jax.inference.band_selection import Scaling
from flair_jax.inference.options import Options
from flair_jax.inference.raster_source import Source
from tfds_builder.flags import value_range

P2_98 = Scaling(by_user=(("p2", "p98"),))


def deep(bands=3, height=20, width=30, seed=0):
    rng = np.random.default_rng(seed)
    levels = np.arange(1, bands + 1).reshape(-1, 1, 1)
    return (levels * rng.integers(100, 5000, (bands, height, width))).astype(np.uint16)


def stretched(values, low, high):
    return np.rint(np.clip(255 * (values.astype(float) - low) / (high - low), 0, 255))


def test_each_band_by_its_own(tmp_path):
    path = write(tmp_path / "a.tif", deep())
    source = Source([path], RGB, scaling=P2_98)
    image, _ = read_all(source)
    limits = [np.percentile(band, (2, 98)) for band in deep()]
    expected = [stretched(band, *pair) for band, pair in zip(deep(), limits, strict=True)]
    np.testing.assert_array_equal(image, expected)
    texts = [f"{name} from {a:g}..{b:g}" for name, (a, b) in zip(RGB, limits, strict=True)]
    assert source.bands.endswith(f"uint16 with {', '.join(texts)} stretched by --stretch=p2,p98")


def test_values_and_percentiles_for_each_band(tmp_path):
    path = write(tmp_path / "a.tif", deep())
    ranges = ((0.0, "p99.5"), ("p0", "p100"), (100.0, 3000.0))
    image, _ = read_all(Source([path], RGB, scaling=Scaling(by_user=ranges)))
    a, b, c = deep()
    np.testing.assert_array_equal(image[0], stretched(a, 0, np.percentile(a, 99.5)))
    np.testing.assert_array_equal(image[1], stretched(b, b.min(), b.max()))
    np.testing.assert_array_equal(image[2], stretched(c, 100, 3000))


def test_only_valid_pixels_count(tmp_path):
    values = deep().astype(np.float32)
    values[:, 5:15] = -1e6
    values[1, 0, 0] = np.nan
    path = write(tmp_path / "a.tif", values, nodata=-1e6)
    image, valid = read_all(Source([path], RGB, scaling=P2_98))
    assert valid.sum() == 299
    band = values[0][valid]
    expected = stretched(band, *np.percentile(band.astype(np.float64), (2, 98)))
    assert np.abs(image[0][valid] - expected).max() <= 1


def test_of_a_mosaic_together(tmp_path):
    """Of the whole, so that neighbours are stretched alike."""
    first, second = deep(seed=1), deep(seed=2) // 3
    paths = [
        write(tmp_path / "a.tif", first),
        write(tmp_path / "b.tif", second, transform=PLACE @ Affine.translation(30, 0)),
    ]
    both = np.concatenate([first, second], axis=2)
    expected = [stretched(band, *np.percentile(band, (2, 98))) for band in both]
    image, _ = read_all(Source(paths, RGB, scaling=P2_98))
    np.testing.assert_array_equal(image, expected)


def test_a_large_raster_is_reduced(tmp_path, monkeypatch):
    monkeypatch.setattr(percentiles, "_PIXELS", 5000)
    values = deep(3, 200, 300)
    path = write(tmp_path / "a.tif", values)
    source = Source([path], RGB, scaling=P2_98)
    assert source.bands.endswith("by --stretch=p2,p98 of 1 pixel in 16")
    low, high = np.percentile(values[0], (2, 98))
    found = stretched(values[0], low, high)
    assert np.abs(read_all(source)[0][0] - found).max() < 6
    again = Source([path], RGB, scaling=P2_98)
    assert again.bands == source.bands


def test_of_a_band_in_a_file_of_its_own(tmp_path):
    path, infrared = write(tmp_path / "a.tif", deep()), deep(1, 20, 30, seed=3) * np.uint16(2)
    files = {"nir": (BandFile("--nir", write(tmp_path / "n.tif", infrared), 1),)}
    source = Source([path], RGBN, scaling=P2_98, files=files)
    expected = stretched(infrared[0], *np.percentile(infrared, (2, 98)))
    np.testing.assert_array_equal(read_all(source)[0][3], expected)


def test_of_surface_less_terrain_they_are_not_known(tmp_path):
    flat = write(tmp_path / "f.tif", np.ones((1, 20, 30), np.float32))
    files = {"nir": (BandFile("--surface", flat, 1), BandFile("--terrain", flat, 1))}
    files = {"height": files["nir"]}
    with pytest.raises(UserError, match="percentiles of surface less terrain are not known"):
        Source(
            [write(tmp_path / "a.tif", deep())], (*RGB, "height"), files=files,
            scaling=Scaling(by_user=(("p2", "p98"),) * 4),
        )  # fmt: skip


def test_rasters_without_any_contrast(tmp_path):
    path = write(tmp_path / "a.tif", np.full((3, 20, 30), 7, np.uint16))
    with pytest.raises(UserError, match=r"--stretch=p2,p98: in .*a.tif, red would be stretched fr"):
        Source([path], RGB, scaling=P2_98)
    path = write(tmp_path / "b.tif", np.full((3, 20, 30), 7, np.uint16), nodata=7)
    with pytest.raises(UserError, match=r"b.tif has no valid pixels, of which --stretch could"):
        Source([path], RGB, scaling=P2_98)


@pytest.mark.parametrize(
    "pair", [("p98", "p2"), ("p2", "p2"), ("p-1", "p50"), ("p2", "p101"), ("x", 5.0),
             ("p2", float("nan")), (float("inf"), "p98")],
)  # fmt: skip
def test_options_that_are_no_percentiles(pair):
    with pytest.raises(
        UserError, match=r"--stretch=.*: expected a lower and a higher value or per"
    ):
        Options(stretch=(pair,)).check()


def test_the_flag():
    parser = Parser("flair-jax detect", "", ())
    detect.add_flags(parser)
    given = ["--checkpoint=a", "--input=b", "--output=c"]
    values = parser.parse([*given, "--stretch=p2,p98", "0,p99.5"])
    assert values.stretch == [("p2", "p98"), (0, "p99.5")]
    for text in ("p2", "p2,q98", "p2,p98,p99", "2%,98%"):
        with pytest.raises(UsageError, match="is not a range such as 0,3000 or p2,p98"):
            parser.parse([*given, f"--stretch={text}"])
    # A data set is built with values.
    assert value_range("-1,2.5") == (-1, 2.5)
    with pytest.raises(Exception, match="'p2,p98' is not a range such as 0,3000"):
        value_range("p2,p98")


def test_the_map_and_its_tags(tmp_path, model):
    pixels = detecting.patches(70, 90).astype(np.uint16) * 10
    detecting.write(tmp_path / "deep.tif", pixels)
    limits = [np.percentile(band, (2, 98)) for band in pixels]
    scaled = [stretched(band, *pair) for band, pair in zip(pixels, limits, strict=True)]
    detecting.write(tmp_path / "bytes.tif", np.stack(scaled).astype(np.uint8))
    detecting.detect(model, tmp_path / "bytes.tif", tmp_path / "a.tif")
    detecting.detect(model, tmp_path / "deep.tif", tmp_path / "b.tif", stretch=(("p2", "p98"),))
    np.testing.assert_array_equal(
        detecting.read(tmp_path / "a.tif"), detecting.read(tmp_path / "b.tif")
    )
    with rasterio.open(tmp_path / "b.tif") as raster:
        assert raster.tags()["INPUT_BANDS"].endswith("stretched by --stretch=p2,p98")
    with pytest.raises(UserError, match="but not from an interrupted detection with these settin"):
        detecting.detect(
            model, tmp_path / "deep.tif", tmp_path / "b.tif", stretch=(("p1", "p98"),), resume=True
        )
