"""Which band feeds which input of the model, and which of them is transparency."""

import numpy as np
import pytest
import rasterio
from rasters import RGB, RGBN, noise, read_all, write

from flair_jax.errors import UserError
from flair_jax.inference.band_selection import Scaling
from flair_jax.inference.raster_source import Source

FIVE = (*RGBN, "height")


def alpha(height=20, width=30):
    band = np.full((1, height, width), 255, np.uint8)
    band[:, :7] = 0
    return band


def land(seed=0, side=64):
    """(4, side, side): red, green, blue alike, and near infrared of its own."""
    rng = np.random.default_rng(seed)
    common, own = rng.integers(40, 200, (2, side, side))
    bands = [np.clip(common + rng.integers(-20, 20, common.shape), 1, 255) for _ in range(3)]
    return np.stack([*bands, own]).astype(np.uint8)


@pytest.mark.parametrize(
    ("wanted", "colours", "numbers", "described"),
    [
        (RGB, ("blue", "green", "red"), (3, 2, 1), "red 3, green 2, blue 1 (colour interpret"),
        (RGB, ("undefined",) * 3, (1, 2, 3), "red 1, green 2, blue 3 (position)"),
        (
            RGBN, ("blue", "green", "red", "undefined"), (3, 2, 1, 4),
            "red 3 (colour interpretation), green 2 (colour interpretation), "
            "blue 1 (colour interpretation), nir 4 (the only band left)",
        ),
        (RGBN, ("nir", "green", "blue", "red"), (4, 2, 3, 1), "red 4, green 2, blue 3, nir 1 (col"),
        (RGB, ("nir", "blue", "green", "red"), (4, 3, 2), "red 4, green 3, blue 2 (colour interp"),
        (
            FIVE, ("red", "green", "blue", "undefined", "undefined"), (1, 2, 3, 4, 5),
            "blue 3 (colour interpretation), nir 4 (position), height 5 (position)",
        ),
    ],
)  # fmt: skip
def test_colour_interpretation_then_position(tmp_path, wanted, colours, numbers, described):
    pixels = noise(len(colours))
    source = Source([write(tmp_path / "in.tif", pixels, colours=colours)], wanted)
    np.testing.assert_array_equal(read_all(source)[0], pixels[np.subtract(numbers, 1)])
    assert described in source.bands


def test_descriptions_precede_colour_interpretation(tmp_path):
    """The colour interpretation of 3 bytes is red, green, blue by default."""
    pixels = noise(3)
    names = ["Near Infrared", "R", "vert"]
    path = write(tmp_path / "in.tif", pixels, photometric="rgb", descriptions=names)
    source = Source([path], ("nir", "red", "green"))
    np.testing.assert_array_equal(read_all(source)[0], pixels)
    assert source.bands == "nir 1, red 2, green 3 (description)"
    with pytest.raises(UserError, match=r"Which of them is blue is not clear .*--bands=2,3,1"):
        Source([path], RGB)


@pytest.mark.parametrize(
    "names",
    [
        ("Blue band", "Green band", "Red band"),
        ("Band 1: Blue", "Band 2: Green", "Band 3: Red"),
        ("B2 (blue)", "B3 (green)", "B4 (red)"),
        ("blue (450-520 nm)", "green", "red"),
        ("Blue_1", "Green_1", "Red_1"),
        ("azul", "verde", "rojo"),
    ],
)
def test_names_of_colours_among_other_words(tmp_path, names):
    pixels = noise(3)
    path = write(tmp_path / "in.tif", pixels, photometric="rgb", descriptions=names)
    source = Source([path], RGB)
    np.testing.assert_array_equal(read_all(source)[0], pixels[::-1])
    assert source.bands == "red 3, green 2, blue 1 (description)"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("Blue light", "Green light", "Red light"),
            "By colour .*, band 1 is red, .* 'blue light'",
        ),
        (("", "", "Thermal infrared"), "By colour .*, band 3 is blue, .* 'thermal infrared'"),
        (("Red Edge 1", "", ""), "Which of them is red is not clear"),
    ],
)
def test_other_words_that_contradict_colour_interpretation(tmp_path, names, message):
    path = write(tmp_path / "in.tif", noise(3), photometric="rgb", descriptions=names)
    with pytest.raises(UserError, match=message):
        Source([path], RGB)


@pytest.mark.parametrize(
    ("wanted", "names", "message"),
    [
        (RGB, ["red", "green", "green"], "By description, bands 2, 3 are green. List the bands"),
        (RGBN, ["red", "green", "blue", "SWIR"], "Which of them is nir is not clear"),
        (("nir", "red", "green"), ["", "", ""], "Which of them is nir is not clear"),
    ],
)
def test_ambiguous_bands_are_refused_with_the_remedy(tmp_path, wanted, names, message):
    photometric = "rgb" if not any(names) else "minisblack"
    path = write(
        tmp_path / "in.tif", noise(len(names)), descriptions=names, photometric=photometric
    )
    with pytest.raises(UserError, match=message) as error:
        Source([path], wanted)
    assert "--bands=" in str(error.value)


def test_too_few_bands_are_no_question_of_numbers(tmp_path):
    path = write(tmp_path / "in.tif", noise(3), photometric="rgb")
    with pytest.raises(UserError, match="too few for this model") as error:
        Source([path], FIVE)
    assert "--bands" not in str(error.value)


