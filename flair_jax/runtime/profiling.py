"""Profiler traces of some steps for TensorBoard (XProf), in the workdir's `profile/`."""

from collections.abc import Sequence
from typing import Any

import jax
from etils import epath


def begin(steps: Sequence[int], step: int, workdir: epath.Path) -> None:
    """Starts profiling at the first of the steps (first, last); (0, 0) means never."""
    if steps[1] and step == steps[0]:
        jax.profiler.start_trace(str(workdir / "profile"))


def end(steps: Sequence[int], step: int, results: Any) -> None:
    """Stops profiling after the last of the steps, once its results are ready."""
    if steps[1] and step == steps[1]:
        jax.block_until_ready(results)
        jax.profiler.stop_trace()
