"""The size of tiles: the one that computes the fewest pixels within a limit of memory."""

from typing import Any

import numpy as np
from jax.sharding import Mesh

from flair_jax.errors import UserError
from flair_jax.inference.tiles import Axis
from flair_jax.models.choices import STRIDE

MEMORY = 2.0  # GB of the process on a CPU
SMALLEST = 256  # pixels; a raster that is smaller is reflected up to this size
LARGEST = 8 << 20  # pixels of a tile: beyond, next to nothing is gained
# Without a figure of the device's memory: what nearly every accelerator can hold.
_TYPICAL = 4 << 20  # pixels
# Bytes of device memory for a pixel: the decoder's last block holds 32 + 16 channels of float32,
# and compilers want as much again.
_ON_ACCELERATORS = 512


def choose(
    height: int, width: int, margin: int, *, pixels: int, batch: int, blended: bool, square: bool
) -> tuple[int, int]:
    """Height and width of the tiles that cover a raster with the fewest computed pixels.

    Args:
        height, width: of the raster.
        margin: pixels of context between neighbouring tiles.
        pixels: of a tile, at most.
        batch: tiles of a row that are computed together; the last batch of a row is filled up.
        blended: whether overlapping tiles are averaged, which takes tiles of four margins.
        square: whether tiles must be square.

    Raises:
        UserError: no tile is small enough.
    """
    least = shortest(margin, blended)
    heights, widths = _sides(height, margin, least), _sides(width, margin, least)
    if square:
        sides = np.union1d(heights, widths)
        # One that is a single tile along the shorter axis may be too small along the other.
        heights = widths = sides[(sides >= least) | (sides >= max(height, width))]
    tile = heights[:, None] * widths
    fits = tile <= pixels
    if square:
        fits &= np.eye(len(heights), dtype=bool)
    if not fits.any():
        raise UserError(
            f"--memory is too small for the smallest tile, {heights.min()} x {widths.min()} pixels "
            f"with a margin of {margin}: raise it, or lower --margin"
        )
    rows, columns = (
        np.array([Axis.over(length, side, margin, blended).count for side in sides.tolist()])
        for length, sides in ((height, heights), (width, widths))
    )
    computed = rows[:, None] * _multiple(columns, batch) * tile
    # Of equal ones the larger tile: fewer of its pixels are near an end of it.
    best = np.lexsort((-tile.ravel(), computed.ravel(), ~fits.ravel()))[0]
    i, j = np.unravel_index(best, tile.shape)
    return int(heights[i]), int(widths[j])


def shortest(margin: int, blended: bool) -> int:
    """The shortest side of a tile that has neighbours."""
    return max(SMALLEST, _multiple((4 if blended else 3) * margin))


def _sides(length: int, margin: int, least: int) -> np.ndarray:
    """Lengths of tiles to choose from: of each number of tiles along an axis, the shortest."""
    counts = np.arange(2, (length - 2 * margin) // max(least - 2 * margin, STRIDE) + 2)
    several = _multiple(-(-(length - 2 * margin) // counts) + 2 * margin)
    return np.unique([max(SMALLEST, _multiple(length)), *np.maximum(several, least)])


def _multiple(pixels: Any, of: int = STRIDE) -> Any:
    """Rounded up."""
    return -(-pixels // of) * of


def on_accelerator(mesh: Mesh, memory: float) -> int:
    """Pixels of the tiles that a device computes together.

    Args:
        mesh: the devices.
        memory: GB of each of them; 0: half of what it has.
    """
    if not memory:
        known = (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")
        if known is None:
            return _TYPICAL
        memory = known / 2e9
    return min(LARGEST, int(memory * 1e9 / _ON_ACCELERATORS))
