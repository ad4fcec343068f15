"""Writes metrics and images by step to `metrics.jsonl` and TensorBoard, on the first process."""

import json
import time
from typing import Any

import jax
import numpy as np
from etils import epath

from flair_jax.runtime.atomic_io import atomic_write
from flair_jax.runtime.storage import is_remote

_SECONDS = 60  # between two uploads of metrics.jsonl to a bucket


class MetricWriter:
    """Appends numbers by step to a workdir's `metrics.jsonl` and `tensorboard/`.

    A local file gets each line immediately. Objects in a bucket cannot be appended to: there the
    complete file is rewritten by `flush`, and once a minute.

    Args:
        workdir: the run's folder.
        step: the step from which the run resumes; lines of later steps, written before the run
            was stopped, are dropped.
    """

    def __init__(self, workdir: epath.Path, step: int) -> None:
        self._active = jax.process_index() == 0
        if not self._active:
            return
        import tensorboardX

        self._path = workdir / "metrics.jsonl"
        self._lines: list[str] = []
        self._remote, self._flushed_at = is_remote(workdir), time.monotonic()
        if self._path.exists():
            lines = self._path.read_text().splitlines()
            kept = [f"{line}\n" for line in lines if _step_of(line) <= step]
            atomic_write(self._path, "".join(kept))
            self._lines = kept if self._remote else []
        self._tensorboard = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=step + 1 if step else None
        )

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes one line, and each number under its name to TensorBoard."""
        if not self._active:
            return
        self._lines.append(json.dumps({"step": step} | values) + "\n")
        if not self._remote or time.monotonic() - self._flushed_at > _SECONDS:
            self.flush()
        for name, value in values.items():
            if isinstance(value, int | float):
                self._tensorboard.add_scalar(name, value, step)

    def flush(self) -> None:
        """Writes all pending lines; called before a checkpoint of their step is written."""
        if not self._active:
            return
        if self._remote:
            atomic_write(self._path, "".join(self._lines))
        else:
            lines, self._lines = self._lines, []
            with self._path.open("a") as file:
                file.writelines(lines)
        self._flushed_at = time.monotonic()

    def write_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes an image, (H, W, 3) uint8, to TensorBoard."""
        if self._active:
            self._tensorboard.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Closes both files."""
        if self._active:
            self.flush()
            self._tensorboard.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # a line cut short when the run was killed
        return float("inf")
