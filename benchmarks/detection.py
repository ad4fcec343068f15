"""Time and memory of detecting one raster, compared with plain loops over tiles by other engines.

    pip install -e ".[torch,cpu,export]" segmentation-models-pytorch onnxruntime
    python benchmarks/detection.py --source=DOWNLOAD --checkpoint=RUN [--output=FILE.json]

The raster is a mosaic of the first patches of the download. `flair-jax detect` runs as a user
starts it, with each engine, with a cold and a warm compilation cache, and with the reference's
tiles of 512 pixels. The peers are `peer_detection.py` with the same weights. Each run is a new
process, timed from its start to the written file; the variants alternate for `--rounds` rounds.
Memory is the peak resident set size of the process.

Classes near the ends of tiles depend on the tiles, which are not the same: the peer's overlap the
raster's edges by a margin of zeros, and flair_jax's end at them. If other programs run on the
machine, set OMP_WAIT_POLICY=PASSIVE: otherwise the processor time of PyTorch includes the time its
threads spend waiting for each other.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin
from record import write_record

ROOT = Path(__file__).parents[1]
PATCH, TILE, MARGIN = 512, 512, 128
COLD, WARM, SMALL_TILES = "jax, cold cache", "jax", f"jax, tiles of {TILE}"
OPENVINO, BFLOAT16 = "openvino", "openvino bfloat16"
PEER = "peer"
Figures = dict[str, float]  # of one process: wall and processor time in seconds, memory in MiB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, help="folder of the unpacked download")
    parser.add_argument("--checkpoint", required=True, help="run with 5 bands and 13 classes")
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--side", type=int, default=6, help="side of the mosaic in patches")
    parser.add_argument("--batch_size", type=int, default=4, help="batch size of the peer")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    checkpoint = str(Path(args.checkpoint).resolve())
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        raster, weights = scratch / "mosaic.tif", scratch / "weights.safetensors"
        write_mosaic(Path(args.source), args.side, raster)
        onnx = scratch / "float32.onnx"
        export(checkpoint, "--format=torch", f"--output={weights}")
        export(checkpoint, "--format=onnx", "--input=float32", f"--output={onnx}")
        ours = ["-m", "flair_jax", "detect", f"--checkpoint={checkpoint}", "--overwrite"]
        tiles = [f"--tile={TILE}", f"--margin={MARGIN}"]
        peer = ["benchmarks/peer_detection.py", *tiles, f"--batch_size={args.batch_size}"]
        in_torch, in_onnx = [*peer, f"--weights={weights}"], [*peer, f"--weights={onnx}"]
        commands = {
            COLD: [*ours, "--engine=jax"],
            WARM: [*ours, "--engine=jax"],
            SMALL_TILES: [*ours, "--engine=jax", *tiles],
            OPENVINO: [*ours, "--engine=openvino"],
            BFLOAT16: [*ours, "--engine=openvino", "--precision=bfloat16"],
            PEER: in_torch,
            "peer, channels last": [*in_torch, "--channels_last"],
            "peer, channels last, bfloat16": [*in_torch, "--channels_last", "--bfloat16"],
            "peer, onnxruntime": [*in_onnx, "--engine=onnxruntime"],
            "peer, openvino": [*in_onnx, "--engine=openvino"],
            "peer, openvino bfloat16": [*in_onnx, "--engine=openvino", "--bfloat16"],
        }
        outputs = {name: scratch / f"{i}.tif" for i, name in enumerate(commands)}
        runs: dict[str, list[Figures]] = {name: [] for name in commands}
        for number in range(args.rounds):
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(scratch / f"cache-{number}")
            for name, command in commands.items():
                paths = [f"--input={raster}", f"--output={outputs[name]}"]
                runs[name].append(measure([sys.executable, *command, *paths]))
        results = {name: medians(figures) for name, figures in runs.items()}
        results["ratio to the peer"] = {
            name: results[PEER]["wall"] / results[name]["wall"] for name in commands if name != PEER
        }
        results["share of equal classes"] = agreement(outputs)
    for what, figures in results.items():
        print(f"{what}: " + ", ".join(f"{key} {value:.5g}" for key, value in figures.items()))
    if args.output:
        packages = (
            "rasterio", "torch", "segmentation-models-pytorch", "openvino", "onnxruntime",
        )  # fmt: skip
        write_record(args.output, args, results, packages)


def export(checkpoint: str, *flags: str) -> None:
    """Writes the weights for the peers."""
    command = ["flair_jax", "export", f"--checkpoint={checkpoint}", *flags]
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, capture_output=True)


def write_mosaic(source: Path, side: int, path: Path) -> None:
    """Writes a raster of `side` x `side` patches, in the order of their paths."""
    patches = sorted(source.rglob("IMG_*.tif"))[: side * side]
    profile = {
        "driver": "GTiff", "dtype": "uint8", "count": 5, "height": side * PATCH,
        "width": side * PATCH, "crs": "EPSG:2154", "transform": from_origin(9e5, 6.5e6, 0.2, 0.2),
        "tiled": True, "blockxsize": 512, "blockysize": 512, "photometric": "minisblack",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as mosaic:
        for i, patch in enumerate(patches):
            with rasterio.open(patch) as raster:
                window = ((i // side * PATCH, (i // side + 1) * PATCH),
                          (i % side * PATCH, (i % side + 1) * PATCH))  # fmt: skip
                mosaic.write(raster.read(), window=window)


def measure(command: list[str]) -> Figures:
    """Runs a command in the project's folder and returns its times and peak memory."""
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{output.decode()}")
    return {"wall": wall, "processor": usage.ru_utime + usage.ru_stime,
            "MiB": usage.ru_maxrss / 1024}  # fmt: skip


def medians(runs: list[Figures]) -> Figures:
    """Median of each figure over the rounds."""
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def agreement(outputs: dict[str, Path]) -> Figures:
    """Shares of the pixels that have equal classes in two outputs."""
    peer = classes_of(outputs[PEER])
    jax, openvino, bfloat16 = (classes_of(outputs[name]) - 1 for name in (WARM, OPENVINO, BFLOAT16))
    return {
        "jax and peer": float(np.mean(jax == peer)),
        "jax and openvino": float(np.mean(jax == openvino)),
        "jax and openvino bfloat16": float(np.mean(jax == bfloat16)),
        "pixels compared": peer.size,
    }


def classes_of(path: Path) -> np.ndarray:
    with rasterio.open(path) as raster:
        return raster.read(1)


if __name__ == "__main__":
    main()
