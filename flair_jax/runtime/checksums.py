"""Checksums (CRC-32) of arrays and of JSON objects, which tell damage that a reader cannot see."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

KEY = "checksum"


def of_arrays(arrays: Mapping[str, Any]) -> int:
    """The checksum of arrays by name: of their bytes, in the order of the names.

    Args:
        arrays: NumPy arrays, or JAX arrays that are replicated or on one device.
    """
    value = 0
    for name in sorted(arrays):
        value = zlib.crc32(np.ascontiguousarray(arrays[name]).data, value)
    return value


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its own checksum as a further key, `checksum`."""
    return {**values, KEY: _of_json(values)}


def is_intact(values: Mapping[str, Any]) -> bool:
    """Whether a JSON object is as it was sealed; True for one without a checksum."""
    rest = {key: value for key, value in values.items() if key != KEY}
    return KEY not in values or values[KEY] == _of_json(rest)


def _of_json(values: Mapping[str, Any]) -> int:
    # As it reads after a round trip: tuples are lists, and the keys of objects are strings.
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())
