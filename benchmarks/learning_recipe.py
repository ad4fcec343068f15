"""Training compared with PyTorch: losses step by step, and the time of a step.

    pip install -e ".[torch]" segmentation-models-pytorch
    python benchmarks/learning_recipe.py --data_dir=DATA_DIR --output=DIR

Both sides start from the same weights (exported from this project) and see the same batches: the
training split in this project's order, crops cut once on the host, no augmentation. Both take plain
SGD steps with batch statistics on the baseline's 13 classes, with class weights 1 for the first 12
and 0 for "other", and the loss divided by the number of pixels.

SGD amplifies rounding errors, so two correct float32 programs drift apart. To tell this from an
error, PyTorch is also compared with itself: in channels-last memory layout, and with its initial
weights perturbed by one part in 1e7. All learners alternate in one process, a block of steps each,
so that no two compute at the same time. Processor time is recorded beside wall time, because other
programs on the machine affect it less. With OMP_WAIT_POLICY=PASSIVE in the environment it does not
include the time PyTorch's threads spend waiting for each other.

Writes `learning_recipe.json` and `learning_recipe.png` to the output folder.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import matplotlib
import numpy as np
import segmentation_models_pytorch as smp
import torch
from order import first_steps, random_squares
from record import processor

from flair_jax import config as configuration
from flair_jax.data import dataset, input_pipeline
from flair_jax.data.bands import BANDS
from flair_jax.models.functional import split_model
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime.sharding import make_mesh, replicate, to_global
from flair_jax.training.optimizer import make_optimizer
from flair_jax.training.state import create_train_state
from flair_jax.training.step import make_train_step
from flair_jax.weights.torch_weights import state_dict_of

matplotlib.use("agg")
from matplotlib import pyplot as plt

Batch = dict[str, np.ndarray]
Learner = Callable[[Batch], float]  # takes one step on a batch; returns the loss before it
LEARNING_RATE = 0.02
OURS, PEER = "flair-jax", "PyTorch"
CHANNELS_LAST = "PyTorch, channels last"
DISTURBED = "PyTorch, first weights disturbed by 1e-7"
LEARNERS = (OURS, PEER, CHANNELS_LAST, DISTURBED)


def training_batches(args: argparse.Namespace) -> Iterator[Batch]:
    """Batches in this project's order, epoch after epoch, with random crops cut here."""
    directory = dataset.dataset_directory(args.data_dir, args.data_config)
    split = dataset.open_split(directory, "train")
    order = first_steps(split, args.batch_size, args.seed, args.steps)
    rng = np.random.default_rng(args.seed)
    for batch in input_pipeline.batches(split, order):
        image, mask = batch["image"], batch["mask"]
        if size := args.crop_size:
            squares = random_squares(rng, image, size)
            image = np.stack([image[square] for square in squares])
            mask = np.stack([mask[square] for square in squares])
        yield {"image": image, "mask": mask, "stop": np.zeros(len(image), bool)}


def our_learner(spec: ModelSpec, seed: int) -> tuple[Learner, dict[str, np.ndarray]]:
    """This project's training step, and its initial weights as a PyTorch state dict."""
    config, mesh = configuration.default(), make_mesh()
    graphdef, params, batch_stats = split_model(spec.build_model(seed))
    weights = state_dict_of(params, batch_stats)
    config.learning_rate = LEARNING_RATE
    optimizer = make_optimizer(config, num_steps=1)
    step = make_train_step(graphdef, spec, config, optimizer, mesh)
    state = replicate(create_train_state(params, batch_stats, optimizer), mesh)

    def learn(batch: Batch) -> float:
        nonlocal state
        state, numbers = step(state, to_global(batch, mesh))
        return float(numbers["loss"])

    return learn, weights


