"""Loading patches, against the reference's way: patches a second, and a second of processor time.

    pip install -e ".[torch]" albumentations
    python benchmarks/loading.py --source=DOWNLOAD --data_dir=BUILT [--output=FILE.json]

Ours: shuffled records of the built data set, read, decoded and batched as uint8, ready for the
device, where augmentation takes place. The peer: image and mask of the same patches by rasterio,
13 one-hot masks, albumentations, float32. Every file is read once before, so that both find it in
the page cache. They take turns, `--rounds` times, first in this process, then with workers.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import peer
import torch
from order import first_steps
from record import write_record

from flair_jax import input_pipeline

OURS, PEER = "flair-jax", "peer"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, help="the download, unpacked")
    parser.add_argument("--data_dir", required=True, help="the --data_dir of its build")
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--patches", type=int, default=480, help="read by the peer in a round")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    directory = input_pipeline.dataset_directory(args.data_dir, "published")
    split = input_pipeline.open_split(directory, "train")
    pairs = pairs_of(Path(args.source), {record["id"].decode() for record in split.records})
    for path in [*map(Path, directory.iterdir()), *(Path(p) for pair in pairs for p in pair)]:
        path.read_bytes()

    def ours(patches: int, workers: int) -> Iterable[int]:
        order = first_steps(split, args.batch_size, 0, patches // args.batch_size)
        for batch in input_pipeline.batches(split, order, num_workers=workers):
            yield len(batch["image"])

    def theirs(patches: int, workers: int) -> Iterable[int]:
        chosen = (pairs * -(-patches // len(pairs)))[:patches]
        for batch in peer.batches(chosen, args.batch_size, augment=True, workers=workers):
            yield len(batch["img"])

    # As many more patches as ours is faster, so that both take about as long.
    sides = {OURS: (ours, 20 * args.patches), PEER: (theirs, args.patches)}
    found = {}
    for workers in (0, args.workers):
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for _ in range(args.rounds):
            for name, (load, patches) in sides.items():
                rates[name].append(measure(load, patches, workers))
        of_wall, of_processor = (
            {name: statistics.median(pair[i] for pair in values) for name, values in rates.items()}
            for i in (0, 1)
        )
        where = f"{workers} worker processes" if workers else "in this process"
        kinds = {"patches a second": of_wall}
        if not workers:  # the processor time of others is not this process's
            kinds["patches a second of processor time"] = of_processor
        for kind, values in kinds.items():
            found[f"{kind}, {where}"] = values | {"ratio": values[OURS] / values[PEER]}
            print(
                f"{kind}, {where}: {values[OURS]:.0f} {OURS}, {values[PEER]:.1f} {PEER}, ratio "
                f"{values[OURS] / values[PEER]:.1f}",
                flush=True,
            )
    if args.output:
        write_record(args.output, args, found, ("grain", "array_record", "torch", "albumentations"))


def pairs_of(source: Path, numbers: set[str]) -> list[tuple[str, str]]:
    """Paths of image and mask of the patches of these numbers, wherever they lie."""
    files = {path.name: str(path) for path in source.rglob("*.tif")}
    return [(files[f"IMG_{number}.tif"], files[f"MSK_{number}.tif"]) for number in sorted(numbers)]


def measure(
    load: Callable[[int, int], Iterable[int]], patches: int, workers: int
) -> tuple[float, float]:
    """Patches a second, and a second of this process's processor time; after the first batch."""
    loaded, started, busy = 0, 0.0, 0.0
    for count in load(patches, workers):
        if not started:
            started, busy = time.perf_counter(), time.process_time()
        else:
            loaded += count
    return loaded / (time.perf_counter() - started), loaded / (time.process_time() - busy)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
