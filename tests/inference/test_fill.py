"""Filling of the invalid pixels of a tile."""

import numpy as np
import pytest

from flair_jax.inference.fill import fill_invalid


def test_a_valid_tile_is_returned_as_it_is():
    image = np.ones((4, 4, 3), np.uint8)
    assert fill_invalid(image, np.ones((4, 4), bool)) is image


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_invalid_pixels_get_the_value_of_a_nearest_valid_one(share):
    rng = np.random.default_rng(0)
    valid = rng.random((24, 31)) < share
    # A value for each pixel tells where it came from.
    image = np.stack(np.divmod(np.arange(24 * 31).reshape(24, 31), 31), -1).astype(np.uint8)
    filled = fill_invalid(image, valid).astype(int)
    np.testing.assert_array_equal(filled[valid], image[valid])
    assert valid[filled[..., 0], filled[..., 1]].all()
    rows, columns = np.indices(valid.shape)
    distance = (filled[..., 0] - rows) ** 2 + (filled[..., 1] - columns) ** 2
    known = np.argwhere(valid)
    shortest = ((known[:, None, None] - np.indices(valid.shape).transpose(1, 2, 0)) ** 2).sum(-1)
    np.testing.assert_array_equal(distance, shortest.min(0))
