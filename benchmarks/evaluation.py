"""The share of a whole evaluation that is spent in the model.

    pip install -e .
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/evaluation.py \
        --data_dir=DATA_DIR --workdir=RUN [--split=test] [--output=FILE.json]

Evaluates a split as `flair-jax evaluate` does, and separately runs the same number of forward
passes on the same batches, compiled on their own and with the batches already on the device. Both
alternate for `--rounds` rounds in one process. Then the command itself is timed in a new process
with a warm compilation cache, and finally each part of an evaluation on its own. Nothing is written
to the run. The variable requests huge pages, which the command requests by itself.
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
from flair_jax.data import dataset, input_pipeline
from flair_jax.evaluation import evaluate
from flair_jax.evaluation.grouped_metrics import grouped_scores, groups
from flair_jax.inference.loading import load
from flair_jax.models import functional
from flair_jax.models.ops import for_mesh
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
    parser.add_argument("--workdir", required=True, help="workdir of a run without metadata")
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
        results = compared(args, scratch)
    for what, value in results.items():
        figures = value if isinstance(value, dict) else {"": value}
        print(f"{what}: " + ", ".join(f"{key} {number:.4g}" for key, number in figures.items()))
    if args.output:
        write_record(args.output, args, results, ("grain", "orbax-checkpoint"))


def compared(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Runs everything and returns medians over the rounds."""
    workdir, mesh = epath.Path(args.workdir).resolve(), make_mesh()
    directory = dataset.dataset_directory(args.data_dir, config.default().data_config)
    split = dataset.open_split(directory, args.split)
    spec, params, batch_stats, _ = load(workdir, mesh)
    graphdef = nnx.split(spec.abstract_model())[0]
    ops = for_mesh(mesh)
    forward = jax.jit(lambda p, s, b: functional.forward(graphdef, spec, p, s, b, ops))
    eval_step = evaluate.make_eval_step(graphdef, spec, "pixels", mesh)

    def read() -> list[input_pipeline.Batch]:
        return list(
            input_pipeline.split_batches(
                split, args.batch_size, mesh, bands=spec.bands, keep=evaluate.FIELDS
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
            jax.block_until_ready(forward(params, batch_stats, image))

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
    results: dict[str, Any] = {
        name: {
            kind: statistics.median(run[kind] for run in values) for kind in ("wall", "processor")
        }
        for name, values in runs.items()
    }
    results["patches"] = len(split)
    results["batches"] = len(batches)
    for name in (WHOLE, COMMAND):
        results[f"share of the model in {name}"] = {
            kind: results[MODEL][kind] / results[name][kind] for kind in ("wall", "processor")
        }
    return results


def timed(call: Callable[[], Any]) -> Seconds:
    """Wall and processor time of a call, including that of the processes it waits for."""
    wall, processor = time.perf_counter(), sum(os.times()[:4])
    call()
    return {"wall": time.perf_counter() - wall, "processor": sum(os.times()[:4]) - processor}


if __name__ == "__main__":
    main()
