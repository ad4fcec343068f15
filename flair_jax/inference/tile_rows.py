"""The loop over rows of tiles: reading, inference and writing run in parallel.

A row of tiles is the unit of work. Its batches hold tiles of this row alone, so the batches, and
therefore the bytes written, are the same whether or not the job was interrupted before.
"""

import collections
import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import jax
import numpy as np

from flair_jax.inference.fill import fill_invalid
from flair_jax.inference.progress import TileProgress
from flair_jax.inference.raster_source import Source
from flair_jax.inference.resume import PartialJob
from flair_jax.inference.tile_predictor import Made, TilePredictor
from flair_jax.inference.tiles import Blender, Grid
from flair_jax.runtime.preemption import Preempted, StopSignals

T = TypeVar("T")
Tile = tuple[int, np.ndarray | None, np.ndarray]  # column; image, None if of no use; valid pixels
Tiles = Generator[Tile, None, None]


def predict_rows(
    source: Source,
    grid: Grid,
    predictor: TilePredictor,
    partial: PartialJob,
    *,
    bands: int,
    classes: int,
    batch_size: int,
) -> None:
    """Predicts and writes all rows of tiles that are not finished.

    Args:
        source: the raster.
        grid: its tiles.
        predictor: the model.
        partial: takes the finished rows.
        bands: number of bands of a row's file.
        classes: number of classes.
        batch_size: tiles per batch, a multiple of the number of devices.

    Raises:
        Preempted: by SIGTERM or Ctrl-C.
        UnreadableError: see `Source.read`.
    """
    rows = grid.vertical.count
    finished = partial.finished(rows)
    blender = Blender(grid, classes) if grid.horizontal.blended else None
    # With blending, the next row needs the overlap with the last finished one.
    begin = finished - 1 if blender and 0 < finished < rows else finished
    todo = range(begin, rows)
    tiles = _tiles(source, grid, todo, 2 * batch_size)
    columns = grid.horizontal.count
    with (
        StopSignals() as stop,
        contextlib.closing(tiles),
        TileProgress(rows * columns, begin * columns) as progress,
    ):
        for row in todo:
            top, bottom = grid.vertical.done(row)
            computed_again = row < finished
            with (
                partial.writing(row, bottom - top, source.width, bands)
                if not computed_again
                else contextlib.nullcontext() as file,
                ThreadPoolExecutor(1, "writer") as pool,
            ):
                write = RowOfTiles(grid, row, predictor, blender, file)
                pending: collections.deque[Future] = collections.deque()
                for batch, results in _computed(tiles, predictor, row, columns, batch_size):
                    pending.append(pool.submit(write, batch, results))
                    if len(pending) > 1:
                        pending.popleft().result()
                    progress.update(len(batch))
                    if stop.received:
                        raise Preempted(f"stopped by {stop.received}")
                for future in pending:
                    future.result()


class RowFile(Protocol):
    """Takes the pixels of a row of tiles, see `resume.RowWriter`."""

    def write(self, left: int, results: dict[str, np.ndarray], valid: np.ndarray) -> None:
        """Takes the pixels that one tile completes."""


def predicted_parts(
    source: Source, grid: Grid, predictor: TilePredictor, *, classes: int, batch_size: int
) -> Iterator[tuple[int, int, dict[str, np.ndarray], np.ndarray]]:
    """Predicts all tiles; those without a valid pixel are left out.

    Args:
        source, grid, predictor, classes, batch_size: see `predict_rows`.

    Yields:
        Of each tile the pixels that it completes, in rows from the top: their first row and column,
        what `products` gives of them, and which are valid, (height, width) bool.

    Raises:
        UnreadableError: see `Source.read`.
    """
    blender = Blender(grid, classes) if grid.horizontal.blended else None
    columns = grid.horizontal.count
    with contextlib.closing(_tiles(source, grid, range(grid.vertical.count), 2 * batch_size)) as t:
        for row in range(grid.vertical.count):
            top = grid.vertical.done(row)[0]
            parts = _Parts()
            write = RowOfTiles(grid, row, predictor, blender, parts)
            pending: collections.deque[tuple] = collections.deque()
            for of_batch in _computed(t, predictor, row, columns, batch_size):
                pending.append(of_batch)
                if len(pending) > 1:  # the devices compute the next one meanwhile
                    write(*pending.popleft())
                    for part in parts.taken():
                        yield top, *part
            for waiting in pending:
                write(*waiting)
            for part in parts.taken():
                yield top, *part


