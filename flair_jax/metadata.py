"""Patch metadata -> numbers for the model, as the FLAIR #1 baseline encodes them."""

import datetime
from collections.abc import Sequence

import numpy as np

from flair_jax.errors import UserError

SIZE = 45
HIGHEST_ALTITUDE = 3164.9099121094  # metres; the highest patch of FLAIR #1
YEARS = (2018, 2019, 2020, 2021)


def _coordinate(value: float) -> np.ndarray:
    """16 numbers: sine and cosine, interleaved, at 8 frequencies of value / 1e8."""
    frequencies = 1.0 / 1e8 ** (2.0 * np.arange(8) / 16)
    angles = value / 1e8 * frequencies
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(-1)


def _cycle(turns: float) -> list[float]:
    """Sine and cosine of a full circle's share, mapped from [-1, 1] to [0, 1]."""
    angle = 2 * np.pi * turns
    return [(np.sin(angle) + 1) / 2, (np.cos(angle) + 1) / 2]


def encode(centroid: Sequence[float], date: str, time: str, camera: str) -> np.ndarray:
    """The reference's 45 numbers of a patch.

    Its faults are kept, so that results compare: the coordinates hardly move over France, and
    the month's angle, 2 pi (month - 1/12), is the same for every month.

    Args:
        centroid: x and y in Lambert-93 metres, z (altitude) in metres.
        date: "YYYY-MM-DD".
        time: "HHhMM".
        camera: name of the camera; one with "UCE" in it is of one kind, all others of the other.

    Returns:
        (45,) float64: 16 for x, 16 for y, altitude, camera (2), year (4), month, day and time
        of day (2 each).

    Raises:
        UserError: the year is outside 2018 to 2021, which this encoding has no place for.
    """
    day = datetime.date.fromisoformat(date)
    if day.year not in YEARS:
        raise UserError(
            f"the reference's metadata encoding knows the years {YEARS[0]} to {YEARS[-1]}, "
            f"and a patch is of {date}"
        )
    hours, minutes = (int(part) for part in time.split("h"))
    x, y, z = (float(v) for v in centroid)
    uce = "UCE" in camera
    return np.concatenate(
        [
            _coordinate(x),
            _coordinate(y),
            [z / HIGHEST_ALTITUDE],
            [float(uce), float(not uce)],
            [float(day.year == year) for year in YEARS],
            _cycle(day.month - 1 / 12),
            _cycle(day.day / 31),
            _cycle((hours * 3600 + minutes * 60) / 86400),
        ]
    )
