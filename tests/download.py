"""A synthetic download, its files by number, and ways to break them."""

import json

import rasterio

from flair_jax.data import synthetic

TRAIN, VAL, TEST = 12, 4, 4


def make(root):
    """12 train, 4 val and 4 test patches of 64 x 64, numbered from 1."""
    synthetic.generate(root, patch_size=64, train=TRAIN, val=VAL, test=TEST)
    return root


def image(root, number):
    return next(root.rglob(f"IMG_{number:06d}.tif"))


def mask(root, number):
    return next(root.rglob(f"MSK_{number:06d}.tif"))


def rewrite(path, change=lambda bands: bands, **profile):
    """Writes a file anew with its bands (bands, H, W) changed."""
    with rasterio.open(path) as raster:
        bands, kept = change(raster.read()), raster.profile
    count, height, width = bands.shape
    kept.update(count=count, height=height, width=width, dtype=bands.dtype, **profile)
    with rasterio.open(path, "w", **kept) as raster:
        raster.write(bands)


def put(value):
    """A change that sets the 4 x 5 pixels of the first band's corner."""

    def change(bands):
        bands[0, :4, :5] = value
        return bands

    return change


def edit_metadata(root, change):
    path = root / synthetic.METADATA_FILE
    entries = json.loads(path.read_text())
    change(entries)
    path.write_text(json.dumps(entries))


def found(findings, severity):
    return {f.message: f for f in findings if f.severity == severity}


def remove(path):
    path.unlink()