def torch_learner(
    weights: dict[str, np.ndarray],
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
    disturbance: float = 0.0,
) -> Learner:
    """segmentation-models-pytorch's U-Net and torch.optim.SGD, starting from these weights."""
    model = smp.create_model(
        "unet", "resnet34", encoder_weights=None, in_channels=len(BANDS), classes=13
    )
    tensors = {key: torch.tensor(value) for key, value in weights.items()}
    model.load_state_dict(tensors, strict=True)
    if disturbance:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
                parameter.mul_(1 + disturbance * signs)
    model = model.train().to(memory_format=memory_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    class_weights = torch.tensor([1.0] * 12 + [0.0])

    def learn(batch: Batch) -> float:
        image = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2)
        image = (image.float() / 255).contiguous(memory_format=memory_format)
        labels = torch.from_numpy(np.minimum(batch["mask"], 13).astype(np.int64) - 1)
        optimizer.zero_grad()
        total = torch.nn.functional.cross_entropy(
            model(image), labels, class_weights, reduction="sum"
        )
        loss = total / labels.numel()
        loss.backward()
        optimizer.step()
        return loss.item()

    return learn


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs all steps of all learners, block by block, and returns losses and times."""
    batches = list(training_batches(args))
    spec = ModelSpec.from_config(configuration.default(), batches[0]["mask"].shape[1:])
    ours, weights = our_learner(spec, args.seed)
    learners = {
        OURS: ours,
        PEER: torch_learner(weights),
        CHANNELS_LAST: torch_learner(weights, memory_format=torch.channels_last),
        DISTURBED: torch_learner(weights, disturbance=1e-7),
    }
    results: dict[str, Any] = {
        name: {"losses": [], "wall": [], "processor": []} for name in LEARNERS
    }
    for start in range(0, args.steps, args.block):
        for name, learn in learners.items():
            result = results[name]
            for batch in batches[start : start + args.block]:
                wall, processor = time.perf_counter(), time.process_time()
                result["losses"].append(learn(batch))
                result["wall"].append(time.perf_counter() - wall)
                result["processor"].append(time.process_time() - processor)
            print(
                f"step {len(result['losses'])}, {name}: loss {result['losses'][-1]:.6f}, "
                f"{statistics.median(result['wall'][-args.block :]):.2f} s a step",
                flush=True,
            )
    return results


def summary(args: argparse.Namespace, results: dict[str, Any]) -> dict[str, Any]:
    """The content of `learning_recipe.json`."""
    peer = np.array(results[PEER]["losses"])
    differences, seconds = {}, {}
    for name, result in results.items():
        relative = np.abs(np.array(result["losses"]) - peer) / peer
        if name != PEER:
            differences[name] = {
                "largest": float(relative.max()),
                "at_step": int(relative.argmax()) + 1,
                "first_step": float(relative[0]),
                "by_step": relative.tolist(),
            }
        # The first step includes compilation in JAX and warming caches in PyTorch.
        seconds[name] = {"first": result["wall"][0]} | {
            f"{which}_{kind}": float(function(result[kind][1:]))
            for kind in ("wall", "processor")
            for which, function in (("median", statistics.median), ("mean", statistics.mean))
        }
    versions = ("jax", "jaxlib", "flax", "torch", "segmentation-models-pytorch", "numpy")
    return {
        "date": datetime.date.today().isoformat(),
        "arguments": {k: v for k, v in vars(args).items() if k not in ("data_dir", "output")},
        "learning_rate": LEARNING_RATE,
        "machine": processor(),
        "cores": os.cpu_count(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
        "torch_threads": torch.get_num_threads(),
        "jax_devices": [str(device) for device in jax.devices()],
        "load_average_at_the_end": os.getloadavg(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in versions},
        "relative_difference_to_pytorch": differences,
        "seconds_per_step": seconds,
        "losses": {name: result["losses"] for name, result in results.items()},
    }


def plot(record: dict[str, Any], path: pathlib.Path) -> None:
    """Plots both loss curves and, below, the relative difference of each learner to PyTorch."""
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(7, 6), sharex=True, layout="constrained", height_ratios=(1, 1.2)
    )
    losses = record["losses"]
    steps = np.arange(1, len(losses[PEER]) + 1)
    above.plot(steps, losses[PEER], color="tab:orange", linewidth=3, label=PEER)
    above.plot(steps, losses[OURS], color="tab:blue", linewidth=1, label=OURS)
    above.set_ylabel("training loss")
    above.legend()
    colours = {OURS: "tab:blue", CHANNELS_LAST: "tab:gray", DISTURBED: "tab:green"}
    for name, colour in colours.items():
        relative = np.array(record["relative_difference_to_pytorch"][name]["by_step"])
        below.semilogy(steps, np.where(relative > 0, relative, np.nan), color=colour, label=name)
    below.set_ylabel("relative difference to PyTorch's loss")
    below.set_xlabel("step")
    below.grid(alpha=0.3)
    below.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="the --data_dir of the build")
    parser.add_argument("--data_config", default="published", help="the --config of the build")
    parser.add_argument("--output", required=True, help="folder for the JSON and the plot")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--crop_size", type=int, default=256, help="pixels; 0: whole patches")
    parser.add_argument(
        "--block", type=int, default=10, help="steps before the next learner's turn"
    )
    parser.add_argument("--seed", type=int, default=2022)
    parser.add_argument("--note", default="", help="remark for the record")
    args = parser.parse_args()
    output = pathlib.Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    record = summary(args, run(args))
    (output / "learning_recipe.json").write_text(json.dumps(record, indent=1) + "\n")
    plot(record, output / "learning_recipe.png")
    for name, value in record["relative_difference_to_pytorch"].items():
        print(f"{name}: at most {value['largest']:.1e} from PyTorch, at step {value['at_step']}")
    for name, value in record["seconds_per_step"].items():
        print(
            f"{name}: median {value['median_wall']:.2f} s a step, "
            f"{value['median_processor']:.2f} s of processor time"
        )


if __name__ == "__main__":
    main()
