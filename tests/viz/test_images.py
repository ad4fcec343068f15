import io

import numpy as np
import pytest
from PIL import Image

from flair_jax.data.bands import BANDS
from flair_jax.data.nomenclature import BASELINE
from flair_jax.viz import images


def test_composites_take_their_bands_by_name():
    image = np.arange(20, dtype=np.uint8).reshape(2, 2, 5)
    colour = images.composite(image, BANDS, "colour")
    np.testing.assert_array_equal(colour, image[..., :3])
    infrared = images.composite(image, BANDS, "infrared")
    np.testing.assert_array_equal(infrared, image[..., [3, 0, 1]])
    reordered = images.composite(image[..., ::-1], BANDS[::-1], "infrared")
    np.testing.assert_array_equal(reordered, infrared)
    assert images.composite(image[..., :3], BANDS[:3], "infrared") is None


def test_paint_and_overlay():
    labels = np.array([[0, 4], [12, 255]])
    painted = images.paint(labels, BASELINE)
    assert painted.tolist() == [
        [[0xDB, 0x0E, 0x9A], [0x15, 0x53, 0xAE]],
        [[0, 0, 0], list(images.NOTHING)],
    ]
    mixed = images.overlay(np.full((2, 2, 3), 100, np.uint8), labels, BASELINE, opacity=0.5)
    assert mixed[0, 0].tolist() == [160, 57, 127]  # rounded to even
    assert mixed[1, 1].tolist() == [100, 100, 100]


def test_grey_is_clipped_and_rounded():
    assert images.grey(np.array([[-1, 0.5, 2]]))[0, :, 0].tolist() == [0, 128, 255]


def test_the_legend_has_a_row_a_class_and_stands_at_the_right():
    whole = images.legend(BASELINE)
    some = images.legend(BASELINE, [4, 0, 4])
    assert whole.shape[0] - some.shape[0] == 11 * 24
    assert some[22, 20].tolist() == [0xDB, 0x0E, 0x9A]
    assert some[46, 20].tolist() == [0x15, 0x53, 0xAE]
    image = np.zeros((7, 9, 3), np.uint8)
    both = images.with_legend(image, BASELINE, [0, 4])
    assert both.shape == (some.shape[0], 9 + some.shape[1], 3)
    assert not both[:7, :9].any()
    assert (both[7:, :9] == 255).all()


def test_no_data_is_in_the_legend():
    plain, with_nothing = images.legend(BASELINE, [4]), images.legend(BASELINE, [4], nothing=True)
    assert with_nothing.shape[0] - plain.shape[0] == 24
    assert with_nothing[46, 20].tolist() == list(images.NOTHING)


@pytest.mark.parametrize(
    ("width", "length"),
    [(3, 1), (8.9, 2), (100, 20), (299, 50), (300, 100), (5e5, 1e5), (0.02, 0.005)],
)
def test_the_scale_bar_has_a_round_length(width, length):
    assert images.bar_length(width) == pytest.approx(length)


@pytest.mark.parametrize("metres", [0.2, 1.0, 37.0])
def test_the_scale_bar_is_as_long_as_it_says(metres):
    image = np.full((40, 400, 3), 9, np.uint8)
    shown = images.with_scale_bar(image, metres)
    np.testing.assert_array_equal(shown[:40], image)
    middle = shown[40 + images.TITLE_HEIGHT // 2]
    end = 10 + round(images.bar_length(400 * metres) / metres)
    assert (middle[10:end] == 0).all()
    assert (middle[end : end + 9] == 255).all()


def test_a_title_stands_above_and_widens_a_narrow_image():
    image = np.zeros((5, 9, 3), np.uint8)
    titled = images.with_title(image, "Land cover: a long name")
    assert titled.shape[0] == images.TITLE_HEIGHT + 5
    assert titled.shape[1] > 150
    np.testing.assert_array_equal(titled[-5:, :9], image)
    assert (titled[-5:, 9:] == 255).all()
    assert (titled[: images.TITLE_HEIGHT] < 100).any()


def test_png_is_read_back_as_written(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    images.write_png(tmp_path / "a.png", image)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), image)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(images.png(image)))), image)
