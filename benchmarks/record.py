"""What a measurement is kept with: machine, versions, date, arguments."""

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
    path: str, args: argparse.Namespace, found: dict[str, Any], packages: Sequence[str]
) -> None:
    """Writes a JSON file with what was found.

    Args:
        path: the file.
        args: of the command line; paths are left out.
        found: the figures.
        packages: whose versions matter, beside those that always do.
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
        "found": found,
    }
    pathlib.Path(path).write_text(json.dumps(record, indent=1) + "\n")


def processor() -> str:
    """The processor's name."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
