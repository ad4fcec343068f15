"""Building and reading as many records as FLAIR #1 has, of few pixels: time, memory, open files.

    python benchmarks/build_scale.py [--folder=DIR] [--patches=77412] [--shard_mb=0.05]

Writes four zips of synthetic patches of 8 x 8 pixels and a zip of metadata, builds them, builds
once more (which compares the fingerprint), and reads an epoch of train in shuffled batches.
"""

import argparse
import io
import json
import os
import resource
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin

from flair_jax.data import dataset, input_pipeline
from tfds_builder.build import build
from tfds_builder.flair.reference import DOMAIN_PATCHES, DOMAINS, PATCHES, TEST_DOMAINS

SIZE = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="where to write; a temporary folder by default")
    parser.add_argument("--patches", type=int, default=PATCHES)
    parser.add_argument("--shard_mb", type=float, default=0.05, help="MiB (0.05: 581 shards)")
    parser.add_argument("--batch_size", type=int, default=160)
    args = parser.parse_args()
    folder = Path(args.folder or tempfile.mkdtemp())
    measured("zips written", lambda: write_zips(folder / "source", args.patches))
    options: dict[str, Any] = {"shard_mb": args.shard_mb}
    built = measured("built", lambda: build(folder / "source", folder / "built", **options))
    measured("compared", lambda: build(folder / "source", folder / "built", **options))

    def read() -> int:
        split = dataset.open_split(str(built), "train")
        order = input_pipeline.train_order(len(split), args.batch_size, seed=0, epoch=0)
        batches = input_pipeline.batches(split, order)
        return sum(len(batch["image"]) for batch in batches)

    count = measured("epoch read", read)
    shards = len(list(built.glob("flair-*")))
    print(f"{count:,} records of train read, {shards:,} shards in all")
    if not args.folder:
        shutil.rmtree(folder)


def write_zips(source: Path, patches: int) -> None:
    """Writes patches in the published proportions of domains, one image for all."""
    source.mkdir(parents=True, exist_ok=True)
    published = DOMAIN_PATCHES["val"] | DOMAIN_PATCHES["test"]
    train = sorted(DOMAINS - published.keys())
    rest = PATCHES - sum(published.values())
    counts = published | {
        d: rest // len(train) + (i < rest % len(train)) for i, d in enumerate(train)
    }
    image, mask = tiff(5), tiff(1)
    zips = {
        (kind, is_test): zipfile.ZipFile(source / name, "w")
        for kind, is_test, name in (
            ("img", False, "flair_aerial_train.zip"), ("img", True, "flair_1_aerial_test.zip"),
            ("msk", False, "flair_labels_train.zip"), ("msk", True, "flair_1_labels_test.zip"),
        )
    }  # fmt: skip
    metadata = {}
    number = 0
    for domain, count in sorted(counts.items()):
        for i in range(count * patches // PATCHES):
            number += 1
            zone = f"Z{i % 20 + 1}_UA"
            for kind, prefix, content in (("img", "IMG", image), ("msk", "MSK", mask)):
                name = f"{domain}/{zone}/{kind}/{prefix}_{number:06d}.tif"
                zips[kind, domain in TEST_DOMAINS].writestr(name, content)
            metadata[f"IMG_{number:06d}"] = {
                "domain": domain, "zone": zone, "date": f"{domain[5:]}-06-01", "time": "12h00",
                "camera": "UCE", "patch_centroid_x": 700_000.8, "patch_centroid_y": 6_600_000.8,
                "patch_centroid_z": 0.0,
            }  # fmt: skip
    for archive in zips.values():
        archive.close()
    with zipfile.ZipFile(source / "flair-1_metadata_aerial.zip", "w") as archive:
        archive.writestr("flair-1_metadata_aerial.json", json.dumps(metadata))


def tiff(bands: int) -> bytes:
    """A GeoTIFF of ones."""
    buffer = io.BytesIO()
    profile = {"driver": "GTiff", "dtype": "uint8", "count": bands, "height": SIZE, "width": SIZE}
    transform = from_origin(700_000, 6_600_001.6, 0.2, 0.2)
    with rasterio.open(buffer, "w", crs="EPSG:2154", transform=transform, **profile) as raster:
        raster.write(np.ones((bands, SIZE, SIZE), np.uint8))
    return buffer.getvalue()


def measured(what: str, work: Callable[[], Any]) -> Any:
    """Runs the work; prints its time, the peak of memory so far, and the most open files."""
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.02):
            most = max(most, len(os.listdir("/proc/self/fd")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    try:
        result = work()
    finally:
        done.set()
        watcher.join()
    seconds = time.perf_counter() - started
    here, below = (
        resource.getrusage(who).ru_maxrss / 1e6
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(
        f"{what}: {seconds:.1f} s, at most {here:.2f} GB here and {below:.2f} GB in a process"
        f" below, at most {most} open files",
        flush=True,
    )
    return result


if __name__ == "__main__":
    main()
