"""Time from the command to the first training step, with a cold and a warm compilation cache.

    python benchmarks/start.py [--output=FILE.json] [--rounds=3]

The toy data set is generated and built beforehand. Each round starts the command twice with a new
compilation cache, which is empty the first time. `--help` is timed as well: it should import
nothing heavy. If other programs use the machine, compare the processor time of all cores rather
than wall time.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import write_record

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "flair_jax", "train"]
STAGES = {"the first line": "data ", "compiled": "the training step", "the first step": "  step 1:"}
PROCESSOR = "the first step, processor's seconds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    helps, cold, warm = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        start(Path(scratch, "before"), Path(scratch, "cache"))  # generates the data
        for number in range(args.rounds):
            started = time.perf_counter()
            subprocess.run([*COMMAND, "--help"], cwd=ROOT, capture_output=True, check=False)
            helps.append(time.perf_counter() - started)
            cache = Path(scratch, f"cache-{number}")
            cold.append(start(Path(scratch, f"cold-{number}"), cache))
            warm.append(start(Path(scratch, f"warm-{number}"), cache))
    results: dict[str, float] = {"--help": statistics.median(helps)}
    for stage in (*STAGES, PROCESSOR):
        for name, runs in (("cold", cold), ("warm", warm)):
            results[f"{stage}, {name} cache"] = statistics.median(run[stage] for run in runs)
    for first in ("the first step", PROCESSOR):
        ratio = results[f"{first}, warm cache"] / results[f"{first}, cold cache"]
        results[f"ratio of {first}"] = ratio
    for what, value in results.items():
        print(f"{what}: {value:.2f}" + ("" if "ratio" in what else " s"))
    if args.output:
        write_record(args.output, args, results, ("orbax-checkpoint", "tensorflow-datasets"))


def start(workdir: Path, cache: Path) -> dict[str, float]:
    """Wall time in seconds until each stage, and processor time until the last.

    The run is killed after its first step.
    """
    flags = ["--config=toy", "--config.log_every_steps=1", f"--workdir={workdir}",
             f"--config.compilation_cache={cache}"]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    used, started = processor_seconds(), time.perf_counter()
    reached: dict[str, float] = {}
    process = subprocess.Popen(
        [*COMMAND, *flags], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        for stage, begins in STAGES.items():
            if line.startswith(begins):
                reached.setdefault(stage, time.perf_counter() - started)
        if len(reached) == len(STAGES):
            break
    process.kill()
    process.communicate()
    return reached | {PROCESSOR: processor_seconds() - used}


def processor_seconds() -> float:
    """Processor time in seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
