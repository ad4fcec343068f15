"""Learning on real images compared with PyTorch, from the first weights to the test score.

    pip install -e ".[torch]" segmentation-models-pytorch
    python benchmarks/real_learning.py --data_dir=DATA_DIR --data_config=dubai --output=DIR

Sides, each with the same seeds:

- `flair-jax`: this project's U-Net and jitted training step;
- `PyTorch`: segmentation-models-pytorch's U-Net, torch.optim.AdamW, cross_entropy;
- `flair-jax, radiometry`: the first with `config.augment_radiometry`.

All sides of a seed start from the same weights and see the same batches: the training split in
this project's order, with crops, flips and rotations made once on the host. All take AdamW steps
with the same learning rates (one cycle) and divide the loss by the number of pixels. The last
weights are scored on the test split, after the same number of steps on every side; nothing is
chosen by it.

`--reduce=4` divides the resolution of the built patches by 4 (means of 4 x 4 pixels of the image,
every fourth pixel of the mask), so that an epoch takes a sixteenth of the time.

The runs of this project are scored a second time with batch statistics of each test group
(`--adapt=domain` of `flair-jax evaluate`).

A run that is finished is not trained again: the script may be stopped and started anew. It writes
`real_learning.json`, `real_learning.png` and the last weights of each run of this project.
"""

import argparse
import functools
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import segmentation_models_pytorch as smp
import torch
from flax import nnx
from order import first_steps, random_squares
from record import write_record

from flair_jax import config as configuration
from flair_jax.data import dataset, input_pipeline
from flair_jax.data.dataset import Split
from flair_jax.data.nomenclature import Nomenclature
from flair_jax.evaluation.metrics import challenge_scores
from flair_jax.inference.adaptation import adaptation_order, adapted_statistics
from flair_jax.models.functional import Arrays, forward
from flair_jax.models.ops import for_mesh
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime.sharding import make_mesh, replicate, to_global
from flair_jax.training.augmentation import augment
from flair_jax.training.initialization import random_weights
from flair_jax.training.optimizer import make_optimizer, rate_factor
from flair_jax.training.state import create_train_state
from flair_jax.training.step import make_train_step, set_training_options
from flair_jax.weights.torch_weights import state_dict_of

matplotlib.use("agg")
from matplotlib import pyplot as plt

Batch = dict[str, np.ndarray]
OURS, PEER, RADIOMETRY = "flair-jax", "PyTorch", "flair-jax, radiometry"
SIDES = (OURS, PEER, RADIOMETRY)
COLOURS = {OURS: "tab:blue", PEER: "tab:orange", RADIOMETRY: "tab:green"}


class Learner:
    """A side in training: `step` takes one step, `predict` gives the classes of images."""

    step: Callable[[Batch], float]
    predict: Callable[[np.ndarray], np.ndarray]
    weights: Callable[[], dict[str, np.ndarray]]


def our_learner(spec: ModelSpec, config: Any, seed: int, num_steps: int) -> Learner:
    """This project's training step and inference."""
    mesh = make_mesh()
    graphdef = nnx.split(set_training_options(spec.abstract_model(), config, mesh))[0]
    optimizer = make_optimizer(config, num_steps)
    train_step = make_train_step(graphdef, spec, config, optimizer, mesh)
    state = replicate(create_train_state(*random_weights(spec, seed, mesh), optimizer), mesh)
    classify = our_classifier(spec)
    learner = Learner()

    def step(batch: Batch) -> float:
        nonlocal state
        state, facts = train_step(state, to_global(batch, mesh))
        assert bool(facts["finite"])
        return float(facts["loss"])

    learner.step = step
    learner.predict = lambda image: classify(state.params, state.batch_stats, image)
    learner.weights = lambda: {
        k: np.asarray(v) for k, v in {**state.params, **state.batch_stats}.items()
    }
    return learner


def our_classifier(spec: ModelSpec) -> Callable[[Arrays, Arrays, np.ndarray], np.ndarray]:
    """A function: parameters, statistics, images (N, H, W, bands) -> classes (N, H, W)."""
    graphdef, ops = nnx.split(spec.abstract_model())[0], for_mesh(make_mesh())
    run = jax.jit(
        lambda p, s, image: ops.best_class(forward(graphdef, spec, p, s, {"image": image}, ops))
    )
    return lambda p, s, image: np.asarray(run(p, s, image))


