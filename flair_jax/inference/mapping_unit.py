"""Minimum mapping unit: small patches are merged into the neighbour with the longest border.

A patch is a region of one class whose pixels share sides. The raster is read twice, some rows at a
time. Kept in memory are its runs (pixels of one class next to each other in a row), and how they
touch, so that memory grows with the detail of the map and not with its pixels.
"""

import array
import dataclasses
import heapq
import os
from collections.abc import Iterator

import numpy as np
import rasterio
from rasterio.windows import Window
from scipy import sparse
from scipy.sparse import csgraph

from flair_jax.errors import UserError
from flair_jax.inference.areas import interpolated
from flair_jax.inference.georeference import Georeference

_ROWS = 256  # read at a time
_NOTHING = 0  # the value of pixels without a class
# 60 bytes each are needed in a smooth map, 160 in one of which most is merged.
MOST_RUNS = 100_000_000


def merge_small_patches(
    source: os.PathLike[str],
    target: os.PathLike[str],
    min_area: float,
    georeference: Georeference,
) -> int:
    """Writes a class raster without its small patches.

    The smallest patch is merged first. It takes the class of the neighbour that it shares the
    longest border with; if borders are equally long, of the larger one. What becomes one patch
    by that counts as one from then on. Pixels without a class stay, and a patch that borders on
    nothing else stays, too.

    Args:
        source: classes from 1, 0 for no class, uint8.
        target: the GeoTIFF to write, of the same size and values; without georeferencing.
        min_area: in square metres on the ground.
        georeference: of the raster.

    Returns:
        The number of patches that were merged into others.

    Raises:
        UserError: the size of the pixels is unknown, or the map is too detailed.
    """
    with rasterio.open(source) as raster:
        size = known(georeference.pixel_size(raster.width / 2, raster.height / 2))
        runs = _find_runs(raster, georeference, size)
        patch, patches = _patches(runs)
        merged_to, count = _merge(patches, min_area)
        value_of_run = patches.values[merged_to][patch]
        profile = {
            "driver": "GTiff", "dtype": "uint8", "count": 1, "height": raster.height,
            "width": raster.width, "tiled": True, "compress": "deflate", "zlevel": 1,
            "sparse_ok": True, "bigtiff": "if_safer",
        }  # fmt: skip
        with rasterio.open(target, "w", **profile) as written:
            for window, _, ids, _ in _strips(raster):
                written.write(value_of_run[ids], 1, window=window)
    return count


def known(size: tuple[float, float] | None) -> tuple[float, float]:
    """The ground sample distance; raises a UserError if it is unknown."""
    if size is None:
        raise UserError(
            "--min_area needs the ground sample distance, which is unknown: georeference the "
            "raster, or omit --min_area"
        )
    return size


@dataclasses.dataclass(frozen=True)
class _Runs:
    """Runs of a raster in the order of its pixels, and pairs of them that share a border.

    Attributes:
        values: (runs,) uint8.
        areas: (runs,) float32, square metres.
        pairs: (2, borders) int32, indices of runs.
        lengths: (borders,) float32, metres.
    """

    values: np.ndarray
    areas: np.ndarray
    pairs: np.ndarray
    lengths: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Patches:
    """Patches and their borders.

    Attributes:
        values: (patches,) uint8.
        areas: (patches,) float64, square metres.
        borders: (patches, patches), metres; symmetric.
    """

    values: np.ndarray
    areas: np.ndarray
    borders: sparse.csr_array


def _strips(
    raster: rasterio.DatasetReader,
) -> Iterator[tuple[Window, np.ndarray, np.ndarray, np.ndarray]]:
    """Some rows at a time: their window, values, the run of each pixel, where runs begin (flat)."""
    count = 0
    for top in range(0, raster.height, _ROWS):
        window = Window(0, top, raster.width, min(_ROWS, raster.height - top))
        values = raster.read(1, window=window)
        begins = np.ones(values.shape, bool)
        begins[:, 1:] = values[:, 1:] != values[:, :-1]
        ids = np.cumsum(begins, dtype=np.int32).reshape(values.shape) + np.int32(count - 1)
        starts = np.flatnonzero(begins)
        count += len(starts)
        if count > MOST_RUNS:
            raise UserError(
                f"the map is too detailed for --min_area: it has more than {MOST_RUNS:,} runs of "
                "pixels of one class. The same command with --resume and without --min_area uses "
                "what is computed; or detect on parts of the area"
            )
        yield window, values, ids, starts


