"""What a run says on the console: lines, bars, tables of scores."""

import sys
from collections.abc import Iterable

import jax
from tqdm import tqdm


def log(text: str) -> None:
    """Prints a line on the first host, above any progress bar."""
    if jax.process_index() == 0:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def progress_bar(data: Iterable, total: int, desc: str, unit: str) -> tqdm:
    """A bar on the first host's terminal; none where the output goes to a file."""
    hidden = jax.process_index() != 0 or not sys.stderr.isatty()
    return tqdm(data, total=total, desc=desc, unit=unit, disable=hidden, leave=False)
