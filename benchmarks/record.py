"""JSON record of a benchmark: results, machine, versions, date and arguments."""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Sequence
from typing import Any


def write_record(
    path: str, args: argparse.Namespace, results: dict[str, Any], packages: Sequence[str]
) -> None:
    """Writes the results of a benchmark to a JSON file.

    Args:
        path: file to write.
        args: parsed command line; paths are left out.
        results: the measured figures.
        packages: packages whose versions are recorded beside JAX, Flax and NumPy.
    """
    always = ("jax", "jaxlib", "flax", "numpy")
    hidden = ("source", "data_dir", "output", "checkpoint")
    record = {
        "date": datetime.date.today().isoformat(),
        "machine": processor(),
        "cores": os.cpu_count(),
        "load_average_at_the_end": os.getloadavg(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in (*always, *packages)},
        "arguments": {k: v for k, v in vars(args).items() if k not in hidden},
        "found": results,
    }
    pathlib.Path(path).write_text(json.dumps(record, indent=1) + "\n")


def processor() -> str:
    """Model name of the CPU."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
