"""Layout and blending of tiles; checks of the options."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flair_jax.errors import UserError
from flair_jax.inference import tile_size
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
    assert [axis.start(k) for k in range(axis.count)] == [-14, 18, 50]
    for k in range(3):
        np.testing.assert_array_equal(99 - axis.pixels(k)[::-1], axis.pixels(2 - k))


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
    grid = Grid.over(height, width, (32, 64), margin=6, blended=True)
    rng = np.random.default_rng(0)
    total = np.zeros((height + 128, width + 128, 3), np.int32)
    found = np.zeros((height, width, 3), np.int32)
    blender = Blender(grid, 3)
    skipped = (1, 1)
    for row in range(grid.vertical.count):
        for column in range(grid.horizontal.count):
            scores = rng.integers(0, 1000, (32, 64, 3), dtype=np.int32)
            if (row, column) == skipped:
                assert blender.add(row, column, None) is None
                continue
            top, left = grid.vertical.start(row) + 64, grid.horizontal.start(column) + 64
            total[top : top + 32, left : left + 64] += scores
            done = blender.add(row, column, scores.copy())
            found[grid.done(row, column)] = done[grid.within_tile(row, column)]
    total = total[64 : 64 + height, 64 : 64 + width]
    if grid.vertical.count > 1 and grid.horizontal.count > 1:  # the pixels of the skipped tile
        top, left = grid.vertical.start(1), grid.horizontal.start(1)
        hole = np.s_[max(top, 0) : top + 32, max(left, 0) : left + 64]
        total[hole], found[hole] = 0, 0
    np.testing.assert_array_equal(found, total)


@pytest.mark.parametrize(
    ("options", "size", "tile", "margin", "count"),
    [
        ({}, (3072, 3072), (1664, 1664), 128, 4),
        ({}, (100, 60), (256, 256), 128, 1),  # reflected up to 256 pixels
        ({}, (718, 1210), (736, 1216), 128, 1),  # one tile, up to a multiple of 32
        ({}, (60, 40_000), (256, 10_208), 128, 4),
        ({"tta": True}, (60, 5_000), (576, 576), 128, 15),  # square
        ({"margin": 0}, (4096, 4096), (512, 4096), 0, 8),
        ({"blend": "hann"}, (3072, 3072), (1664, 1664), 128, 4),
        ({"tile": 64}, (3000, 3000), (64, 64), 16, 93**2),
        ({"tile": 512}, (1, 1), (512, 512), 128, 1),
    ],
)
def test_chosen_tiles(options, size, tile, margin, count):
    found = Options(**options).tiles(*size, pixels=3 << 20, batch=1)
    assert found == (tile, margin)
    assert Grid.over(*size, *found, blended=False).count == count


@settings(max_examples=50, deadline=None)
@given(
    size=st.tuples(st.integers(1, 6000), st.integers(1, 6000)),
    margin=st.sampled_from([0, 16, 100, 128]),
    batch=st.sampled_from([1, 4]),
    flags=st.tuples(st.booleans(), st.booleans()),
)
def test_chosen_tiles_fit_and_are_the_best(size, margin, batch, flags):
    """No tile with fewer computed pixels is found by trying all of them."""
    blended, square = flags
    limit = 600_000
    tile = tile_size.choose(
        *size, margin, pixels=limit, batch=batch, blended=blended, square=square
    )
    least = max(256, -(-(4 if blended else 3) * margin // 32) * 32)

    def computed(height, width):
        grid = Grid.over(*size, (height, width), margin, blended)
        columns = -(-grid.horizontal.count // batch) * batch
        return grid.vertical.count * columns * height * width

    assert tile[0] % 32 == tile[1] % 32 == 0
    assert tile[0] * tile[1] <= limit
    assert not square or tile[0] == tile[1]
    for side, length in zip(tile, size, strict=True):
        assert side >= length or side >= (4 if blended else 3) * margin
    of_height, of_width = (
        [side for side in range(256, 2400, 32) if side >= min(least, max(256, length))]
        for length in size
    )
    fitting = [tile for tile in itertools.product(of_height, of_width) if np.prod(tile) <= limit]
    if fitting and not square:
        assert computed(*tile) <= min(itertools.starmap(computed, fitting))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 100}, r"--tile=100 is not a multiple of 32: set it to 96"),
        ({"tile": 64, "margin": 32}, r"--margin=32 must be less than half the tile"),
        ({"tile": 64, "margin": 20, "blend": "hann"}, r"at most a quarter of \(--blend=hann\)"),
        ({"blend": "mean"}, r"--blend='mean' is unknown: crop or hann"),
        ({"first_class": 2}, r"--first_class=2 is neither 0 nor 1"),
        ({"resolution": -1}, r"--resolution=-1"),
        ({"memory": -1}, r"--memory=-1 is not a number of GB"),
        ({"memory": 4, "tile": 512}, r"--memory chooses the tiles, and --tile gives them"),
        ({}, r"--memory is too small for the smallest tile, 384 x 384 pixels with a margin"),
        ({"engine": "torch"}, r"--engine='torch' is unknown: auto or jax or"),
        ({"precision": "float16"}, r"--precision='float16' is unknown: float32 or bfloat16"),
    ],
)
def test_invalid_options(options, message):
    def check():
        Options(**options).check()
        Options(**options).tiles(500, 500, pixels=100_000, batch=1)

    with pytest.raises(UserError, match=message):
        check()
