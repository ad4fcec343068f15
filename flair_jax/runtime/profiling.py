"""A trace of some steps for TensorBoard's profiler (XProf), in the workdir's `profile/`."""

from collections.abc import Sequence
from typing import Any

import jax
from etils import epath


def begin(steps: Sequence[int], step: int, workdir: epath.Path) -> None:
    """Starts the trace if this is the first of the steps (first, last); (0, 0) asks for none."""
    if steps[1] and step == steps[0]:
        jax.profiler.start_trace(str(workdir / "profile"))


def end(steps: Sequence[int], step: int, results: Any) -> None:
    """Ends the trace after the last of the steps, when its results are there."""
    if steps[1] and step == steps[1]:
        jax.block_until_ready(results)
        jax.profiler.stop_trace()
