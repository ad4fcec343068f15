import io

import numpy as np
from PIL import Image

from flair_jax import pictures
from flair_jax.classes import BASELINE
from flair_jax.model_card import BANDS


def test_composites_take_their_bands_by_name():
    image = np.arange(20, dtype=np.uint8).reshape(2, 2, 5)
    colour = pictures.composite(image, BANDS, "colour")
    np.testing.assert_array_equal(colour, image[..., :3])
    infrared = pictures.composite(image, BANDS, "infrared")
    np.testing.assert_array_equal(infrared, image[..., [3, 0, 1]])
    reordered = pictures.composite(image[..., ::-1], BANDS[::-1], "infrared")
    np.testing.assert_array_equal(reordered, infrared)
    assert pictures.composite(image[..., :3], BANDS[:3], "infrared") is None


def test_paint_and_overlay():
    labels = np.array([[0, 4], [12, 255]])
    painted = pictures.paint(labels, BASELINE)
    assert painted.tolist() == [
        [[0xDB, 0x0E, 0x9A], [0x15, 0x53, 0xAE]],
        [[0, 0, 0], list(pictures.NOTHING)],
    ]
    mixed = pictures.overlay(np.full((2, 2, 3), 100, np.uint8), labels, BASELINE, opacity=0.5)
    assert mixed[0, 0].tolist() == [160, 57, 127]  # rounded to even
    assert mixed[1, 1].tolist() == [100, 100, 100]


def test_grey_is_clipped_and_rounded():
    assert pictures.grey(np.array([[-1, 0.5, 2]]))[0, :, 0].tolist() == [0, 128, 255]


def test_the_legend_has_a_row_a_class_and_stands_at_the_right():
    whole = pictures.legend(BASELINE)
    some = pictures.legend(BASELINE, [4, 0, 4])
    assert whole.shape[0] - some.shape[0] == 11 * 24
    assert some[22, 20].tolist() == [0xDB, 0x0E, 0x9A]
    assert some[46, 20].tolist() == [0x15, 0x53, 0xAE]
    picture = np.zeros((7, 9, 3), np.uint8)
    both = pictures.with_legend(picture, BASELINE, [0, 4])
    assert both.shape == (some.shape[0], 9 + some.shape[1], 3)
    assert not both[:7, :9].any()
    assert (both[7:, :9] == 255).all()


def test_png_is_read_back_as_written(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    pictures.write_png(tmp_path / "a.png", picture)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), picture)
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(pictures.png(picture)))), picture
    )
