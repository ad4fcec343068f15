"""Writes small rasters of all kinds, for the tests of what detection reads."""

import numpy as np
import rasterio
from rasterio.transform import from_origin

RGB = ("red", "green", "blue")
RGBN = (*RGB, "nir")
PLACE = from_origin(900_000, 6_500_000, 0.2, 0.2)


def write(
    path, pixels, *, descriptions=None, colours=None, mask=None, crs="EPSG:2154", **profile
):  # fmt: skip
    """Writes (bands, H, W) as a GeoTIFF.

    Without `colours`, the bands are undefined; with `photometric=None`, they are as by GDAL's
    default red, green, blue, and the fourth alpha.
    """
    count, height, width = pixels.shape
    profile = {"transform": PLACE, "photometric": "minisblack", "crs": crs} | profile
    if profile["photometric"] is None:
        del profile["photometric"]
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", driver="GTiff", height=height, width=width, count=count,
            dtype=pixels.dtype.name, **profile,
        ) as raster,
    ):  # fmt: skip
        if colours is not None:
            raster.colorinterp = [rasterio.enums.ColorInterp[name] for name in colours]
        raster.write(pixels)
        if mask is not None:
            raster.write_mask(mask)
        for band, text in enumerate(descriptions or [], 1):
            raster.set_band_description(band, text)
    return str(path)


def noise(bands, height=20, width=30, seed=0):
    """(bands, H, W) uint8 from 1 to 255."""
    return np.random.default_rng(seed).integers(1, 256, (bands, height, width), dtype=np.uint8)


def read_all(source):
    """Image (bands, H, W) and valid pixels of an entire source."""
    image, valid = source.read(np.arange(source.height), np.arange(source.width))
    return None if image is None else np.moveaxis(image, -1, 0), valid
