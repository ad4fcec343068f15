"""Layout and blending of tiles; checks of the options."""

import numpy as np
import pytest

from flair_jax.errors import UserError
from flair_jax.inference.options import Options
from flair_jax.inference.tiles import Axis, Blender, Grid

LENGTHS = [1, 2, 31, 32, 33, 64, 100, 257]


@pytest.mark.parametrize("blended", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_every_pixel_is_completed_once(length, blended):
    axis = Axis(length, tile=64, margin=16, blended=blended)
    completed = np.concatenate([np.arange(*axis.done(k)) for k in range(axis.count)])
    np.testing.assert_array_equal(completed, np.arange(length))
    for k in range(axis.count):
        begin, end = axis.done(k)
        np.testing.assert_array_equal(
            axis.pixels(k)[begin - axis.start(k) : end - axis.start(k)], np.arange(begin, end)
        )


@pytest.mark.parametrize("length", LENGTHS)
def test_pixels_are_those_of_symmetric_padding(length):
    axis = Axis(length, tile=64, margin=16, blended=False)
    padded = np.pad(np.arange(length), 200, mode="symmetric")
    for k in range(axis.count):
        begin = 200 + axis.start(k)
        np.testing.assert_array_equal(axis.pixels(k), padded[begin : begin + 64])


def test_tiles_of_an_even_length_are_flipped_with_it():
    axis = Axis(100, tile=64, margin=16, blended=False)
    assert [axis.start(k) for k in range(axis.count)] == [-30, 2, 34, 66]
    for k in range(4):
        np.testing.assert_array_equal(99 - axis.pixels(k)[::-1], axis.pixels(3 - k))


@pytest.mark.parametrize(("tile", "margin"), [(64, 16), (64, 8), (96, 24), (64, 0)])
def test_weights_sum_to_one_over_the_raster(tile, margin):
    axis = Axis(250, tile, margin, blended=True)
    total = np.zeros(250 + 4 * tile)
    for k in range(axis.count):
        begin = axis.start(k) + 2 * tile
        total[begin : begin + tile] += axis.weights(k)
    np.testing.assert_allclose(total[2 * tile : 2 * tile + 250], 1, atol=1e-6)
    np.testing.assert_array_equal(axis.weights(1), axis.weights(1)[::-1])
    if (tile, margin) == (64, 16):  # a full Hann window
        hann = np.sin(np.pi * (np.arange(64) + 0.5) / 64) ** 2
        np.testing.assert_allclose(axis.weights(1), hann, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(100, 60), (33, 200), (5, 7)])
def test_the_blender_sums_overlapping_tiles(height, width):
    grid = Grid.over(height, width, tile=32, margin=6, blended=True)
    rng = np.random.default_rng(0)
    total = np.zeros((height + 64, width + 64, 3), np.int32)
    found = np.zeros((height, width, 3), np.int32)
    blender = Blender(grid, 3)
    skipped = (1, 1)
    for row in range(grid.vertical.count):
        for column in range(grid.horizontal.count):
            scores = rng.integers(0, 1000, (32, 32, 3), dtype=np.int32)
            if (row, column) == skipped:
                assert blender.add(row, column, None) is None
                continue
            top, left = grid.vertical.start(row) + 32, grid.horizontal.start(column) + 32
            total[top : top + 32, left : left + 32] += scores
            done = blender.add(row, column, scores.copy())
            found[grid.done(row, column)] = done[grid.within_tile(row, column)]
    total = total[32 : 32 + height, 32 : 32 + width]
    if grid.vertical.count > 1 and grid.horizontal.count > 1:  # the pixels of the skipped tile
        top, left = grid.vertical.start(1), grid.horizontal.start(1)
        hole = np.s_[max(top, 0) : top + 32, max(left, 0) : left + 32]
        total[hole], found[hole] = 0, 0
    np.testing.assert_array_equal(found, total)


@pytest.mark.parametrize(
    ("options", "size", "expected"),
    [
        ({}, (3000, 3000), (1024, 128)),
        ({}, (100, 60), (384, 128)),  # 100 + 2 x 128 pixels, up to a multiple of 32; at least 512
        ({"tile": 64}, (3000, 3000), (64, 16)),
        ({"tile": 512}, (1, 1), (512, 128)),
        ({"margin": 0}, (1, 1), (32, 0)),
        ({"blend": "hann"}, (1, 1), (512, 128)),
    ],
)
def test_default_tiles(options, size, expected):
    tile, margin = Options(**options).tile_and_margin(*size)
    assert margin == expected[1]
    assert tile == max(expected[0], 4 * margin)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 100}, r"--tile=100 is not a multiple of 32: set it to 96"),
        ({"tile": 64, "margin": 32}, r"--margin=32 must be less than half the tile"),
        ({"tile": 64, "margin": 20, "blend": "hann"}, r"at most a quarter of \(--blend=hann\)"),
        ({"blend": "mean"}, r"--blend='mean' is unknown: crop or hann"),
        ({"first_class": 2}, r"--first_class=2 is neither 0 nor 1"),
        ({"resolution": -1}, r"--resolution=-1"),
    ],
)
def test_invalid_options(options, message):
    def check():
        Options(**options).check()
        Options(**options).tile_and_margin(500, 500)

    with pytest.raises(UserError, match=message):
        check()
