"""Merging of small patches, against a plain computation with sets of pixels."""

import hypothesis
import numpy as np
import pytest
import rasterio
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rasterio.crs import CRS
from rasterio.transform import Affine, from_origin
from scipy import ndimage

from flair_jax.errors import UserError
from flair_jax.inference import mapping_unit
from flair_jax.inference.georeference import Georeference

# Pixels of 2 x 3 m; this projection keeps areas.
PLACE = Georeference(CRS.from_epsg(3035), from_origin(4e6, 3e6, 2, 3))


def merged(folder, pixels, min_area, place=PLACE):
    """The classes after merging, and the number of merged patches."""
    height, width = pixels.shape
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": height, "width": width}
    with rasterio.open(folder / "classes.tif", "w", **profile) as raster:
        raster.write(pixels.astype(np.uint8), 1)
    target = folder / "merged.tif"
    count = mapping_unit.merge_small_patches(folder / "classes.tif", target, min_area, place)
    with rasterio.open(target) as raster:
        return raster.read(1), count


def plainly_merged(pixels, min_area, width=2.0, height=3.0):
    """The same, patch by patch."""
    patches, values = {}, {}
    labels = np.zeros(pixels.shape, int)
    for position in np.ndindex(pixels.shape):
        if not labels[position]:
            of_value, _ = ndimage.label(pixels == pixels[position])
            number = len(patches) + 1
            labels[of_value == of_value[position]] = number
            patches[number] = set(zip(*np.nonzero(labels == number), strict=True))
            values[number] = pixels[position]
    done = set()
    count = 0
    while True:
        small = [
            n for n in patches
            if values[n] and len(patches[n]) * width * height < min_area and n not in done
        ]  # fmt: skip
        if not small:
            break
        patch = min(small, key=lambda n: (len(patches[n]), n))
        around = {}
        for row, column in patches[patch]:
            for down, right, side in (
                (0, 1, height),
                (0, -1, height),
                (1, 0, width),
                (-1, 0, width),
            ):
                beside = (row + down, column + right)
                for n, members in patches.items():
                    if n != patch and values[n] and beside in members:
                        around[n] = around.get(n, 0) + side
        if not around:
            done.add(patch)
            continue
        best = max(around, key=lambda n: (around[n], len(patches[n]), -n))
        for n in [patch, *(n for n in around if n != best and values[n] == values[best])]:
            patches[best] |= patches.pop(n)
        count += 1
    result = np.zeros_like(pixels)
    for n, members in patches.items():
        result[tuple(zip(*members, strict=True))] = values[n]
    return result, count


CLASSES = arrays.arrays(
    np.uint8,
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    elements=st.integers(0, 3),
)


@hypothesis.given(CLASSES, st.sampled_from([6.5, 13, 25, 60, 1e4]), st.sampled_from([1, 2, 4, 256]))
@hypothesis.settings(
    max_examples=150, deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_patches_are_merged_as_by_plain_means(tmp_path, pixels, min_area, rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapping_unit, "_ROWS", rows)
        found, count = merged(tmp_path, pixels, min_area)
    expected, expected_count = plainly_merged(pixels, min_area)
    np.testing.assert_array_equal(found, expected)
    assert count == expected_count
    np.testing.assert_array_equal(found == 0, pixels == 0)
    again, count = merged(tmp_path, found, min_area)
    np.testing.assert_array_equal(again, found)
    assert count == 0


def test_the_longest_border_decides_and_not_the_largest_neighbour(tmp_path):
    pixels = np.full((9, 9), 1)
    pixels[2:6, 0:4] = 2  # the smaller neighbour, on three sides of the patch
    pixels[3:5, 0:2] = 3
    pixels[0:2, 0:4] = 1
    found, count = merged(tmp_path, pixels, 6 * 5)
    expected = pixels.copy()
    expected[3:5, 0:2] = 2
    np.testing.assert_array_equal(found, expected)
    assert count == 1
    # What GDAL's sieve does with a patch between a large and a small neighbour.
    pixels = np.full((6, 12), 1)
    pixels[:, :3] = 2
    pixels[2:4, 3:5] = 3
    pixels[1, 3:5] = pixels[4, 3:5] = 2
    pixels[:, 5] = np.where(np.arange(6) == 2, 1, 2)
    found, _ = merged(tmp_path, pixels, 6 * 5)
    assert (found[2:4, 3:5] == 2).all()
    sieved = rasterio.features.sieve(pixels.astype(np.uint8), 5)
    assert (sieved[2:4, 3:5] == 1).all()


def test_sides_count_in_metres(tmp_path):
    pixels = np.array([[1, 1, 1, 1, 1], [2, 2, 3, 2, 2], [1, 1, 1, 1, 1]])
    # A side of 2 m to each patch of class 1, of 3 m to each of class 2.
    found, _ = merged(tmp_path, pixels, 6.5)
    assert found[1, 2] == 2
    wide = Georeference(PLACE.crs, from_origin(4e6, 3e6, 3, 2))
    found, _ = merged(tmp_path, pixels, 6.5, wide)
    assert found[1, 2] == 1


def test_areas_are_on_the_ground(tmp_path):
    # In Web Mercator at 60 degrees, 100 square metres are 25 on the ground.
    mercator = Georeference(CRS.from_epsg(3857), from_origin(0, 8_399_738, 10, 10))
    pixels = np.ones((8, 8), int)
    pixels[3, 3] = 2
    for min_area, kept in ((24.5, 2), (25.5, 1)):
        found, _ = merged(tmp_path, pixels, min_area, mercator)
        assert found[3, 3] == kept


def test_without_a_size_there_is_no_minimum(tmp_path):
    with pytest.raises(UserError, match="--min_area needs the ground sample distance"):
        merged(tmp_path, np.ones((2, 2)), 5, Georeference(None, Affine.identity()))


def test_too_detailed_a_map_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(mapping_unit, "MOST_RUNS", 3)
    with pytest.raises(UserError, match="more than 3 runs"):
        merged(tmp_path, np.array([[1, 2], [2, 1]]), 5)
