"""Layout and blending of the overlapping tiles of a raster.

Neighbouring tiles overlap by two margins; at the raster's edges, where there is no context to read,
tiles have none. What the tiles cover beyond the raster is divided between both ends, so that a
flipped raster has flipped tiles if its sides are even.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Axis:
    """The tiles along one axis of a raster.

    Attributes:
        length: of the raster along the axis, in pixels.
        tile: length of a tile.
        margin: context at an end of a tile that has a neighbour, less than half a tile.
        blended: whether overlapping tiles are averaged; the margin is then at most a quarter of a
            tile.
    """

    length: int
    tile: int
    margin: int
    blended: bool

    @classmethod
    def over(cls, length: int, tile: int, margin: int, blended: bool) -> "Axis":
        """The tiles along an axis of this length; a single one needs no margin."""
        return cls(length, tile, margin if tile < length else 0, blended)

    @property
    def core(self) -> int:
        """The distance from tile to tile: a tile without two margins."""
        return self.tile - 2 * self.margin

    @property
    def count(self) -> int:
        """Number of tiles."""
        return max(1, -(-(self.length - 2 * self.margin) // self.core))

    def start(self, k: int) -> int:
        """First pixel of tile `k`; negative where the tile begins before the raster."""
        surplus = self.count * self.core + 2 * self.margin - self.length
        return k * self.core - surplus // 2

    def done(self, k: int) -> tuple[int, int]:
        """Begin and end of the pixels that tile `k` completes.

        These are its pixels without the margins towards its neighbours; with blending, those that
        no later tile overlaps.
        """
        begin = self.start(k) + (self.margin if k > 0 and not self.blended else 0)
        end = self.start(k + 1) + (0 if self.blended else self.margin)
        if k == self.count - 1:
            end = self.length
        return max(begin, 0), end

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
    def over(
        cls, height: int, width: int, tile: tuple[int, int], margin: int, blended: bool
    ) -> "Grid":
        """The tiles, of this height and width, of a raster."""
        vertical, horizontal = (
            Axis.over(length, side, margin, blended)
            for length, side in zip((height, width), tile, strict=True)
        )
        return cls(vertical, horizontal)

    @property
    def count(self) -> int:
        """Number of tiles."""
        return self.vertical.count * self.horizontal.count

    @property
    def repeated(self) -> float:
        """Share of the computed pixels that are margin, or lie outside of the raster."""
        computed = self.count * self.vertical.tile * self.horizontal.tile
        return 1 - self.vertical.length * self.horizontal.length / computed

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
        down, right = grid.vertical, grid.horizontal
        width = right.count * right.core + 2 * right.margin
        self._above = np.zeros((2 * down.margin, width, classes), np.int32)
        self._left = np.zeros((down.tile, 2 * right.margin, classes), np.int32)

    def add(self, row: int, column: int, scores: np.ndarray | None) -> np.ndarray | None:
        """Adds a tile to the overlaps with its left and upper neighbours.

        Args:
            row, column: of the tile; tiles must come in row-major order.
            scores: (height, width, classes) int32, weighted; None for a tile without valid pixels.

        Returns:
            The sums of the pixels that no later tile overlaps, relative to the tile's first row and
            column; None if there were no scores.
        """
        down, right = self._grid.vertical, self._grid.horizontal
        first, last = column == 0, column == right.count - 1
        above = self._above[:, column * right.core : None if last else (column + 1) * right.core]
        if scores is None:
            self._left[:] = 0
            above[:] = 0
            return None
        done = np.array(scores if last else scores[:, : right.core])
        if not first:
            done[:, : 2 * right.margin] += self._left
        self._left[:] = scores[:, right.core :]
        if row > 0:
            done[: 2 * down.margin] += above
        above[:] = done[down.core :]
        return done if row == down.count - 1 else done[: down.core]
