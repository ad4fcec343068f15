"""Console output: log lines and progress bars."""

import sys
from collections.abc import Iterable

import jax
from tqdm import tqdm


def log(text: str) -> None:
    """Prints a line on the first process, above any progress bar."""
    if jax.process_index() == 0:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def counted(number: int, noun: str) -> str:
    """A number with its noun, "1 host" or "1,200 patches"."""
    ending = "" if number == 1 else "es" if noun.endswith(("ch", "s")) else "s"
    return f"{number:,} {noun}{ending}"


def progress_bar(data: Iterable, total: int, desc: str, unit: str) -> tqdm:
    """A progress bar on the first process's terminal; hidden where the output goes to a file."""
    hidden = jax.process_index() != 0 or not sys.stderr.isatty()
    return tqdm(data, total=total, desc=desc, unit=unit, disable=hidden, leave=False)
