"""The footprint of a raster in longitude and latitude (WGS 84), as GeoJSON (RFC 7946)."""

from typing import Any

import numpy as np

from flair_jax.inference.georeference import Georeference

_SIDE = 16  # points along each side
_DIGITS = 7  # of degrees: a centimetre


def footprint(
    georeference: Georeference, width: int, height: int
) -> tuple[dict[str, Any], list[float]] | None:
    """The outline of a raster.

    Across the antimeridian it is cut into two polygons, and the box goes from west to east.

    Args:
        georeference: of a raster with a coordinate system and a geotransform.
        width, height: in pixels.

    Returns:
        The geometry, Polygon or MultiPolygon, counterclockwise, and the box (west, south, east,
        north); None if some of the outline has no longitude and latitude.
    """
    steps = np.linspace(0, 1, _SIDE, endpoint=False)
    sides = [(steps, 0 * steps), (1 + 0 * steps, steps), (1 - steps, 1 + 0 * steps)]
    columns, rows = np.concatenate([*map(np.array, sides), [0 * steps, 1 - steps]], 1)
    degrees = georeference.degrees(columns * width, rows * height)
    if degrees is None or not np.isfinite(degrees).all():
        return None
    ring = np.unwrap(np.append(degrees, degrees[:, :1], 1), period=360, axis=1)
    ring[1] = np.append(degrees[1], degrees[1, 0])
    if abs(ring[0, -1] - ring[0, 0]) > 180:  # around a pole
        ring = _up_to_pole(degrees)
    ring[0] -= 360 * np.round((ring[0].min() + ring[0].max()) / 720)
    parts = []
    for turn in (0, -360, 360):
        part = _clipped(_clipped(ring, -180 + turn, 1), 180 + turn, -1)
        if part.shape[1] and np.ptp(part[0]) > 0:
            parts.append(part - [[turn], [0]])
    south, north = ring[1].min(), ring[1].max()
    # The main part reaches the antimeridian on one side, where the other part continues.
    west, east = parts[0][0].min(), parts[0][0].max()
    if len(parts) == 2 and parts[1][0].max() == 180:
        west = parts[1][0].min()
    elif len(parts) == 2:
        east = parts[1][0].max()
    elif len(parts) > 2:
        west, east = -180.0, 180.0
    polygons = [[_closed(part)] for part in parts]
    box = [round(float(value), _DIGITS) for value in (west, south, east, north)]
    if len(polygons) == 1:
        return {"type": "Polygon", "coordinates": polygons[0]}, box
    return {"type": "MultiPolygon", "coordinates": polygons}, box


def _up_to_pole(degrees: np.ndarray) -> np.ndarray:
    """The ring (2, N) from -180 to 180 degrees that encloses a pole, which an outline surrounds."""
    longitude, latitude = degrees
    longitude = (longitude + 180) % 360 - 180
    order = np.argsort(longitude)
    end = np.interp(180, longitude, latitude, period=360)
    pole = np.copysign(90.0, latitude.mean())
    return np.stack(
        [
            [-180, *longitude[order], 180, 180, -180],
            [end, *latitude[order], end, pole, pole],
        ]
    )


def _clipped(ring: np.ndarray, limit: float, sign: int) -> np.ndarray:
    """The part of a ring (2, N) whose longitude is above a limit, or below it with `sign` -1."""
    if not ring.shape[1]:
        return ring
    kept = []
    for before, point in zip(np.roll(ring, 1, 1).T, ring.T, strict=True):
        inside = [sign * (p[0] - limit) >= 0 for p in (before, point)]
        if inside[0] != inside[1]:
            share = (limit - before[0]) / (point[0] - before[0])
            kept.append([limit, before[1] + share * (point[1] - before[1])])
        if inside[1]:
            kept.append(point.tolist())
    return np.array(kept, float).reshape(-1, 2).T


def _closed(ring: np.ndarray) -> list[list[float]]:
    """Positions of a closed ring, counterclockwise."""
    x, y = ring
    clockwise = np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) < 0
    points = np.round(ring.T, _DIGITS).tolist()
    points = [p for i, p in enumerate(points) if p != points[i - 1]]
    points = points[::-1] if clockwise else points
    return points + points[:1]
