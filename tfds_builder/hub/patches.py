"""Reads and checks one patch of FLAIR-HUB, and makes the example that is stored."""

import numpy as np

from tfds_builder.flair.faults import Fault
from tfds_builder.flair.files import Unreadable
from tfds_builder.flair.patches import (
    LAMBERT_93,
    Header,
    Outcome,
    Size,
    by,
    centre,
    crs_name,
    displacement,
    header_of,
    opened,
    read_files,
    read_with_crc,
)
from tfds_builder.flair.selection import Patch
from tfds_builder.hub.reference import CLASSES, ELEVATION_BANDS, IMAGE_BANDS, STEPS_PER_METRE

ALTITUDES = (-500.0, 9000.0)  # metres; what is beyond is no altitude, but stands for none


def read_hub_patch(patch: Patch, size: Size | None) -> Outcome:
    """Reads and checks a patch, within `gdal()`.

    Args:
      patch: what to read; its metadata has `date`, "" where it is not known.
      size: the rows and columns that all patches of the data set have; None takes any.
    """
    read = read_files(patch, size, IMAGE_BANDS, tuple(CLASSES))
    faults = read.faults
    if read.header is not None and not read.header.has_position:
        detail = "it has no coordinates, by which the patch is placed"
        faults.append(Fault(patch.split, "image without a position", str(patch.image), detail))
    height, crc = _read_height(patch, read.header, faults)
    crcs = (*read.crcs, crc)
    if faults or read.header is None or read.image is None or read.mask is None or height is None:
        return Outcome(None, faults, [], crcs)
    header = read.header
    name = crs_name(header.crs)
    # The altitude of FLAIR #1's centroid is another quantity than the elevation of the terrain.
    centroid = [*centre(header.transform, header.shape), np.nan]
    example = {
        "image": np.concatenate([read.image, height[..., None]], axis=-1),
        "mask": read.mask,
        "has_mask": True,
        "id": patch.key.number,
        "domain": patch.key.domain,
        "zone": patch.key.zone,
        "date": patch.metadata["date"],
        "time": "",
        "camera": "",
        "centroid": np.array(centroid if name == LAMBERT_93 else [np.nan] * 3, np.float64),
        "transform": np.array(header.transform[:6], np.float64),
        "crs": name if name.startswith("EPSG:") else header.crs,
    }
    ranges = [(int(band.min()), int(band.max())) for band in np.moveaxis(example["image"], -1, 0)]
    return Outcome(example, [], [], crcs, ranges)


def _read_height(
    patch: Patch, image: Header | None, faults: list[Fault]
) -> tuple[np.ndarray | None, int | None]:
    """Returns the heights in steps, (rows, columns) uint8, and the CRC-32 of the elevation's file.

    Args:
      patch: what to read.
      image: the header of its image.
      faults: gets those of the file.
    """
    file = patch.elevation
    assert file is not None

    def fault(kind: str, detail: str) -> None:
        faults.append(Fault(patch.split, kind, str(file), detail))

    crc = None
    try:
        content, crc = read_with_crc(file)
        with opened(content) as src:
            header = header_of(src)
            if header.bands != ELEVATION_BANDS:
                bands = f"{header.bands} bands"
                fault("elevation without 2 bands, surface and terrain", bands)
                return None, crc
            if set(header.dtypes) != {"float32"}:
                fault("elevation not float32", ", ".join(sorted(set(header.dtypes))))
                return None, crc
            if image is not None and header.shape != image.shape:
                detail = f"{by(header.shape)}, where the image is {by(image.shape)}"
                fault("elevation of another size than the image", detail)
                return None, crc
            if image is not None and (found := displacement(image, header, "elevation")):
                fault(*found)
            altitudes = src.read()
            nodata = src.nodata
    except Unreadable as error:
        fault("elevation unreadable", str(error))
        return None, crc
    lowest, highest = ALTITUDES
    # Comparisons with NaN are false.
    missing = ~((altitudes >= lowest) & (altitudes <= highest))
    if nodata is not None:
        missing |= altitudes == nodata
    if missing.any():
        values = ", ".join(f"{value:g}" for value in np.unique(altitudes[missing])[:3])
        detail = f"{int(missing.any(0).sum()):,} pixels, with {values}"
        fault("elevation with missing values", detail)
        return None, crc
    return height_steps(*altitudes), crc


def height_steps(surface: np.ndarray, terrain: np.ndarray) -> np.ndarray:
    """Returns the height above ground as FLAIR #1's fifth band has it, uint8.

    Args:
      surface: altitudes in metres (DSM), float32.
      terrain: the same of the ground (DTM).
    """
    height = STEPS_PER_METRE * (surface.astype(np.float64) - terrain)
    return np.clip(np.rint(height), 0, 255).astype(np.uint8)
