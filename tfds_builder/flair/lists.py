"""Reads lists of patches: CSV files of image and mask paths, as published."""

import csv
import gzip
import zlib
from collections.abc import Iterator

from tfds_builder.flair.faults import BuildError


def read_list(path: str) -> Iterator[tuple[int, str, str]]:
    """Yields the line number, the image path and the mask path ("" for none) of each row.

    Raises:
      BuildError: if the list cannot be read.
    """
    opener = gzip.open if path.endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            for line, row in enumerate(csv.reader(file, strict=True), 1):
                cells = [cell.strip().replace("\\", "/") for cell in [*row, "", ""]]
                if cells[0]:
                    yield line, cells[0], cells[1]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise BuildError(f"cannot read the list {path}: {error}") from error
