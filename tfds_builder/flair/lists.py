"""Reads lists of patches: CSV files of image and mask paths, as published."""

import csv
import gzip
from collections.abc import Iterator

from tfds_builder.flair.faults import BuildError


def read_list(path: str) -> Iterator[tuple[int, str]]:
    """Yields the line number and the image path of each row.

    Raises:
      BuildError: if the list cannot be read.
    """
    opener = gzip.open if path.endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            for line, row in enumerate(csv.reader(file), 1):
                if row and row[0].strip():
                    yield line, row[0].strip().replace("\\", "/")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BuildError(f"cannot read the list {path}: {error}") from error
