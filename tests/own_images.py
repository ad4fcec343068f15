"""Small images and masks of a user, for tests."""

import warnings
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

from tfds_builder.build import build_own

CLASSES = """value,name,colour,weight
1,water,#0000ff,1
4,land,#00ff00,0.5
ignore,unlabelled,#000000,
"""
COLOURS = {1: (0, 0, 255), 4: (0, 255, 0)}


def write(path, pixels, driver="GTiff", **profile):
    """Writes (bands, rows, columns)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver=driver, count=count, height=height, width=width,
            dtype=pixels.dtype.name, **profile,
        ) as raster:  # fmt: skip
            raster.write(pixels)
    return path


def image(rows, columns, bands=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(1, 256, (bands, rows, columns), dtype=np.uint8)


def mask(rows, columns, seed=0):
    return np.random.default_rng(seed).choice(np.array([1, 4], np.uint8), (1, rows, columns))


def colours(values):
    """A mask of colours, (3, rows, columns)."""
    table = np.zeros((256, 3), np.uint8)
    for value, colour in COLOURS.items():
        table[value] = colour
    return np.moveaxis(table[values[0]], -1, 0)


def places(root, shape=(64, 100), names="abc", suffix="png", driver="PNG"):
    """A folder for each place, with an image and a mask of colours; and classes.csv."""
    for seed, name in enumerate(names):
        write(root / name / "images" / f"1.{suffix}", image(*shape, seed=seed), driver)
        write(root / name / "masks" / "1.png", colours(mask(*shape, seed=seed)), "PNG")
    (root / "classes.csv").write_text(CLASSES)
    return {
        "images": f"{root}/*/images",
        "masks": f"{root}/*/masks",
        "classes": root / "classes.csv",
        "patch_size": 64,
        "val_groups": ("b",),
        "test_groups": ("c",),
    }


def at(left, top, pixel=0.5):
    """A profile with coordinates."""
    return {"crs": "EPSG:2154", "transform": from_origin(left, top, pixel, pixel)}


def listed(root, rows):
    path = Path(root) / "pairs.csv"
    path.write_text("\n".join(",".join(row) for row in rows) + "\n")
    return path


def built(root, **options):
    """The folder of a data set with 2 train, 2 val and 2 test patches of 64 x 64."""
    source = places(root / "source")
    return build_own(
        "mine", data_dir=root / "built", num_workers=1, progress=False, **source | options
    )
