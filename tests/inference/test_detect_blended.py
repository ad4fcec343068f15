"""Blending of overlapping tiles, and test-time augmentation."""

import numpy as np
import pytest
from detecting import (
    MARGIN,
    TILE,
    detect,
    in_batches,
    one_by_one,
    patches,
    read,
    tile_by_tile,
    write,
)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """96 x 130 pixels: several tiles on each axis, the outer ones exceeding the raster."""
    pixels = patches(96, 130)
    return write(tmp_path_factory.mktemp("large") / "large.tif", pixels), pixels


def steps(probabilities, axis, at):
    """Ratio of the mean difference between neighbours across some borders to that elsewhere."""
    difference = np.abs(np.diff(probabilities.astype(float), axis=axis)).mean((0, 3 - axis))
    across = np.isin(np.arange(1, len(difference) + 1), at)
    return difference[across].mean() / difference[~across].mean()


def test_hann_has_no_step_at_tile_borders(model, tmp_path):
    path = write(tmp_path / "in.tif", patches(200, 220, side=1))
    # With this margin, borders fall on all phases of the network's strides, which are visible.
    margin = 11
    core = TILE - 2 * margin
    for blend in ("crop", "hann"):
        output = tmp_path / f"{blend}.tif"
        detect(model, path, output, blend=blend, margin=margin, probabilities=True)
    cropped = read(tmp_path / "crop_probabilities.tif")
    blended = read(tmp_path / "hann_probabilities.tif")
    for axis, length in ((1, 200), (2, 220)):
        spare = -(-(length - 2 * margin) // core) * core + 2 * margin - length
        cores = np.arange(core + margin, length + spare - margin, core) - spare // 2
        ends_of_tiles = np.concatenate([cores - margin, cores + margin])
        assert steps(cropped, axis, cores) > 3
        assert steps(blended, axis, cores) < 1.3
        assert steps(blended, axis, ends_of_tiles) < 1.3


def test_hann_is_the_weighted_mean_of_plain_tiles(model, large, tmp_path):
    path, pixels = large
    detect(model, path, tmp_path / "map.tif", blend="hann", probabilities=True)
    height, width = pixels.shape[1:]
    core = TILE - 2 * MARGIN
    rise = np.sin(np.pi * (np.arange(TILE) + 0.5) / TILE) ** 2
    total = np.zeros((height + 2 * TILE, width + 2 * TILE, 13))
    weights = np.zeros((height + 2 * TILE, width + 2 * TILE, 1))
    starts = [
        range(-((-(-(n - 2 * MARGIN) // core) * core + 2 * MARGIN - n) // 2), n - 2 * MARGIN, core)
        for n in (height, width)
    ]
    padded = np.moveaxis(np.pad(pixels, [(0, 0), (TILE, TILE), (TILE, TILE)], "symmetric"), 0, -1)
    corners = [(top, left) for top in starts[0] for left in starts[1]]
    windows = [np.s_[y + TILE : y + 2 * TILE, x + TILE : x + 2 * TILE] for y, x in corners]
    tiles = in_batches(model, [padded[window] for window in windows])
    for corner, window, of_tile in zip(corners, windows, tiles, strict=True):
        sides = []
        for start, along in zip(corner, starts, strict=True):
            side = rise.copy()
            if start == along[0]:
                side[: TILE // 2] = 1
            if start == along[-1]:
                side[TILE // 2 :] = 1
            sides.append(side)
        weight = np.outer(*sides)[..., None]
        total[window] += weight * of_tile
        weights[window] += weight
    inside = np.s_[TILE:-TILE, TILE:-TILE]
    np.testing.assert_allclose(weights[inside], 1, atol=1e-6)
    mean = total[inside]
    found = np.moveaxis(read(tmp_path / "map_probabilities.tif"), 0, -1)
    np.testing.assert_allclose(found, 255 * mean, atol=0.51)
    assert (read(tmp_path / "map.tif")[0] == mean.argmax(-1) + 1).mean() > 0.999


# Larger tiles, which take little longer than tiles of 64 pixels.
TTA = {"tta": True, "probabilities": True, "tile": 128, "margin": 16, "batch_size": 1}


@pytest.fixture(scope="module")
def averaged(model, tmp_path_factory):
    """130 x 140 pixels detected with --tta: the pixels, and the folder of the results."""
    folder = tmp_path_factory.mktemp("averaged")
    pixels = patches(130, 140)
    path = write(folder / "in.tif", pixels)
    for blend in ("crop", "hann"):
        detect(model, path, folder / f"{blend}.tif", blend=blend, **TTA)
    return pixels, folder


@pytest.mark.parametrize(
    ("blend", "turn"),
    [
        ("crop", lambda x: x[:, :, ::-1]),
        ("crop", lambda x: np.rot90(x, axes=(1, 2))),
        ("hann", lambda x: np.rot90(x, axes=(1, 2))[:, ::-1]),
    ],
    ids=["crop flipped", "crop turned", "hann transposed"],
)
def test_with_tta_a_turned_raster_gives_the_turned_result(model, averaged, tmp_path, blend, turn):
    pixels, folder = averaged
    path = write(tmp_path / "in.tif", np.ascontiguousarray(turn(pixels)))
    detect(model, path, tmp_path / f"{blend}.tif", blend=blend, **TTA)
    for product in (f"{blend}.tif", f"{blend}_probabilities.tif"):
        np.testing.assert_array_equal(read(tmp_path / product), turn(read(folder / product)))


def test_tta_is_the_mean_of_eight_views(averaged, model):
    pixels, folder = averaged
    mean = np.zeros((*pixels.shape[1:], 13))
    for turns in range(4):
        for flip in (1, -1):
            turned = np.rot90(pixels, turns, (1, 2))[:, :, ::flip]
            of_view = tile_by_tile(model, turned, 128, 16, one_by_one)
            mean += np.rot90(of_view[:, ::flip], -turns) / 8
    found = np.moveaxis(read(folder / "crop_probabilities.tif"), 0, -1)
    np.testing.assert_allclose(found, 255 * mean, atol=0.51)
    ordered = np.sort(mean, -1)
    clear = ordered[..., -1] - ordered[..., -2] > 1e-5  # with equal votes, either class is right
    assert clear.mean() > 0.95
    classes = read(folder / "crop.tif")[0]
    np.testing.assert_array_equal(classes[clear], mean.argmax(-1)[clear] + 1)