class _Parts:
    """A `RowFile` that keeps what is written until it is taken."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, dict[str, np.ndarray], np.ndarray]] = []

    def write(self, left: int, results: dict[str, np.ndarray], valid: np.ndarray) -> None:
        self._parts.append((left, results, valid))

    def taken(self) -> list[tuple[int, dict[str, np.ndarray], np.ndarray]]:
        parts, self._parts = self._parts, []
        return parts


class RowOfTiles:
    """Takes the batches of a row in order, and writes the pixels that they complete.

    Args:
        grid: the tiles.
        row: the index of the row.
        predictor: the model that computed the batches.
        blender: for overlapping tiles.
        file: written to; None if the row is only needed for blending.
    """

    def __init__(
        self,
        grid: Grid,
        row: int,
        predictor: TilePredictor,
        blender: Blender | None,
        file: RowFile | None,
    ) -> None:
        self._grid, self._row, self._predictor = grid, row, predictor
        self._blender, self._file = blender, file

    def __call__(self, batch: Sequence[Tile], results: Made) -> None:
        """Waits for the results of a batch and writes them; runs in the writer thread.

        Args:
            batch: the tiles.
            results: the predictor's results for the tiles with an image.
        """
        arrays = jax.device_get(results)
        computed = 0
        for column, image, valid in batch:
            of_tile = None
            if image is not None:
                of_tile = {name: values[computed] for name, values in arrays.items()}
                computed += 1
            within = self._grid.within_tile(self._row, column)
            if self._blender:
                of_tile = self._blended(self._blender, column, of_tile, within)
            elif of_tile:
                of_tile = {name: values[within] for name, values in of_tile.items()}
            if of_tile and self._file:
                left = self._grid.done(self._row, column)[1].start
                self._file.write(left, of_tile, valid[within])

    def _blended(
        self,
        blender: Blender,
        column: int,
        of_tile: dict[str, np.ndarray] | None,
        within: tuple[slice, slice],
    ) -> dict[str, np.ndarray] | None:
        done = blender.add(self._row, column, of_tile["scores"] if of_tile else None)
        # The blender's arrays begin at the tile's first pixel, those of the row at the raster's.
        return None if done is None or not self._file else self._predictor.finish(done[within])


def _tiles(source: Source, grid: Grid, rows: Iterable[int], depth: int) -> Tiles:
    """The tiles of some rows, read in advance by a thread."""
    vertical, horizontal = grid.vertical, grid.horizontal
    nothing = np.zeros((vertical.tile, horizontal.tile), bool)

    def read(row: int, column: int) -> Tile:
        pixels = vertical.pixels(row), horizontal.pixels(column)
        if source.is_empty(*pixels):
            return column, None, nothing
        inside = source.inside(*pixels)  # pixels around the area of interest are context

        def is_of_use(wanted: np.ndarray) -> bool:
            # With blending, all pixels of a tile are used; otherwise only those of its core.
            used = wanted if horizontal.blended else wanted[grid.within_tile(row, column)]
            return bool(used.any())

        if inside is not None and not is_of_use(inside):
            return column, None, nothing
        image, valid = source.read(*pixels)
        wanted = valid if inside is None else valid & inside
        if image is None or not is_of_use(wanted):
            return column, None, nothing
        return column, fill_invalid(image, valid), wanted

    indices = ((row, column) for row in rows for column in range(horizontal.count))
    return _ahead(read, indices, depth)


def _ahead(
    call: Callable[..., T], arguments: Iterable[tuple], depth: int
) -> Generator[T, None, None]:
    """Results of calls in one thread, which computes up to `depth` of them in advance."""
    with ThreadPoolExecutor(1, "reader") as pool:
        waiting: collections.deque[Future] = collections.deque()
        try:
            for given in arguments:
                waiting.append(pool.submit(call, *given))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _computed(
    tiles: Iterator[Tile], predictor: TilePredictor, row: int, columns: int, batch_size: int
) -> Iterator[tuple[list[Tile], Made]]:
    """The batches of a row, and what the predictor has begun to make of their images."""
    for batch in _batches(tiles, columns, batch_size):
        used = [column for column, image, _ in batch if image is not None]
        yield batch, predictor(_stack(batch, batch_size), row, used) if used else {}


def _batches(tiles: Iterator[Tile], columns: int, batch_size: int) -> Iterator[list[Tile]]:
    """Batches of a row's tiles with `batch_size` images each; the last may have fewer."""
    batch: list[Tile] = []
    images = 0
    for _ in range(columns):
        batch.append(next(tiles))
        images += batch[-1][1] is not None
        if images == batch_size:
            yield batch
            batch, images = [], 0
    if batch:
        yield batch


def _stack(batch: Sequence[Tile], batch_size: int) -> np.ndarray:
    """The images of a batch, filled up by repeating the last one."""
    images = [image for _, image, _ in batch if image is not None]
    return np.stack(images + images[-1:] * (batch_size - len(images)))
