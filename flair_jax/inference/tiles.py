"""Layout and blending of the overlapping tiles of a raster.

Neighbouring tiles overlap by two margins. A tile without its margins is its core; the cores are
adjacent and cover the raster. The surplus is divided between both ends, so that a flipped raster
has flipped tiles if its sides are even.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Axis:
    """The tiles along one axis of a raster.

    Attributes:
        length: of the raster along the axis, in pixels.
        tile: side of a tile.
        margin: at each end of a tile, less than half a tile.
        blended: whether overlapping tiles are averaged; the margin is then at most a quarter of a
            tile.
    """

    length: int
    tile: int
    margin: int
    blended: bool

    @property
    def core(self) -> int:
        """Pixels of a tile without its margins: the distance from tile to tile."""
        return self.tile - 2 * self.margin

    @property
    def count(self) -> int:
        """Number of tiles."""
        return -(-self.length // self.core)

    def start(self, k: int) -> int:
        """First pixel of tile `k`; negative where the tile begins before the raster."""
        surplus = self.count * self.core - self.length
        return k * self.core - surplus // 2 - self.margin

    def done(self, k: int) -> tuple[int, int]:
        """Begin and end of the pixels that tile `k` completes.

        These are the pixels of its core; with blending, those that no later tile overlaps.
        """
        begin = self.start(k) + (0 if self.blended else self.margin)
        end = begin + self.core
        if self.blended and k == self.count - 1:
            end += 2 * self.margin
        return max(begin, 0), min(end, self.length)

    def pixels(self, k: int) -> np.ndarray:
        """(tile,) int: pixel indices of tile `k`, reflected at both ends of the raster.

        The end pixel is repeated, as by `np.pad(mode="symmetric")`, so a single pixel is enough.
        """
        index = np.arange(self.start(k), self.start(k) + self.tile) % (2 * self.length)
        return np.where(index < self.length, index, 2 * self.length - 1 - index)

    def weights(self, k: int) -> np.ndarray:
        """(tile,) float32: blending weight of each pixel of tile `k`; the tiles' weights sum to 1.

        A Hann window (raised cosine) over the overlaps, 1 between them and at the raster's ends.
        """
        overlap = 2 * self.margin
        rise = np.sin(np.pi / 2 * (np.arange(overlap) + 0.5) / max(overlap, 1)) ** 2
        weights = np.ones(self.tile, np.float32)
        if k > 0:
            weights[:overlap] = rise
        if k < self.count - 1:
            weights[self.tile - overlap :] = rise[::-1]
        return weights


@dataclasses.dataclass(frozen=True)
class Grid:
    """The tiles of a raster: rows of tiles from the top, each from left to right."""

    vertical: Axis
    horizontal: Axis

    @classmethod
    def over(cls, height: int, width: int, tile: int, margin: int, blended: bool) -> "Grid":
        """The tiles of a raster of this height and width."""
        return cls(Axis(height, tile, margin, blended), Axis(width, tile, margin, blended))

    def done(self, row: int, column: int) -> tuple[slice, slice]:
        """Rows and columns of the raster that this tile completes."""
        return slice(*self.vertical.done(row)), slice(*self.horizontal.done(column))

    def within_tile(self, row: int, column: int) -> tuple[slice, slice]:
        """The same pixels as `done`, relative to the tile's first row and column."""
        parts = []
        for axis, k in ((self.vertical, row), (self.horizontal, column)):
            begin, end = axis.done(k)
            parts.append(slice(begin - axis.start(k), end - axis.start(k)))
        return parts[0], parts[1]


class Blender:
    """Sums overlapping tiles, row by row from left to right, keeping only the current overlaps.

    Scores are integers, so that their sum does not depend on the order, and a flipped raster has
    the flipped sum.

    Args:
        grid: the tiles.
        classes: number of classes.
    """

    def __init__(self, grid: Grid, classes: int) -> None:
        self._grid = grid
        tile, margin = grid.horizontal.tile, grid.horizontal.margin
        width = grid.horizontal.count * grid.horizontal.core + 2 * margin
        self._above = np.zeros((2 * margin, width, classes), np.int32)
        self._left = np.zeros((tile, 2 * margin, classes), np.int32)

    def add(self, row: int, column: int, scores: np.ndarray | None) -> np.ndarray | None:
        """Adds a tile to the overlaps with its left and upper neighbours.

        Args:
            row, column: of the tile; tiles must come in row-major order.
            scores: (tile, tile, classes) int32, weighted; None for a tile without valid pixels.

        Returns:
            The sums of the pixels that no later tile overlaps, relative to the tile's first row and
            column; None if there were no scores.
        """
        axis = self._grid.horizontal
        core, overlap = axis.core, 2 * axis.margin
        first, last = column == 0, column == axis.count - 1
        above = self._above[:, column * core : None if last else (column + 1) * core]
        if scores is None:
            self._left[:] = 0
            above[:] = 0
            return None
        done = np.array(scores if last else scores[:, :core])
        if not first:
            done[:, :overlap] += self._left
        self._left[:] = scores[:, core:]
        if row > 0:
            done[:overlap] += above
        above[:] = done[core:]
        return done if row == self._grid.vertical.count - 1 else done[:core]
