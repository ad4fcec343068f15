"""Percentiles of a whole raster as the limits of a stretch, such as "p2" and "p98"."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from flair_jax.errors import UserError
from flair_jax.inference.band_selection import Limit, Scaling

_PIXELS = 2**22  # of all inputs together, from which they are computed
Ranges = Sequence[tuple[Limit, Limit]]


def has_percentiles(ranges: Ranges) -> bool:
    """Whether any limit is a percentile."""
    return any(isinstance(limit, str) for pair in ranges for limit in pair)


def percentile(limit: str) -> float:
    """The number of a percentile: 2 of "p2".

    Raises:
        ValueError: it is none, or not from 0 to 100.
    """
    number = float(limit[1:]) if limit.startswith("p") else math.nan
    if not 0 <= number <= 100:
        raise ValueError(limit)
    return number


def check_ranges(ranges: Ranges) -> None:
    """Raises a UserError unless each is from a lower to a higher value or percentile."""
    for low, high in ranges:
        pair = text_of([(low, high)])
        if isinstance(low, str) or isinstance(high, str):
            try:
                numbers = [percentile(x) for x in (low, high) if isinstance(x, str)]
                ordered = len(numbers) == 1 or numbers[0] < numbers[1]
            except ValueError:
                ordered = False
            known = [x for x in (low, high) if not isinstance(x, str)]
            if not ordered or not all(map(math.isfinite, known)):
                raise UserError(
                    f"--stretch={pair}: expected a lower and a higher value or percentile, such as "
                    "0,3000 or p2,p98"
                )
        elif not -math.inf < low < high < math.inf:
            raise UserError(
                f"--stretch={pair}: expected a lower and a higher value, such as 0,3000"
            )


def text_of(ranges: Ranges) -> str:
    """Ranges as on the command line."""
    return " ".join(
        ",".join(limit if isinstance(limit, str) else f"{limit:g}" for limit in pair)
        for pair in ranges
    )


def step_for(pixels: int) -> int:
    """Of how many pixels one is used in both directions, of rasters of so many together."""
    return math.ceil(math.sqrt(pixels / _PIXELS))


def resolved(
    scaling: Scaling, wanted: Sequence[str], parts: Iterable[np.ndarray], step: int, name: str
) -> Scaling:
    """A scaling with values in place of the percentiles of each band.

    They are interpolated linearly between the nearest values, as by `numpy.percentile`.

    Args:
        scaling: with ranges for all bands together or for each.
        wanted: names of the bands.
        parts: (bands, N) values, which belong together.
        step: see `step_for`, for the report.
        name: of the raster, for messages.

    Raises:
        UserError: there are no values, or all are the same.
    """
    ranges = tuple(scaling.by_user) * (len(wanted) if len(scaling.by_user) == 1 else 1)
    values = np.concatenate(list(parts), axis=1)
    if not values.size:
        raise UserError(f"{name} has no valid pixels, of which --stretch could take percentiles")
    limits: list[tuple[Limit, Limit]] = []
    for band, pair, of_band in zip(wanted, ranges, values, strict=True):
        low, high = (
            float(np.percentile(of_band, percentile(limit))) if isinstance(limit, str) else limit
            for limit in pair
        )
        if not low < high:
            raise UserError(
                f"--stretch={text_of([pair])}: in {name}, {band} would be stretched from {low:g} "
                f"to {high:g}: give other percentiles, or values"
            )
        limits.append((low, high))
    of_pixels = f" of 1 pixel in {step**2}" if step > 1 else ""
    source = f"--stretch={text_of(scaling.by_user)}{of_pixels}"
    return dataclasses.replace(scaling, by_user=tuple(limits), source=source)
