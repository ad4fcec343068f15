"""Numbers and pictures over time: `metrics.jsonl`, TensorBoard, on the first host only."""

import json
from typing import Any

import jax
import numpy as np
from etils import epath

from flair_jax.whole_files import write_whole


class MetricWriter:
    """Appends numbers by step to a workdir's `metrics.jsonl` and `tensorboard/`.

    Args:
        workdir: the run's folder.
        step: the step at which the run goes on; what was written of later steps, before the run
            was interrupted, is dropped.
    """

    def __init__(self, workdir: epath.Path, step: int) -> None:
        self._file = None
        if jax.process_index() != 0:
            return
        import tensorboardX

        path = workdir / "metrics.jsonl"
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            write_whole(path, "".join(f"{line}\n" for line in kept))
        self._file = path.open("a")
        self._tensorboard = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=step + 1 if step else None
        )

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes one line, and each number under its name to TensorBoard."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step} | values) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, int | float):
                self._tensorboard.add_scalar(name, value, step)

    def write_picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Writes a picture, (H, W, 3) uint8, to TensorBoard."""
        if self._file is not None:
            self._tensorboard.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Ends both files."""
        if self._file is not None:
            self._file.close()
            self._tensorboard.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # a line cut short when the run was killed
        return float("inf")
