"""Progress over tiles: a bar on a terminal, a line a minute otherwise."""

import sys
import time
from types import TracebackType

import jax
from tqdm import tqdm

from flair_jax.runtime import console

_INTERVAL = 60.0  # seconds between lines


class TileProgress:
    """Counts tiles, and shows their share, their rate and the time left.

    Args:
        total: number of tiles.
        done: of them, by an earlier job.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        self._total, self._done, self._before = total, done, done
        self._started = self._reported = time.monotonic()
        terminal = jax.process_index() == 0 and sys.stderr.isatty()
        self._bar = tqdm(
            total=total, initial=done, desc="detect", unit="tile", disable=not terminal, leave=False
        )

    def __enter__(self) -> "TileProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def update(self, tiles: int) -> None:
        """Counts tiles that are done."""
        self._done += tiles
        self._bar.update(tiles)
        now = time.monotonic()
        if self._bar.disable and now - self._reported >= _INTERVAL:
            self._reported = now
            rate = (self._done - self._before) / (now - self._started)
            console.log(
                f"  {self._done:,} of {self._total:,} tiles ({self._done / self._total:.0%}), "
                f"{rate:.3g} tiles/s, {duration((self._total - self._done) / rate)} left"
            )


def duration(seconds: float) -> str:
    """A time such as 8 s, 2 min 5 s, 3 h 20 min or 2 d 4 h."""
    whole = round(seconds)
    for size, unit, part, part_unit in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {part_unit}"
    return f"{whole} s"
