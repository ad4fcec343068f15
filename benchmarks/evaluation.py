"""How much of a whole scoring is spent in the model.

    pip install -e .
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/evaluation.py \
        --data_dir=WHERE_YOU_BUILT_IT --workdir=RUN [--split=test] [--output=FILE.json]

Scores a split with a run as `flair-jax evaluate` does, and alone the same number of forward passes
of the same batches, compiled by themselves and put on the device before; they take turns, `--rounds`
times, in one process. Then the command itself in a new process, with a warm compile cache. Last,
every part of a scoring by itself. Nothing is written into the run. The variable asks for the huge
pages that the command asks for itself.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import logging
from etils import epath
from flax import nnx
from record import write_record

from flair_jax import config
from flair_jax.data import input_pipeline
from flair_jax.data.bands import band_indices
from flair_jax.evaluation import evaluate
from flair_jax.evaluation.grouped_metrics import grouped_scores, groups
from flair_jax.inference.loading import load
from flair_jax.models import functional
from flair_jax.runtime import compilation_cache
from flair_jax.runtime.sharding import make_mesh, to_global
from flair_jax.viz import figures

ROOT = Path(__file__).parents[1]
WHOLE, MODEL = "evaluate_checkpoint", "forward passes"
COMMAND = "the command, in a new process"
Seconds = dict[str, float]  # wall and processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="the --data_dir of the build")
    parser.add_argument("--workdir", required=True, help="of a run without metadata")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(scratch / "cache")
        compilation_cache.use(str(scratch / "cache"))
        found = compared(args, scratch)
    for what, value in found.items():
        figures = value if isinstance(value, dict) else {"": value}
        print(f"{what}: " + ", ".join(f"{key} {number:.4g}" for key, number in figures.items()))
    if args.output:
        write_record(args.output, args, found, ("grain", "orbax-checkpoint"))


def compared(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Runs everything; medians over the rounds."""
    workdir, mesh = epath.Path(args.workdir).resolve(), make_mesh()
    directory = input_pipeline.dataset_directory(args.data_dir, config.default().data_config)
    split = input_pipeline.open_split(directory, args.split)
    spec, params, batch_stats, _ = load(workdir, mesh)
    graphdef = nnx.split(spec.abstract_model())[0]
    forward = jax.jit(lambda p, s, b: functional.forward(graphdef, spec, p, s, b))
    eval_step = evaluate.make_eval_step(graphdef, spec, "pixels", mesh)

    def read() -> list[input_pipeline.Batch]:
        return list(
            input_pipeline.split_batches(
                split, args.batch_size, mesh, bands=band_indices(spec.bands), keep=evaluate.FIELDS
            )
        )

    batches = read()
    images = [to_global({"image": batch["image"]}, mesh) for batch in batches]
    on_device = [to_global(input_pipeline.on_device(batch), mesh) for batch in batches]
    evaluation = evaluate.accumulate(eval_step, params, batch_stats, batches, mesh)

    def whole() -> None:
        evaluate.evaluate_checkpoint(
            workdir, split, mesh, batch_size=args.batch_size, loss_normalization="pixels",
            output=scratch / "scores",
        )  # fmt: skip

    def model() -> None:
        for image in images:
            forward(params, batch_stats, image).block_until_ready()

    def steps() -> None:
        for batch in on_device:
            jax.block_until_ready(eval_step(params, batch_stats, batch))

    copy = scratch / "run"
    shutil.copytree(workdir, copy, ignore=shutil.ignore_patterns("evaluation", "tensorboard"))
    command = [
        sys.executable, "-m", "flair_jax", "evaluate", f"--split={args.split}",
        f"--workdir={copy}", f"--config.data_dir={args.data_dir}",
        f"--config.eval_batch_size={args.batch_size}",
    ]  # fmt: skip

    def started() -> None:
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)

    calls = {
        WHOLE: whole,
        MODEL: model,
        COMMAND: started,
        "evaluation steps: model, loss, counting": steps,
        "reading": read,
        "loading the checkpoint": lambda: load(workdir, mesh),
        "the first step, compiled from the cache": lambda: jax.block_until_ready(
            evaluate.make_eval_step(graphdef, spec, "pixels", mesh)(
                params, batch_stats, on_device[0]
            )
        ),
        "intervals and parts": lambda: grouped_scores(
            evaluation.confusions, groups(evaluation.fields), spec.nomenclature
        ),
        "the plot": lambda: figures.plot_confusion_matrix(
            evaluation.confusion, spec.nomenclature, epath.Path(scratch / "plot.png")
        ),
    }
    for call in (whole, model, started):  # compiles, and fills the cache
        call()
    runs: dict[str, list[Seconds]] = {name: [] for name in calls}
    for _ in range(args.rounds):
        for name, call in calls.items():
            runs[name].append(timed(call))
    found: dict[str, Any] = {
        name: {
            kind: statistics.median(run[kind] for run in values) for kind in ("wall", "processor")
        }
        for name, values in runs.items()
    }
    found["patches"] = len(split)
    found["batches"] = len(batches)
    for name in (WHOLE, COMMAND):
        found[f"share of the model in {name}"] = {
            kind: found[MODEL][kind] / found[name][kind] for kind in ("wall", "processor")
        }
    return found


def timed(call: Callable[[], Any]) -> Seconds:
    """Wall and processor time of a call, that of processes it waits for included."""
    wall, processor = time.perf_counter(), sum(os.times()[:4])
    call()
    return {"wall": time.perf_counter() - wall, "processor": sum(os.times()[:4]) - processor}


if __name__ == "__main__":
    main()