def _find_runs(
    raster: rasterio.DatasetReader, georeference: Georeference, size: tuple[float, float]
) -> _Runs:
    values, areas, pairs, lengths = [], [], [], []
    last: tuple[np.ndarray, np.ndarray] | None = None  # values and runs of the row above
    for window, rows, ids, starts in _strips(raster):
        values.append(rows.ravel()[starts])
        edges = np.array([0, window.width, 0, window.width])
        tops = window.row_off + np.array([0, 0, window.height, window.height])
        corners = georeference.pixel_area(edges, tops)
        if corners is None:  # at its edge only
            corners = np.full(4, size[0] * size[1])
        plane = interpolated(corners.reshape(2, 2), window.height, window.width)
        areas.append(np.add.reduceat(plane.ravel(), starts).astype(np.float32))
        # Beside each other: a run and the next one in its row.
        begins = starts[1:][starts[1:] % window.width > 0]
        right = ids.ravel()[begins]
        pairs.append(np.stack([right - 1, right]))
        lengths.append(np.full(len(right), size[1], np.float32))
        # Above each other.
        if last is not None:
            rows, ids = np.vstack([last[0], rows]), np.vstack([last[1], ids])
        last = rows[-1:].copy(), ids[-1:].copy()
        above, below = ids[:-1], ids[1:]
        new = np.ones(above.shape, bool)
        new[:, 1:] = (above[:, 1:] != above[:, :-1]) | (below[:, 1:] != below[:, :-1])
        begins = np.flatnonzero(new)
        if len(begins):
            ends = np.append(begins[1:], new.size)
            pairs.append(np.stack([above.ravel()[begins], below.ravel()[begins]]))
            lengths.append(((ends - begins) * size[0]).astype(np.float32))
    of_all = np.concatenate(values)
    both, borders = np.concatenate(pairs, 1), np.concatenate(lengths)
    is_class = (of_all[both] != _NOTHING).all(0)
    return _Runs(of_all, np.concatenate(areas), both[:, is_class], borders[is_class])


def _patches(runs: _Runs) -> tuple[np.ndarray, _Patches]:
    """The patch of each run, and the patches."""
    count = len(runs.values)
    same = runs.values[runs.pairs[0]] == runs.values[runs.pairs[1]]
    connected = sparse.coo_array(
        (np.ones(int(same.sum()), bool), tuple(runs.pairs[:, same])), shape=(count, count)
    )
    number, patch = csgraph.connected_components(connected.tocsr(), directed=False)
    values = np.zeros(number, np.uint8)
    values[patch] = runs.values
    first, second = patch[runs.pairs[:, ~same]]
    lengths = runs.lengths[~same].astype(np.float64)
    borders = sparse.coo_array((lengths, (first, second)), shape=(number, number)).tocsr()
    areas = np.bincount(patch, runs.areas, minlength=number)
    return patch, _Patches(values, areas, (borders + borders.T).tocsr())


def _merge(patches: _Patches, min_area: float) -> tuple[np.ndarray, int]:
    """Which patch gives each patch its class, and the number of those merged into others."""
    small = np.flatnonzero((patches.areas < min_area) & (patches.values != _NOTHING))
    parent = array.array("q", range(len(patches.values)))
    areas, values = array.array("d", patches.areas.tobytes()), patches.values.tobytes()
    starts, others = patches.borders.indptr, patches.borders.indices
    lengths = patches.borders.data
    members: dict[int, list[int]] = {}  # of a small patch that others were merged into

    def root(patch: int) -> int:
        while parent[patch] != patch:
            parent[patch] = parent[parent[patch]]
            patch = parent[patch]
        return patch

    def neighbours(patch: int) -> dict[int, float]:
        found: dict[int, float] = {}
        for member in members.get(patch, [patch]):
            begin, end = starts[member], starts[member + 1]
            for other, length in zip(
                others[begin:end].tolist(), lengths[begin:end].tolist(), strict=True
            ):
                of_other = root(other)
                if of_other != patch:
                    found[of_other] = found.get(of_other, 0.0) + length
        return found

    def join(patch: int, into: int) -> None:
        areas[into] += areas[patch]
        parent[patch] = into
        of_patch = members.pop(patch, [patch])
        if areas[into] < min_area:
            members[into] = members.get(into, [into]) + of_patch
        else:
            members.pop(into, None)

    queue = [(areas[patch], patch) for patch in small.tolist()]
    heapq.heapify(queue)
    count = 0
    while queue:
        area, patch = heapq.heappop(queue)
        if parent[patch] != patch or area != areas[patch]:
            continue  # it has grown, or is part of another
        around = neighbours(patch)
        if not around:
            continue
        # Lengths are sums of sides in some order: a millimetre is no difference.
        best = max(around, key=lambda p: (round(around[p], 3), areas[p], -p))
        same = [p for p in around if values[p] == values[best] and p != best]
        for merged in (patch, *same):
            join(merged, best)
        count += 1
        if areas[best] < min_area:
            heapq.heappush(queue, (areas[best], best))
    roots = np.array(parent, np.int64)
    while (further := roots[roots] != roots).any():
        roots[further] = roots[roots[further]]
    return roots, count
