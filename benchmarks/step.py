"""Seconds per image of a training step and of inference, compared with PyTorch.

    pip install -e ".[torch]" segmentation-models-pytorch
    python benchmarks/step.py [--batch_size=4] [--rounds=4] [--output=FILE.json]

Random patches of 512 x 512 pixels, the baseline's U-Net in float32 on all cores. PyTorch runs in
the reference's memory layout and in channels-last layout. Each side runs in its own process,
because two thread pools in one process slow each other down; the sides alternate, so that no two
compute at the same time. PyTorch's threads sleep while they wait (OMP_WAIT_POLICY=PASSIVE);
otherwise its processor time would include waiting. flair_jax runs with huge pages, as its commands
do. To give them to PyTorch too, set GLIBC_TUNABLES=glibc.malloc.hugetlb=1; to run all sides without
huge pages, set it to the empty string.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import segmentation_models_pytorch as smp
import torch
from learning_recipe import CHANNELS_LAST, OURS, PEER, our_learner, torch_learner
from record import write_record

from flair_jax import config as configuration
from flair_jax.data.bands import BANDS
from flair_jax.models.functional import forward, split_model
from flair_jax.models.ops import for_platform
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime import huge_pages

SIDE = 512
SIDES = (OURS, PEER, CHANNELS_LAST)
Call = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--side", choices=SIDES, help="run as the process of this side")
    args = parser.parse_args()
    if args.side:
        work(args.side, args.batch_size)
        return
    sides = {name: start(name, args.batch_size) for name in SIDES}
    results: dict[str, Any] = {}
    for what in ("training step", "inference"):
        seconds: dict[str, list[list[float]]] = {name: [] for name in SIDES}
        for _ in range(args.rounds):
            for name, process in sides.items():
                ask(process, what)  # compiles the first time; later warms the caches
                seconds[name] += [ask(process, what) for _ in range(2)]
        for i, kind in enumerate(("wall", "processor")):
            of_kind = {
                name: statistics.median(pair[i] for pair in pairs) / args.batch_size
                for name, pairs in seconds.items()
            }
            ratios = {f"ratio to {name}": of_kind[name] / of_kind[OURS] for name in SIDES[1:]}
            results[f"{what}, seconds of {kind} time an image"] = of_kind | ratios
            line = ", ".join(f"{name} {value:.3f}" for name, value in (of_kind | ratios).items())
            print(f"{what}, seconds of {kind} time an image: {line}", flush=True)
    for process in sides.values():
        process.communicate()  # closes its standard input, which ends it
    if args.output:
        write_record(args.output, args, results, ("torch", "segmentation-models-pytorch"))


def start(side: str, batch_size: int) -> "subprocess.Popen[str]":
    """Starts the process of a side, which waits for requests."""
    command = [sys.executable, __file__, f"--side={side}", f"--batch_size={batch_size}"]
    own = {huge_pages.VARIABLE: huge_pages.VALUE} if side == OURS else {}
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "JAX_PLATFORMS": "cpu", **own, **os.environ}
    return subprocess.Popen(
        command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def ask(process: "subprocess.Popen[str]", what: str) -> list[float]:
    """Requests one call from a side; returns wall and processor time in seconds."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(what + "\n")
    process.stdin.flush()
    return [float(text) for text in process.stdout.readline().split()]


def work(side: str, batch_size: int) -> None:
    """Main loop of a side's process: answers requests until its standard input is closed."""
    rng = np.random.default_rng(0)
    shape = batch_size, SIDE, SIDE
    batch = {
        "image": rng.integers(0, 256, (*shape, len(BANDS)), dtype=np.uint8),
        "mask": rng.integers(1, 14, shape, dtype=np.uint8),
        "stop": np.zeros(batch_size, bool),
    }
    spec = ModelSpec.from_config(configuration.default(), (SIDE, SIDE))
    calls: dict[str, Call] = {}
    for line in sys.stdin:
        what = line.strip()
        if what not in calls:
            calls = {
                what: {"training step": training, "inference": inference}[what](side, spec, batch)
            }
        wall, processor = time.perf_counter(), time.process_time()
        calls[what]()
        print(time.perf_counter() - wall, time.process_time() - processor, flush=True)


def training(side: str, spec: ModelSpec, batch: dict[str, np.ndarray]) -> Call:
    """A training step from the initial weights."""
    ours, weights = our_learner(spec, seed=0)
    if side == OURS:
        return lambda: ours(batch)
    peer = torch_learner(weights, memory_format=memory_format(side))
    return lambda: peer(batch)


def inference(side: str, spec: ModelSpec, batch: dict[str, np.ndarray]) -> Call:
    """Predicted classes of a batch."""
    if side == OURS:
        graphdef, params, batch_stats = split_model(spec.build_model(0))
        ops = for_platform(jax.devices()[0].platform)
        classify = jax.jit(
            lambda p, s, image: ops.best_class(forward(graphdef, spec, p, s, {"image": image}, ops))
        )
        return lambda: np.asarray(classify(params, batch_stats, batch["image"]))
    model = smp.create_model(
        "unet", "resnet34", encoder_weights=None, in_channels=len(BANDS), classes=13
    )
    layout = memory_format(side)
    model = model.eval().to(memory_format=layout)

    def call() -> torch.Tensor:
        with torch.inference_mode():
            image = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).float() / 255
            return model(image.contiguous(memory_format=layout)).argmax(1)

    return call


def memory_format(side: str) -> torch.memory_format:
    return torch.channels_last if side == CHANNELS_LAST else torch.contiguous_format


if __name__ == "__main__":
    main()
