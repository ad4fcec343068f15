"""Loading patches, compared with the reference's pipeline: patches per second.

    pip install -e ".[torch]" albumentations
    python benchmarks/loading.py --source=DOWNLOAD --data_dir=BUILT [--output=FILE.json]

flair_jax reads, decodes and batches shuffled records of the built data set as uint8, ready for the
device, where augmentation takes place. The peer reads image and mask of the same patches with
rasterio, makes 13 one-hot masks, augments with albumentations and converts to float32. Every file
is read once beforehand, so that both read from the page cache. The two alternate for `--rounds`
rounds, in this process and with one and more worker processes; then flair_jax alone runs with one
and more threads. Processor time is that of all processes.
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

from flair_jax.data import dataset, input_pipeline

OURS, PEER = "flair-jax", "peer"
WALL, PROCESSOR = KINDS = "patches a second", "patches a second of processor time"
Rates = dict[str, float]  # by kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, help="folder of the unpacked download")
    parser.add_argument("--data_dir", required=True, help="the --data_dir of its build")
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--patches", type=int, default=480, help="patches the peer reads per round")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    directory = dataset.dataset_directory(args.data_dir, "published")
    split = dataset.open_split(directory, "train")
    pairs = pairs_of(Path(args.source), {record["id"].decode() for record in split.records})
    for path in [*map(Path, directory.iterdir()), *(Path(p) for pair in pairs for p in pair)]:
        path.read_bytes()

    def our_batches(patches: int, workers: int, threads: int | None = None) -> Iterable[int]:
        order = first_steps(split, args.batch_size, 0, patches // args.batch_size)
        reading = input_pipeline.Reading(workers, threads or 0)
        for batch in input_pipeline.batches(split, order, reading=reading):
            yield len(batch["image"])

    def peer_batches(patches: int, workers: int) -> Iterable[int]:
        chosen = (pairs * -(-patches // len(pairs)))[:patches]
        for batch in peer.batches(chosen, args.batch_size, augment=True, workers=workers):
            yield len(batch["img"])

    # flair_jax is faster and gets more patches, so that both take about the same time.
    many, few = 20 * args.patches, args.patches
    results = {}
    for workers in range(args.workers + 1):
        rates: dict[str, list[Rates]] = {OURS: [], PEER: []}
        for _ in range(args.rounds):
            rates[OURS].append(measure(our_batches(many, workers), many))
            rates[PEER].append(measure(peer_batches(few, workers), few))
        for kind in KINDS:
            values = {name: median(of_side, kind) for name, of_side in rates.items()}
            values["ratio"] = values[OURS] / values[PEER]
            results[f"{kind}, {workers} worker processes"] = values
    for threads in (1, 2, 4):
        alone = [measure(our_batches(many, 0, threads), many) for _ in range(args.rounds)]
        for kind in KINDS:
            results[f"{kind}, {threads} threads"] = {OURS: median(alone, kind)}
    for what, figures in results.items():
        print(f"{what}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    if args.output:
        packages = ("grain", "array_record", "torch", "albumentations")
        write_record(args.output, args, results, packages)


def pairs_of(source: Path, numbers: set[str]) -> list[tuple[str, str]]:
    """Paths of image and mask of the patches with these numbers, in any subfolder."""
    files = {path.name: str(path) for path in source.rglob("*.tif")}
    return [(files[f"IMG_{number}.tif"], files[f"MSK_{number}.tif"]) for number in sorted(numbers)]


def measure(loaded: Iterable[int], patches: int) -> Rates:
    """Rates of reading `patches` patches, from the first batch on, when workers are running."""
    count, started, busy = 0, 0.0, 0.0
    for size in loaded:
        count += size
        if not started:
            first, started, busy = size, time.perf_counter(), processor_time()
        elif count == patches:  # before the iterator ends and its workers exit
            break
    return {
        WALL: (count - first) / (time.perf_counter() - started),
        PROCESSOR: (count - first) / (processor_time() - busy),
    }


def processor_time() -> float:
    """Processor time of this process and its workers so far, in seconds."""
    ticks = 0
    for worker in multiprocessing.active_children():
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # in user and in system mode
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def median(rates: list[Rates], kind: str) -> float:
    """Median rate of one kind over the rounds."""
    return statistics.median(of_round[kind] for of_round in rates)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
