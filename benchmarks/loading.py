"""Loading patches, against the reference's way: patches a second of time and of processor time.

    pip install -e ".[torch]" albumentations
    python benchmarks/loading.py --source=DOWNLOAD --data_dir=BUILT [--output=FILE.json]

Ours: shuffled records of the built data set, read, decoded and batched as uint8, ready for the
device, where augmentation is done. The peer: image and mask of the same patches by rasterio,
13 one-hot masks, albumentations, float32. Every file is read once before, so that both find it in
the page cache. They take turns, `--rounds` times, in this process and with one and more workers;
then ours alone with one and more threads in this process. Processor time is that of all processes.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import peer
import torch
from order import first_steps
from record import write_record

from flair_jax.data import input_pipeline

OURS, PEER = "flair-jax", "peer"
WALL, PROCESSOR = KINDS = "patches a second", "patches a second of processor time"
Rates = dict[str, float]  # by kind


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

    def our_batches(patches: int, workers: int, threads: int | None = None) -> Iterable[int]:
        order = first_steps(split, args.batch_size, 0, patches // args.batch_size)
        for batch in input_pipeline.batches(split, order, num_workers=workers, num_threads=threads):
            yield len(batch["image"])

    def peer_batches(patches: int, workers: int) -> Iterable[int]:
        chosen = (pairs * -(-patches // len(pairs)))[:patches]
        for batch in peer.batches(chosen, args.batch_size, augment=True, workers=workers):
            yield len(batch["img"])

    # As many more patches as ours is faster, so that both take about as long.
    many, few = 20 * args.patches, args.patches
    found = {}
    for workers in range(args.workers + 1):
        rates: dict[str, list[Rates]] = {OURS: [], PEER: []}
        for _ in range(args.rounds):
            rates[OURS].append(measure(our_batches(many, workers), many))
            rates[PEER].append(measure(peer_batches(few, workers), few))
        for kind in KINDS:
            values = {name: median(of_side, kind) for name, of_side in rates.items()}
            values["ratio"] = values[OURS] / values[PEER]
            found[f"{kind}, {workers} worker processes"] = values
    for threads in (1, 2, 4):
        alone = [measure(our_batches(many, 0, threads), many) for _ in range(args.rounds)]
        for kind in KINDS:
            found[f"{kind}, {threads} threads"] = {OURS: median(alone, kind)}
    for what, figures in found.items():
        print(f"{what}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    if args.output:
        write_record(args.output, args, found, ("grain", "array_record", "torch", "albumentations"))


def pairs_of(source: Path, numbers: set[str]) -> list[tuple[str, str]]:
    """Paths of image and mask of the patches of these numbers, in any folder."""
    files = {path.name: str(path) for path in source.rglob("*.tif")}
    return [(files[f"IMG_{number}.tif"], files[f"MSK_{number}.tif"]) for number in sorted(numbers)]


def measure(loaded: Iterable[int], patches: int) -> Rates:
    """Rates of reading so many patches, after the first batch: workers have started by then."""
    count, started, busy = 0, 0.0, 0.0
    for size in loaded:
        count += size
        if not started:
            first, started, busy = size, time.perf_counter(), processor_time()
        elif count == patches:  # before the end, after which the workers have exited
            break
    return {
        WALL: (count - first) / (time.perf_counter() - started),
        PROCESSOR: (count - first) / (processor_time() - busy),
    }


def processor_time() -> float:
    """Of this process and its workers so far, in seconds."""
    ticks = 0
    for worker in multiprocessing.active_children():
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # in user and in system mode
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def median(rates: list[Rates], kind: str) -> float:
    """Over the rounds."""
    return statistics.median(of_round[kind] for of_round in rates)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