def test_a_long_list_of_bands_is_shortened(tmp_path):
    path = write(tmp_path / "in.tif", noise(200, 4, 4))
    with pytest.raises(
        UserError, match=r"8 \(undefined\), \.\.\., 200 \(undefined\)\. Which"
    ) as error:
        Source([path], RGB)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("bands", [(), (1, 1, 1)])
def test_a_colour_table_is_refused_with_the_command(tmp_path, bands):
    path = tmp_path / "it's.tif"
    write(path, noise(1), photometric="palette")
    with rasterio.open(path, "r+") as raster:
        raster.write_colormap(1, {i: (i, 0, 255 - i, 255) for i in range(256)})
    command = r"colour table.*\n  gdal_translate -expand rgb '.*/it'\"'\"'s.tif' expanded.tif"
    with pytest.raises(UserError, match=command):
        Source([str(path)], RGB, bands)


@pytest.mark.parametrize("bits", [1, 4, 7])
def test_bytes_of_few_bits_are_refused(tmp_path, bits):
    path = write(tmp_path / "in.tif", noise(3) % 2, nbits=bits)
    most = 2**bits - 1
    message = rf"{bits} bits?, 0 to {most}, .* give --stretch=0,{most}$"
    with pytest.raises(UserError, match=message):
        Source([path], RGB)
    source = Source([path], RGB, scaling=Scaling(by_user=((0, most),)))
    np.testing.assert_array_equal(read_all(source)[0], np.rint(noise(3) % 2 * (255 / most)))


@pytest.mark.parametrize("at", [0, 2, 4, 5])
def test_an_alpha_band_is_found_wherever_it_is(tmp_path, at):
    pixels = np.insert(noise(5), [at], alpha(), 0)
    colours = ["undefined"] * 5
    colours.insert(at, "alpha")
    source = Source([write(tmp_path / "in.tif", pixels, colours=colours)], FIVE)
    image, valid = read_all(source)
    np.testing.assert_array_equal(valid, alpha()[0] > 0)
    np.testing.assert_array_equal(image, np.where(valid, np.delete(pixels, at, 0), 0))
    assert source.validity == f"alpha band {at + 1}"


@pytest.mark.parametrize("wanted", [RGB, RGBN])
@pytest.mark.parametrize("nodata", [None, 0])
def test_near_infrared_tagged_alpha_is_image_data(tmp_path, wanted, nodata):
    """GDAL tags a fourth band alpha by default; it is 0 on water, and outside of the image."""
    pixels = noise(4)
    pixels[3, :, :10] = 0
    pixels[:, :5] = 0
    path = write(tmp_path / "in.tif", pixels, photometric=None, nodata=nodata)
    source = Source([path], wanted)
    image, valid = read_all(source)
    np.testing.assert_array_equal(valid, pixels.any(0) if nodata == 0 else True)
    np.testing.assert_array_equal(image, pixels[: len(wanted)])
    (note,) = source.notes()
    assert "band 4 is tagged alpha, but " in note
    assert "values occur in it" in note
    assert "it is taken as image data, not as transparency" in note
    assert source.validity == ("all pixels" if nodata is None else "NoData 0")


def test_the_tiles_of_a_mosaic_are_decided_together(tmp_path):
    """One of them shows only water, where near infrared is 0."""
    water = noise(4)
    water[3] = 0
    paths = [
        write(tmp_path / f"{i}.tif", p, photometric=None) for i, p in enumerate((water, noise(4)))
    ]
    source = Source(paths, RGB)
    assert source.validity == "all pixels"
    assert read_all(source)[1].all()


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 2, 0)])
@pytest.mark.parametrize("photometric", [None, "minisblack"])
@pytest.mark.parametrize("wanted", [RGB, RGBN])
def test_near_infrared_first_is_noticed(tmp_path, order, photometric, wanted):
    path = write(tmp_path / "in.tif", land()[list(order)], photometric=photometric)
    if photometric and wanted == RGB:
        with pytest.raises(UserError, match="red and green and blue is not clear"):
            Source([path], wanted)
    elif order[0] == 0:
        bands = Source([path], wanted).bands
        assert all(f"{name} {number}" in bands for number, name in enumerate(wanted, 1))
    else:
        likely, otherwise = ("4,2,3,1", "1,2,3,4") if wanted == RGBN else ("4,2,3", "1,2,3")
        message = (
            rf"band 1 is red, but it looks like near infrared, and band 4 like red .*"
            rf"--bands={likely} if that is so, --bands={otherwise} if not"
        )
        with pytest.raises(UserError, match=message):
            Source([path], wanted)
        numbers = tuple(map(int, likely.split(",")))
        np.testing.assert_array_equal(
            read_all(Source([path], wanted, numbers))[0], land()[: len(wanted)]
        )


def test_descriptions_that_are_not_utf8(tmp_path):
    path = tmp_path / "in.tif"
    write(path, noise(3), descriptions=["é" * 8, "", ""])
    path.write_bytes(path.read_bytes().replace("é".encode() * 8, b"\xe9" * 16))
    assert Source([str(path)], RGB).bands == "red 1, green 2, blue 3 (position)"
