"""How long a device would wait for its host in training, at several speeds of the device.

    pip install -e .
    python benchmarks/feeding.py --data_dir=DATA_DIR [--rates=100,400,1000] [--output=FILE.json]

The real training loop with the real input pipeline, checkpoints, metrics and images; but in place
of the training and the evaluation step a device that computes nothing and is busy for as long as a
batch would take it, three times as fast in evaluation. It counts how long it has nothing to do:
within the epochs, and from the last step of an epoch to the first of the next one, less the time
that validation takes the device.
"""

import argparse
import dataclasses
import tempfile
import time
from typing import Any, cast
from unittest import mock

import jax
import numpy as np
from etils import epath
from record import write_record

from flair_jax import config as configuration
from flair_jax.runtime.sharding import make_mesh
from flair_jax.training import image_summaries, loop, setup
from flair_jax.training.checkpoints import Checkpoints
from flair_jax.training.state import TrainState

Batch = dict[str, jax.Array]


class Later:
    """A result that the device has at a time to come."""

    def __init__(self, ready: float, value: Any) -> None:
        self._ready, self._value = ready, value

    def _wait(self) -> Any:
        time.sleep(max(0.0, self._ready - time.perf_counter()))
        return self._value

    def __float__(self) -> float:
        return float(self._wait())

    def __bool__(self) -> bool:
        return bool(self._wait())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._wait(), dtype)


class Device:
    """Takes batches one after the other and is busy with each for as long as its rate gives.

    Attributes:
        idle: seconds without a batch, by what the next batch was for.
    """

    def __init__(self, rate: float, classes: int) -> None:
        self._rate, self._classes = rate, classes
        self._free = time.perf_counter()
        self.idle = {"within epochs": 0.0, "between epochs": 0.0, "before the first": 0.0}
        self.between = "before the first"

    def _run(self, batch: Batch, rate: float) -> float:
        """When a batch is finished."""
        for array in batch.values():
            array.block_until_ready()
        now = time.perf_counter()
        self.idle[self.between] += max(0.0, now - self._free)
        self._free = max(now, self._free) + len(batch["image"]) / rate
        return self._free

    def train_step(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Later]]:
        """As a jitted training step."""
        ready = self._run(batch, self._rate)
        self.between = "within epochs"
        values = {"loss": 1.0, "grad_norm": 1.0, "finite": True, "stop": False}
        facts = {name: Later(ready, value) for name, value in values.items()}
        return dataclasses.replace(state, step=state.step + 1), facts

    def eval_step(self, params: Any, batch_stats: Any, batch: Batch) -> dict[str, Later]:
        """As a jitted evaluation step."""
        self.between = "between epochs"
        ready, count = self._run(batch, 3 * self._rate), len(batch["image"])
        confusions = np.ones((count, self._classes, self._classes), np.int32)
        values = {"loss_sum": 1.0, "loss_count": 1.0, "stop": False, "valid": batch["valid"]}
        return {k: Later(ready, v) for k, v in values.items()} | {
            "confusions": Later(ready, confusions)
        }

    def lower(self, *arguments: Any) -> "Device":
        """As of a jitted function, to be compiled."""
        return self

    def compile(self) -> Any:
        """As of a lowered function."""
        return self.train_step


def measure(args: argparse.Namespace, rate: float) -> dict[str, float]:
    """Trains with a device of a rate; shares and seconds that it waits."""
    config = configuration.default()
    config.data_dir, config.data_config = args.data_dir, args.data_config
    config.batch_size, config.num_epochs = args.batch_size, args.epochs
    config.early_stop_patience = args.epochs
    with tempfile.TemporaryDirectory() as folder:
        experiment = setup.make_experiment(config, epath.Path(folder) / "run", make_mesh())
        device = Device(rate, len(experiment.spec.nomenclature))
        many: dict[str, Any] = {
            name: split.subset(np.arange(count) % len(split))
            for name, split, count in (
                ("train", experiment.train, args.patches),
                ("val", experiment.val, args.patches // 8),
            )
        }
        experiment = dataclasses.replace(
            experiment, **many, train_step=device, eval_step=cast(Any, device.eval_step),
            steps_per_epoch=args.patches // args.batch_size,
        )  # fmt: skip
        setup.make_workdir(experiment)
        checkpoints = Checkpoints(experiment.workdir / "checkpoints", max_to_keep=1)
        state, progress, _ = setup.start(experiment, checkpoints)
        started = time.perf_counter()
        with mock.patch.object(image_summaries, "make_predict_step", instant_prediction):
            loop.train(experiment, checkpoints, state, progress)
        seconds = time.perf_counter() - started
        checkpoints.close()
    training = args.epochs * experiment.steps_per_epoch * args.batch_size / rate
    return {
        "waiting within epochs, share": device.idle["within epochs"]
        / (device.idle["within epochs"] + training),
        "waiting between epochs, seconds each": device.idle["between epochs"] / args.epochs,
        "patches a second": args.epochs * args.patches / seconds,
    }


def instant_prediction(*arguments: Any, **options: Any) -> Any:
    """As `make_predict_step`, of a prediction that takes no time."""
    return lambda params, batch_stats, batch: np.zeros(batch["mask"].shape, np.uint8)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="the --data_dir of the build")
    parser.add_argument("--data_config", default="published", help="the --config of the build")
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--rates", default="100,400,1000", help="patches a second of the device")
    parser.add_argument("--patches", type=int, default=2000, help="an epoch; repeated ones")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=16)
    args = parser.parse_args()
    found = {}
    for rate in map(float, args.rates.split(",")):
        found[f"{rate:g} patches a second"] = measure(args, rate)
        print(f"{rate:g} patches a second:", found[f"{rate:g} patches a second"], flush=True)
    if args.output:
        write_record(args.output, args, found, ("grain",))


if __name__ == "__main__":
    main()
