import jax
import numpy as np
import pytest

from flair_jax.config import default
from flair_jax.training.augmentation import (
    augment,
    augment_radiometry,
    radiometric_bands,
    random_crop,
)

HALF = {"vertical_flip": 0.5, "horizontal_flip": 0.5, "rotation": 0.5}


def images(n, size=8):
    image = np.random.default_rng(0).integers(0, 256, (n, size, size, 5), dtype=np.uint8)
    return image, image[..., 0].copy()


def symmetry(before, after):
    """Which of the square's eight symmetries turned one (S, S) array into another."""
    for number in range(8):
        turned = np.rot90(before[::-1] if number >= 4 else before, number % 4)
        if np.array_equal(turned, after):
            return number
    raise AssertionError("not a symmetry of the square")


def reference_distribution(probability):
    """Shares of the eight symmetries, by following each of the reference's choices."""
    probe = np.arange(9).reshape(3, 3)
    shares = np.zeros(8)
    for vertical in (0, 1):
        for horizontal in (0, 1):
            for turns in (None, 0, 1, 2, 3):
                x = probe[::-1] if vertical else probe
                x = x[:, ::-1] if horizontal else x
                x = np.rot90(x, turns or 0)
                chance = 1.0
                for happens, key in ((vertical, "vertical_flip"), (horizontal, "horizontal_flip")):
                    chance *= probability[key] if happens else 1 - probability[key]
                rotation = probability["rotation"]
                chance *= 1 - rotation if turns is None else rotation / 4
                shares[symmetry(probe, x)] += chance
    return shares


@pytest.mark.parametrize(
    "probability", [HALF, {"vertical_flip": 0.1, "horizontal_flip": 0.0, "rotation": 0.9}]
)
def test_augmentation_draws_the_symmetries_as_the_reference_does(probability):
    n = 4000
    image, mask = images(n)
    after, mask_after = map(
        np.asarray,
        jax.jit(lambda k: augment(k, image, mask, probability))(jax.random.key(1)),
    )
    np.testing.assert_array_equal(after[..., 0], mask_after)  # image and mask alike
    counts = np.zeros(8)
    for i in range(n):
        number = symmetry(mask[i], mask_after[i])
        counts[number] += 1
    expected = reference_distribution(probability)
    std = np.sqrt(expected * (1 - expected) / n)
    assert (np.abs(counts / n - expected) <= 4 * std + 1e-12).all()


def test_augmentation_needs_squares():
    with pytest.raises(ValueError, match=r"square images, not \(8, 6\)"):
        augment(jax.random.key(0), np.zeros((1, 8, 6, 5)), np.zeros((1, 8, 6)), HALF)


def test_random_crop_cuts_image_and_mask_alike():
    image, mask = images(200)
    cut, cut_mask = map(np.asarray, random_crop(jax.random.key(0), image, mask, 5))
    assert cut.shape == (200, 5, 5, 5)
    np.testing.assert_array_equal(cut[..., 0], cut_mask)
    corners = set()
    for i in range(200):
        found = [
            (top, left)
            for top in range(4)
            for left in range(4)
            if np.array_equal(mask[i, top : top + 5, left : left + 5], cut_mask[i])
        ]
        assert len(found) == 1
        corners.add(found[0])
    assert len(corners) == 16  # every corner occurs


def test_whole_patch_is_its_own_crop():
    image, mask = images(2)
    cut, _ = random_crop(jax.random.key(0), image, mask, 8)
    np.testing.assert_array_equal(cut, image)


CHANGED = (True, True, True, True, False)
LIMITS = {"brightness": 0.1, "contrast": 0.2, "gamma": 0.3}
OFF = dict.fromkeys(LIMITS, 0.0)


def test_radiometry_without_limits_changes_nothing():
    image = images(3)[0]
    new = augment_radiometry(jax.random.key(0), image, CHANGED, OFF)
    assert new.dtype == np.float32
    np.testing.assert_allclose(new, image, atol=1e-4)


@pytest.mark.parametrize("name", LIMITS)
def test_each_change_by_its_formula(name):
    image = images(200)[0]
    new = np.asarray(
        augment_radiometry(jax.random.key(1), image, CHANGED, OFF | {name: LIMITS[name]})
    )
    values, limit = image[..., :4].astype(float), LIMITS[name]
    inside = (new[..., :4] > 0.5) & (new[..., :4] < 254.5) & (values > 0) & (values < 255)
    with np.errstate(all="ignore"):
        if name == "brightness":
            drawn = (new[..., :4] - values) / 255
        elif name == "contrast":
            mean = values.mean((1, 2), keepdims=True)
            drawn = np.where(
                abs(values - mean) > 5, np.log((new[..., :4] - mean) / (values - mean)), np.nan
            )
        else:
            drawn = np.log(np.log(new[..., :4] / 255) / np.log(values / 255))
    drawn = np.where(inside, drawn, np.nan)
    low, high = np.nanmin(drawn, (1, 2)), np.nanmax(drawn, (1, 2))
    # One number for a band of an image, and another for every other.
    np.testing.assert_allclose(low, high, atol=2e-3)
    assert np.unique(np.round(low, 6)).size > 0.98 * low.size
    assert abs(low).max() <= limit + 2e-3
    assert abs(np.mean(low)) < 0.1 * limit
    assert np.std(low) == pytest.approx(limit / np.sqrt(3), rel=0.1)


def test_radiometry_leaves_the_height_and_stays_in_range():
    image = images(20)[0]
    limits = {"brightness": 1.0, "contrast": 2.0, "gamma": 2.0}
    new = np.asarray(augment_radiometry(jax.random.key(2), image, CHANGED, limits))
    np.testing.assert_array_equal(new[..., 4], image[..., 4])
    assert (new[..., :4].min(), new[..., :4].max()) == (0, 255)


def test_bands_that_are_no_radiometry_by_their_names():
    names = ["red", "height", "dsm", "nDSM_metres", "band_7", "elevation.1", "demand", "heights"]
    words = default().radiometry.keep
    assert radiometric_bands(names, words) == ["red", "band_7", "demand", "heights"]
    assert radiometric_bands(names, ("band", "7")) == [name for name in names if name != "band_7"]


def test_radiometry_leaves_pixels_without_data():
    """Padding does not become bright, and does not count in the mean."""
    image = np.maximum(images(20)[0], 1)
    padded = np.pad(image, ((0, 0), (0, 8), (0, 0), (0, 0)))
    limits = {"brightness": 0.1, "contrast": 1.0, "gamma": 0.5}
    whole, part = (
        augment_radiometry(jax.random.key(3), x, CHANGED, limits) for x in (image, padded)
    )
    np.testing.assert_array_equal(part[:, 8:], 0)
    np.testing.assert_allclose(part[:, :8], whole, atol=1e-3)