def torch_learner(spec: ModelSpec, config: Any, seed: int, num_steps: int) -> Learner:
    """segmentation-models-pytorch and torch.optim.AdamW from this project's first weights."""
    classes = spec.nomenclature
    model = smp.create_model(
        "unet", "resnet34", encoder_weights=None, in_channels=len(spec.bands), classes=len(classes)
    )
    weights = state_dict_of(*random_weights(spec, seed, make_mesh()))
    model.load_state_dict({k: torch.tensor(v) for k, v in weights.items()}, strict=True)
    model = model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    factor = rate_factor(config, num_steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(factor(step)))
    class_weights = torch.tensor(classes.weights)
    learner = Learner()

    def normalised(image: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255

    def step(batch: Batch) -> float:
        labels = torch.from_numpy(classes.labels[batch["mask"]].astype(np.int64))
        optimizer.zero_grad()
        total = torch.nn.functional.cross_entropy(
            model(normalised(batch["image"])), labels, class_weights, ignore_index=255,
            reduction="sum",
        )  # fmt: skip
        loss = total / (labels != 255).sum()
        loss.backward()
        optimizer.step()
        scheduler.step()
        return loss.item()

    def predict(image: np.ndarray) -> np.ndarray:
        model.eval()
        with torch.inference_mode():
            classes = model(normalised(image)).argmax(1).numpy()
        model.train()
        return classes

    learner.step, learner.predict, learner.weights = step, predict, dict
    return learner


def reduced(batch: Batch, factor: int) -> Batch:
    """A batch at a lower resolution: means of the image, single pixels of the mask."""
    if factor == 1:
        return batch
    image, mask = batch["image"], batch["mask"]
    n, height, width, bands = image.shape
    blocks = image.reshape(n, height // factor, factor, width // factor, factor, bands)
    image = np.rint(blocks.mean((2, 4))).astype(np.uint8)
    return {**batch, "image": image, "mask": mask[:, ::factor, ::factor]}


def training_batches(split: Split, args: argparse.Namespace, seed: int) -> Iterator[Batch]:
    """The batches of a seed, with crops, flips and rotations, the same for every side."""
    rng = np.random.default_rng(seed)
    half = dict.fromkeys(("vertical_flip", "horizontal_flip", "rotation"), 0.5)
    order = first_steps(split, args.batch_size, seed, args.steps)
    for number, raw in enumerate(input_pipeline.batches(split, order, bands=split.data.bands)):
        batch = reduced(raw, args.reduce)
        image, mask = batch["image"], batch["mask"]
        squares = random_squares(rng, image, args.crop_size)
        key = jax.random.fold_in(jax.random.key(seed), number)
        images, masks = (jnp.asarray([array[s] for s in squares]) for array in (image, mask))
        image, mask = map(np.array, augment(key, images, masks, half))
        yield {"image": image, "mask": mask, "stop": np.zeros(len(image), bool)}


def whole(split: Split, args: argparse.Namespace) -> Batch:
    """All patches of a split with their masks, and their groups."""
    mesh = make_mesh()
    data = input_pipeline.split_batches(
        split, args.batch_size, mesh, bands=split.data.bands, keep=("domain",)
    )
    batches = [reduced(batch, args.reduce) for batch in data]
    valid = np.concatenate([batch["valid"] for batch in batches])
    return {
        name: np.concatenate([batch[name] for batch in batches])[valid]
        for name in ("image", "mask", "domain")
    }


def confusions(
    predict: Callable[[np.ndarray], np.ndarray], data: Batch, classes: Nomenclature, size: int
) -> dict[str, np.ndarray]:
    """Group -> confusion matrix, rows are the truth."""
    result = {}
    for group in np.unique(data["domain"]):
        chosen = np.flatnonzero(data["domain"] == group)
        matrix = np.zeros((len(classes) + 1, len(classes)), np.int64)
        for start in range(0, len(chosen), size):
            rows = np.resize(chosen[start : start + size], size)  # whole batches: one program
            labels = np.minimum(classes.labels[data["mask"][rows]], len(classes))
            predicted, count = predict(data["image"][rows]), len(chosen[start : start + size])
            np.add.at(matrix, (labels[:count], predicted[:count]), 1)
        result[str(group)] = matrix[:-1]  # the last row is of ignored pixels
    return result


def adapted_confusions(
    args: argparse.Namespace, side: str, seed: int, data: dict[str, Any]
) -> dict[str, np.ndarray]:
    """`confusions` of a finished run, with batch statistics of each group of the test split."""
    spec, test, mesh = data["spec"], data["test"], make_mesh()
    classify = our_classifier(spec)
    with np.load(weights_file(args, side, seed)) as arrays:
        params, batch_stats = (
            {name: jnp.asarray(arrays[name]) for name in part}
            for part in random_weights(spec, seed, mesh)
        )
    result: dict[str, np.ndarray] = {}
    for group in np.unique(test["domain"]):
        part = {name: array[test["domain"] == group] for name, array in test.items()}
        images = ({"image": part["image"][i]} for i in adaptation_order(len(part["image"])))
        adapted = adapted_statistics(spec, params, batch_stats, images, mesh)
        predict = functools.partial(classify, params, adapted)
        result |= confusions(predict, part, spec.nomenclature, args.batch_size)
    return result


def miou(matrices: dict[str, np.ndarray], classes: Nomenclature) -> float:
    """Mean IoU over all groups."""
    return challenge_scores(np.sum(list(matrices.values()), 0), classes.weights)["miou"]


def run(args: argparse.Namespace, side: str, seed: int, data: dict[str, Any]) -> dict[str, Any]:
    """Trains a side with a seed; its losses, validation curve and test scores."""
    config, spec = data["config"].copy_and_resolve_references(), data["spec"]
    config.augment_radiometry = side == RADIOMETRY
    config.seed = seed
    make = torch_learner if side == PEER else our_learner
    learner = make(spec, config, seed, args.steps)
    losses, curve = [], []
    started = time.perf_counter()
    for step, batch in enumerate(training_batches(data["train"], args, seed), start=1):
        losses.append(learner.step(batch))
        if step % args.every == 0 or step == args.steps:
            found = confusions(learner.predict, data["val"], spec.nomenclature, args.batch_size)
            curve.append([step, miou(found, spec.nomenclature)])
            print(
                f"{side}, seed {seed}, step {step}: loss {np.mean(losses[-args.every :]):.4f}, "
                f"val mIoU {curve[-1][1]:.4f}, {time.perf_counter() - started:.0f} s",
                flush=True,
            )
    test = confusions(learner.predict, data["test"], spec.nomenclature, args.batch_size)
    if weights := learner.weights():
        np.savez(weights_file(args, side, seed), **weights)  # type: ignore[arg-type]
    print(f"{side}, seed {seed}: test mIoU {miou(test, spec.nomenclature):.4f}", flush=True)
    return {
        "losses": [round(loss, 5) for loss in losses],
        "val": curve,
        "test": {group: matrix.tolist() for group, matrix in test.items()},
        "test_miou": miou(test, spec.nomenclature),
    }


def weights_file(args: argparse.Namespace, side: str, seed: int) -> pathlib.Path:
    return pathlib.Path(args.output) / f"{side.replace(', ', '_')}_{seed}.npz"


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """Configuration, spec and splits."""
    config = configuration.read("own_data" if args.data_config != "published" else "baseline")
    config = config.copy_and_resolve_references()
    config.optimizer, config.schedule, config.weight_decay = "adamw", "one_cycle", 0.01
    config.learning_rate, config.augment = args.learning_rate, False  # augmented on the host
    directory = dataset.dataset_directory(args.data_dir, args.data_config)
    train, val, test = (dataset.open_split(directory, name) for name in ("train", "val", "test"))
    spec = ModelSpec.from_config(config, (args.crop_size, args.crop_size), 0.0, train.data)
    return {
        "config": config, "spec": spec, "train": train, "val": whole(val, args),
        "test": whole(test, args),
    }  # fmt: skip


def plot(results: dict[str, Any], path: pathlib.Path) -> None:
    """Plots training loss and validation mIoU, a line for each run."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, layout="constrained")
    for name, result in results.items():
        side, seed = name.rsplit(" ", 1)
        label = side if seed == "0" else None
        loss = np.convolve(result["losses"], np.ones(20) / 20, "valid")
        above.plot(np.arange(20, 20 + len(loss)), loss, color=COLOURS[side], lw=1, label=label)
        below.plot(*zip(*result["val"], strict=True), color=COLOURS[side], lw=1, label=label)
    above.set_ylabel("training loss (mean of 20 steps)")
    below.set_ylabel("validation mIoU")
    below.set_xlabel("step")
    below.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="the --data_dir of the build")
    parser.add_argument("--data_config", required=True, help="the --name or --config of the build")
    parser.add_argument("--output", required=True, help="folder for the results")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--every", type=int, default=75, help="steps between validations")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--crop_size", type=int, default=64, help="pixels, after --reduce")
    parser.add_argument("--reduce", type=int, default=4, help="divides the resolution")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    args = parser.parse_args()
    output = pathlib.Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    kept, results = output / "runs.json", {}
    if kept.exists():
        results = json.loads(kept.read_text())
    data = prepare(args)
    pairs = [(side, seed) for seed in range(args.seeds) for side in (OURS, PEER)]
    for side, seed in [*pairs, *((RADIOMETRY, seed) for seed in range(args.seeds))]:
        name = f"{side} {seed}"
        if name not in results:
            results[name] = run(args, side, seed, data)
            kept.write_text(json.dumps(results) + "\n")
    for side in (OURS, RADIOMETRY):
        for seed in range(args.seeds):
            matrices = adapted_confusions(args, side, seed, data)
            score = miou(matrices, data["spec"].nomenclature)
            results[f"{side} {seed}"]["test_miou_adapted"] = score
    versions = ("torch", "segmentation-models-pytorch", "optax")
    write_record(str(output / "real_learning.json"), args, results, versions)
    plot(results, output / "real_learning.png")
    for side in SIDES:
        for kind in ("test_miou", "test_miou_adapted"):
            scores = [results[f"{side} {seed}"].get(kind, np.nan) for seed in range(args.seeds)]
            if np.isfinite(scores).all():
                print(f"{side}: {kind} {np.mean(scores):.4f} +- {np.std(scores, ddof=1):.4f}")


if __name__ == "__main__":
    main()
