"""Encodings of patch metadata for the model: the FLAIR #1 baseline's, and a corrected one."""

import datetime
from collections.abc import Sequence

import numpy as np

from flair_jax.errors import UserError

SIZES = {"reference": 45, "corrected": 40}  # numbers of a patch, by encoding
HIGHEST_ALTITUDE = 3164.9099121094  # metres; the highest patch of FLAIR #1
YEARS = (2018, 2019, 2020, 2021)
# Metres: from more than twice France's extent, so that no two locations share an angle, to 10 km.
WAVELENGTHS = np.geomspace(2_400_000, 10_000, 8)


def encode(
    encoding: str, centroid: Sequence[float], date: str, time: str, camera: str
) -> np.ndarray:
    """The encoding, of this name, of a patch's metadata.

    Args:
        encoding: "reference" (see `encode_reference`) or "corrected" (see `encode_corrected`).
        centroid: x and y in Lambert-93 metres, z (altitude) in metres.
        date: "YYYY-MM-DD".
        time: "HHhMM".
        camera: name of the camera.

    Returns:
        (SIZES[encoding],) float64.
    """
    encoders = {"reference": encode_reference, "corrected": encode_corrected}
    return encoders[encoding](centroid, date, time, camera)


def _reference_coordinate(value: float) -> np.ndarray:
    """16 numbers: sine and cosine, interleaved, at 8 frequencies of value / 1e8."""
    frequencies = 1.0 / 1e8 ** (2.0 * np.arange(8) / 16)
    angles = value / 1e8 * frequencies
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(-1)


def encode_reference(centroid: Sequence[float], date: str, time: str, camera: str) -> np.ndarray:
    """The reference's 45 numbers of a patch (Garioud et al. 2022, and the baseline's code).

    Its faults are kept, so that results are comparable: the coordinates hardly vary over
    France, and the month's angle, 2 pi (month - 1/12), is the same for every month.

    Args:
        centroid: x and y in Lambert-93 metres, z (altitude) in metres.
        date: "YYYY-MM-DD".
        time: "HHhMM".
        camera: name of the camera; one with "UCE" in it is of one kind, all others of the other.

    Returns:
        (45,) float64: 16 for x, 16 for y, altitude, camera (2), year (4), month, day and time
        of day (2 each).

    Raises:
        UserError: the year is outside 2018 to 2021, which this encoding does not cover.
    """
    day = datetime.date.fromisoformat(date)
    if day.year not in YEARS:
        raise UserError(
            f"the reference's metadata encoding covers the years {YEARS[0]} to {YEARS[-1]}, "
            f"and a patch is dated {date}: set config.metadata.encoding='corrected'"
        )
    x, y, z = (float(v) for v in centroid)
    uce = "UCE" in camera
    return np.concatenate(
        [
            _reference_coordinate(x),
            _reference_coordinate(y),
            [z / HIGHEST_ALTITUDE],
            [float(uce), float(not uce)],
            [float(day.year == year) for year in YEARS],
            _cycle(day.month - 1 / 12),
            _cycle(day.day / 31),
            _cycle(_fraction_of_day(time)),
        ]
    )


def encode_corrected(centroid: Sequence[float], date: str, time: str, camera: str) -> np.ndarray:
    """40 numbers that encode what the reference's 45 were meant to encode.

    Position as sine and cosine at wavelengths from 2,400 km down to 10 km; the season as an angle
    that closes over the year; any year.

    Args:
        centroid: x and y in Lambert-93 metres, z (altitude) in metres.
        date: "YYYY-MM-DD", of any year.
        time: "HHhMM".
        camera: name of the camera; one with "UCE" in it is of one kind, all others of the other.

    Returns:
        (40,) float64: 16 for x, 16 for y (sine and cosine by falling wavelength), altitude in
        kilometres, camera (2), decades since 2020, season and time of day (2 each).
    """
    day = datetime.date.fromisoformat(date)
    x, y, z = (float(v) for v in centroid)
    uce = "UCE" in camera
    angles = 2 * np.pi * np.array([[x], [y]]) / WAVELENGTHS
    return np.concatenate(
        [
            np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(-1),
            [z / 1000, float(uce), float(not uce), (day.year - 2020) / 10],
            _circle(day.timetuple().tm_yday / 365.25),
            _circle(_fraction_of_day(time)),
        ]
    )


def _fraction_of_day(time: str) -> float:
    hours, minutes = (int(part) for part in time.split("h"))
    return (hours * 3600 + minutes * 60) / 86400


def _circle(turns: float) -> np.ndarray:
    """Sine and cosine of an angle in turns."""
    return np.array([np.sin(2 * np.pi * turns), np.cos(2 * np.pi * turns)])


def _cycle(turns: float) -> np.ndarray:
    """`_circle` mapped from [-1, 1] to [0, 1], as the reference does."""
    return (_circle(turns) + 1) / 2
