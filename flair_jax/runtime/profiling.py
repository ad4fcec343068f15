"""Profiler traces of some steps for TensorBoard (XProf), in the workdir's `profile/`."""

import contextlib
from collections.abc import Iterator, Sequence

import jax
from etils import epath


class Profiler:
    """Profiles the steps from a first to a last one.

    Args:
        steps: (first, last), counted from 1; (0, 0) for none.
        workdir: a local folder.
    """

    def __init__(self, steps: Sequence[int], workdir: epath.Path) -> None:
        self._first, self._last = steps
        self._folder = workdir / "profile"
        self._active = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Marks a step in the trace; starts the trace with the first one."""
        if self._last and number == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._active = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def end(self, number: int, results: object) -> None:
        """Stops after the last step, once its results are ready."""
        if number == self._last:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Stops, if the training ends within the steps."""
        if self._active:
            jax.profiler.stop_trace()
            self._active = False
