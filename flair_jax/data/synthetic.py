"""Synthetic data set in the file layout of FLAIR #1.

Landscapes of parcels, roads and buildings: all 19 mask values occur, each class has its colour,
texture and height, vegetation changes with the month, and every domain has its own radiometry, so
that domains never seen in training are a little harder. None of it is real.
"""

import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import rasterio
from rasterio.transform import from_origin

from flair_jax.errors import UserError

RESOLUTION = 0.2  # metres a pixel, as FLAIR's
DOMAINS = {
    "train": ("D006_2020", "D008_2019", "D023_2020", "D035_2020", "D049_2020", "D080_2021"),
    "val": ("D004_2021", "D014_2020"),
    "test": ("D012_2019", "D022_2021", "D026_2020"),
}
FOLDERS = {
    "train": ("flair_aerial_train", "flair_labels_train"),
    "val": ("flair_aerial_train", "flair_labels_train"),
    "test": ("flair_1_aerial_test", "flair_1_labels_test"),
}
METADATA_FILE = "flair-1_metadata_aerial.json"

# value: red, green, blue, near infrared, height (1 = 0.2 m), strength of texture, period of stripes
APPEARANCE = {
    1: (165, 105, 95, 105, 42, 8, 0),
    2: (185, 175, 155, 150, 1, 6, 0),
    3: (105, 105, 110, 85, 1, 4, 0),
    4: (190, 145, 105, 130, 1, 14, 0),
    5: (35, 65, 95, 20, 0, 3, 0),
    6: (40, 75, 50, 130, 90, 16, 0),
    7: (70, 115, 55, 195, 70, 24, 0),
    8: (110, 115, 75, 160, 14, 20, 0),
    9: (130, 115, 80, 150, 8, 10, 5),
    10: (95, 150, 75, 205, 1, 6, 0),
    11: (175, 175, 85, 175, 4, 6, 9),
    12: (130, 100, 75, 100, 0, 10, 4),
    13: (70, 200, 225, 50, 1, 3, 0),
    14: (245, 246, 250, 225, 0, 3, 0),
    15: (145, 125, 95, 110, 3, 26, 0),
    16: (58, 96, 54, 162, 80, 22, 0),
    17: (85, 105, 65, 150, 40, 26, 3),
    18: (215, 220, 222, 190, 20, 6, 7),
    19: (128, 128, 128, 128, 10, 34, 0),
}
VEGETATION = (6, 7, 8, 9, 10, 11, 16, 17)
# How often a parcel is of a class; roads (3) and buildings (1, 13, 18) are drawn on top.
PARCELS = {
    2: 7, 4: 8, 5: 8, 6: 8, 7: 9, 8: 9, 9: 9, 10: 10, 11: 9, 12: 9,
    14: 1, 15: 1, 16: 1, 17: 1, 19: 1,
}  # fmt: skip


