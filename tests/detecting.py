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
from flair_jax.inference.tiles import Grid
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
    options = {"tile": TILE, "margin": MARGIN, "batch_size": 4, "engine": "jax"} | options
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
    grid = Grid.over(*pixels.shape[1:], (tile, tile), margin, blended=False)
    corners = [
        (grid.vertical.start(row) + tile, grid.horizontal.start(column) + tile)
        for row in range(grid.vertical.count)
        for column in range(grid.horizontal.count)
    ]
    padding = [(tile, tile), (tile, tile)]
    padded = np.moveaxis(np.pad(pixels, [(0, 0), *padding], mode="symmetric"), 0, -1)
    padded_valid = np.pad(valid, padding, mode="symmetric")
    windows = [np.s_[y : y + tile, x : x + tile] for y, x in corners]
    # Tiles without a valid pixel are predicted, too, but nothing of them is compared.
    images = [
        fill_invalid(padded[w], padded_valid[w]) if padded_valid[w].any() else padded[w]
        for w in windows
    ]
    stitched = np.empty((*padded_valid.shape, 13), np.float32)
    ends = [length + tile for length in pixels.shape[1:]]
    for corner, of_tile in zip(corners, apply(model, images), strict=True):
        # Without the margins towards other tiles; the last tile written has the corner.
        inner = tuple(
            slice(0 if start <= tile else margin, tile if start + tile >= end else tile - margin)
            for start, end in zip(corner, ends, strict=True)
        )
        where = tuple(
            slice(start + part.start, start + part.stop)
            for start, part in zip(corner, inner, strict=True)
        )
        stitched[where] = of_tile[inner]
    return stitched[tile:-tile, tile:-tile]


def command(*flags, devices=1, **more):
    """Starts the command in a subprocess."""
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.Popen(
        [sys.executable, "-m", "flair_jax", "detect", *map(str, flags)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, **more,
    )  # fmt: skip
