"""Helpers of the detection tests: rasters, random weights, a plain tile-by-tile reference."""

import os
import re
import subprocess
import sys

import numpy as np
import rasterio
from rasterio.transform import from_origin

import flair_jax
from flair_jax.data.bands import BANDS
from flair_jax.data.nomenclature import BASELINE
from flair_jax.inference.fill import fill_invalid
from flair_jax.models.spec import ModelSpec

PLACE = from_origin(900_000, 6_500_000, 0.2, 0.2)
TILE, MARGIN = 64, 16


def random_spec(**changes):
    return ModelSpec(BANDS, BASELINE, "scaling", (0.0,) * 5, (1.0,) * 5, **changes)


def patches(height, width, seed=0, side=8):
    """(5, height, width) uint8: squares of one value, so that the network sees structure."""
    rng = np.random.default_rng(seed)
    small = rng.integers(1, 256, (5, -(-height // side), -(-width // side)), dtype=np.uint8)
    return small.repeat(side, 1).repeat(side, 2)[:, :height, :width]


def write(path, pixels, **profile):
    count, height, width = pixels.shape
    profile = {
        "driver": "GTiff", "crs": "EPSG:2154", "transform": PLACE, "photometric": "minisblack",
        "dtype": pixels.dtype.name,
    } | profile  # fmt: skip
    with rasterio.open(path, "w", height=height, width=width, count=count, **profile) as raster:
        raster.write(pixels)
    return path


def detect(model, source, output, **options):
    # A batch of these small tiles takes little longer than one tile.
    options = {"tile": TILE, "margin": MARGIN, "batch_size": 4} | options
    return flair_jax.detect_raster(model, source, output, **options)


def read(path):
    with rasterio.open(path) as raster:
        return raster.read()


def undated(path):
    """The bytes of a file without the dates and durations that two detections do not share."""
    content = path.read_bytes()
    for pattern in (
        rb"\d{4}[-:]\d\d[-:]\d\d[T ]\d\d:\d\d:\d\d",
        rb'"seconds": [\d.]+',
        rb'"rows_of_tiles_computed_before": \d+',
    ):
        content = re.sub(pattern, b"", content)
    return content


def in_batches(model, images):
    """Probabilities of many images; the last batch is filled up to need only one compilation."""
    images = np.stack(images)
    filled = np.concatenate([images, images[: -len(images) % 8]])
    batches = [np.asarray(model(filled[i : i + 8])) for i in range(0, len(filled), 8)]
    return np.concatenate(batches)[: len(images)]


def one_by_one(model, images):
    return np.concatenate([np.asarray(model(image[None])) for image in images])


def tile_by_tile(model, pixels, tile=TILE, margin=MARGIN, apply=in_batches, valid=None):
    """Probabilities (H, W, classes) of tiles that are predicted one by one and stitched."""
    valid = np.ones(pixels.shape[1:], bool) if valid is None else valid
    core = tile - 2 * margin
    height, width = pixels.shape[1:]
    spare = [-(-side // core) * core - side for side in (height, width)]
    before = [margin + s // 2 for s in spare]
    after = [margin + s - s // 2 for s in spare]
    padding = [(0, 0), (before[0], after[0]), (before[1], after[1])]
    padded = np.moveaxis(np.pad(pixels, padding, mode="symmetric"), 0, -1)
    corners = [
        (top, left)
        for top in range(0, height + spare[0], core)
        for left in range(0, width + spare[1], core)
    ]
    padded_valid = np.pad(valid, padding[1:], mode="symmetric")
    windows = [np.s_[y : y + tile, x : x + tile] for y, x in corners]
    # Tiles without a valid pixel are predicted, too, but nothing of them is compared.
    images = [
        fill_invalid(padded[w], padded_valid[w]) if padded_valid[w].any() else padded[w]
        for w in windows
    ]
    tiles = apply(model, images)
    stitched = np.empty((height + spare[0], width + spare[1], 13), np.float32)
    for (top, left), of_tile in zip(corners, tiles, strict=True):
        inner = of_tile[margin : tile - margin, margin : tile - margin]
        stitched[top : top + core, left : left + core] = inner
    return stitched[spare[0] // 2 :, spare[1] // 2 :][:height, :width]


def command(*flags, devices=1, **more):
    """Starts the command in a subprocess."""
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.Popen(
        [sys.executable, "-m", "flair_jax", "detect", *map(str, flags)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, **more,
    )  # fmt: skip