def _landscape(rng: np.random.Generator, size: int) -> np.ndarray:
    """A label map (size, size) uint8 of values 1..19: parcels, roads, buildings and pools."""
    parcels = max(6, (size // 24) ** 2 // 3)
    seeds = rng.uniform(0, size, (parcels, 2))
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    nearest = np.argmin(
        [np.abs(rows - y) + 0.8 * np.abs(columns - x) for y, x in seeds], axis=0
    )  # a mixed metric gives parcels straight borders
    values, weights = np.array(list(PARCELS)), np.array(list(PARCELS.values()), float)
    mask = rng.choice(values, parcels, p=weights / weights.sum()).astype(np.uint8)[nearest]
    for _ in range(rng.integers(1, 3)):
        angle, offset = rng.uniform(0, np.pi), rng.uniform(0.2, 0.8) * size
        across = (rows - offset) * math.cos(angle) + (columns - offset) * math.sin(angle)
        mask[np.abs(across) < rng.uniform(3, 7)] = 3
    for value, count, low, high in ((1, 5, 10, 26), (18, 1, 12, 30), (13, 2, 5, 9)):
        for _ in range(rng.integers(0, count + 1)):
            height, width = rng.integers(low, high, 2)
            top, left = rng.integers(0, size - height), rng.integers(0, size - width)
            mask[top : top + height, left : left + width] = value
    return mask


def _bands(
    rng: np.random.Generator, mask: np.ndarray, month: int, gain: np.ndarray, offset: np.ndarray
) -> np.ndarray:
    """Renders a label map as an image (size, size, 5) uint8, for a month and a domain."""
    appearance = np.zeros((20, 7), np.float32)
    for value, numbers in APPEARANCE.items():
        appearance[value] = numbers
    ripeness = math.cos(2 * math.pi * (month - 6) / 12)  # 1 in June, -1 in December
    for value in VEGETATION:
        appearance[value, :4] += np.array([-10, 4, -3, 12]) * ripeness
    pixel = appearance[mask]
    size = len(mask)
    rows, columns = np.mgrid[:size, :size]
    grain = rng.standard_normal(mask.shape, np.float32)
    noise = sum(np.roll(grain, shift, (0, 1)) for shift in ((0, 0), (0, 1), (1, 0), (1, 1))) / 2
    period = np.where(pixel[..., 6] > 0, pixel[..., 6], 1)
    stripes = np.where(pixel[..., 6] > 0, np.sin(2 * np.pi * (rows + 0.5 * columns) / period), 0)
    texture = pixel[..., 5] * noise + 18 * stripes
    image = pixel[..., :5] + texture[..., None] * np.array([1, 1, 1, 1.2, 0.4], np.float32)
    image[..., :4] = image[..., :4] * gain + offset
    image[..., :4] += rng.normal(0, 3, (*mask.shape, 4))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _write(path: Path, bands: np.ndarray, left: float, top: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "GTiff", "dtype": "uint8", "count": bands.shape[-1], "interleave": "pixel",
        "height": bands.shape[0], "width": bands.shape[1], "crs": "EPSG:2154",
        "transform": from_origin(left, top, RESOLUTION, RESOLUTION),
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(np.moveaxis(bands, -1, 0))
        raster.update_tags(SYNTHETIC="YES")


def generate(
    out: str | os.PathLike[str],
    *,
    patch_size: int = 128,
    train: int = 192,
    val: int = 32,
    test: int = 48,
    seed: int = 0,
) -> int:
    """Writes the data set; the same arguments give the same files.

    Its metadata file states that it is synthetic, and so do the tags of its images.

    Args:
        out: folder to write to.
        patch_size: side of the patches in pixels, at least 64.
        train, val, test: number of patches of each split.
        seed: of the random generators.

    Returns:
        The number of patches.

    Raises:
        UserError: the patches would be too small.
    """
    if patch_size < 64:
        raise UserError(f"synthetic patches are at least 64 pixels wide, not {patch_size}")
    out = Path(out).expanduser()
    # By this the builder and all that is trained on the data set know of it.
    metadata: dict[str, Any] = {"synthetic": True}
    number = 0
    for split, count in (("train", train), ("val", val), ("test", test)):
        for i in range(count):
            number += 1
            domain = DOMAINS[split][i % len(DOMAINS[split])]
            domain_rng = np.random.default_rng((seed, int(domain[1:4])))
            gain = domain_rng.uniform(0.92, 1.08, 4).astype(np.float32)
            offset = domain_rng.uniform(-8, 8, 4).astype(np.float32)
            corner = domain_rng.uniform((2e5, 6.2e6), (1e6, 7e6)).round(1)
            rng = np.random.default_rng((seed, 1000 + number))
            zone = f"Z{1 + i // len(DOMAINS[split]) % 4}_{'UA' if i % 2 else 'NF'}"
            month = int(rng.integers(4, 12))
            left, top = corner + np.array([i * 300.0, rng.integers(0, 50) * 200.0])
            half = patch_size * RESOLUTION / 2
            mask = _landscape(rng, patch_size)
            if split == "train":  # so that every mask value occurs
                mask[:8, :8] = 1 + i % 19
            name, subfolder = f"{number:06d}", Path(domain) / zone
            images, masks = (out / folder / subfolder for folder in FOLDERS[split])
            _write(
                images / "img" / f"IMG_{name}.tif",
                _bands(rng, mask, month, gain, offset),
                left,
                top,
            )
            _write(masks / "msk" / f"MSK_{name}.tif", mask[..., None], left, top)
            metadata[f"IMG_{name}"] = {
                "domain": domain,
                "zone": zone,
                "patch_centroid_x": round(left + half, 2),
                "patch_centroid_y": round(top - half, 2),
                "patch_centroid_z": round(float(rng.uniform(-2, 900)), 6),
                "date": f"{domain[5:]}-{month:02d}-{rng.integers(1, 28):02d}",
                "time": f"{rng.integers(8, 16):02d}h{rng.integers(0, 60):02d}",
                "camera": "UCE-M3-f120-s07" if int(domain[1:4]) % 2 else "CAMERA#24",
            }
    (out / METADATA_FILE).write_text(json.dumps(metadata))
    return number


def prepare(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Generates and builds the data set of `config.synthetic`, unless it is already built.

    It is written to `config.data_dir`, or to the user's cache if that is "".

    Returns:
        The configuration with `data_dir` set to the built data set.
    """
    if config.data_dir and _is_built(Path(config.data_dir)):
        return config  # from a workdir's configuration
    settings = config.synthetic.to_dict()
    del settings["use"]
    digest = hashlib.sha256(
        json.dumps(settings, sort_keys=True).encode() + Path(__file__).read_bytes()
    ).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "flair_jax"
    root = Path(config.data_dir or cache) / f"synthetic-{digest}"
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data_dir = str(root / "built")
    if _is_built(root / "built"):
        return config

    from flair_jax.runtime.console import log
    from tfds_builder.build import build

    source = root / f"source.{os.getpid()}"
    try:
        log(f"generating a synthetic data set in {root}")
        root.mkdir(parents=True, exist_ok=True)
        generate(source, **settings)
        build(source, data_dir=root / "built", num_workers=1, progress=False)
    except OSError as error:
        raise UserError(f"the synthetic data set cannot be written to {root}: {error}") from error
    finally:
        shutil.rmtree(source, ignore_errors=True)
    return config


def _is_built(data_dir: Path) -> bool:
    return any((data_dir / "flair").glob("*/*/dataset_info.json"))
