"""Effect of dtype, gradient accumulation, rematerialisation and EMA on loss and memory.

    pip install -e ".[tpu]"
    python benchmarks/precision_and_memory.py --data_dir=DATA_DIR --output=FILE.json \
        [--topology=v5e:2x4 --batch_size=64] [--steps=20]

Each setting trains from the same initial weights on the same crops for the same number of SGD steps
on the local devices. Its training step on whole patches is also compiled, but not run, for a TPU
topology, to obtain the memory needed per chip. Prints a Markdown table. Settings already in the
output file are not run again. (In float32, compilation takes 15 minutes.)
"""

import argparse
import json
import os
import pathlib
from typing import Any

import jax
import ml_collections
from order import first_steps
from record import write_record

from flair_jax import config as configuration
from flair_jax.aot.figures import figures_of
from flair_jax.aot.programs import lower_train_step
from flair_jax.aot.topologies import ENVIRONMENT, topology_devices
from flair_jax.data import dataset, input_pipeline
from flair_jax.data.input_pipeline import on_device
from flair_jax.models.functional import split_model
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime.sharding import make_mesh, replicate, to_global
from flair_jax.training.optimizer import make_optimizer
from flair_jax.training.state import create_train_state
from flair_jax.training.step import make_train_step, set_training_options

SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {},
    "bfloat16, accumulate_steps=2": {"accumulate_steps": 2},
    "bfloat16, accumulate_steps=4": {"accumulate_steps": 4},
    "bfloat16, remat": {"remat": True},
    "bfloat16, ema_decay=0.999": {"ema_decay": 0.999},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--topology", default="v5e:2x4")
    parser.add_argument("--batch_size", type=int, default=64, help="global, on the topology")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--crop_size", type=int, default=128)
    parser.add_argument("--crops", type=int, default=8, help="batch size on this machine")
    args = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")
    output = pathlib.Path(args.output)
    rows = json.loads(output.read_text())["found"] if output.exists() else {}
    for name, changes in SETTINGS.items():
        if name not in rows:
            print(f"== {name}", flush=True)
            rows[name] = {"losses": losses(changes, args), **memory(changes, args)}
            write_record(args.output, args, rows, ("libtpu",))
    print(table(rows))


def losses(changes: dict[str, Any], args: argparse.Namespace) -> list[float]:
    """Losses of the first steps with a setting, on the local devices."""
    config = configured(changes)
    config.batch_size, config.crop_size = args.crops, args.crop_size
    directory = dataset.dataset_directory(args.data_dir, config.data_config)
    split = dataset.open_split(directory, "train")
    order = first_steps(split, config.batch_size, config.seed, args.steps)
    spec = ModelSpec.from_config(config, split.patch_size)
    mesh = make_mesh()
    model = set_training_options(spec.build_model(config.seed), config, mesh)
    graphdef, params, batch_stats = split_model(model)
    ema = config.ema_decay > 0
    optimizer = make_optimizer(config, num_steps=1)
    state = replicate(create_train_state(params, batch_stats, optimizer, ema=ema), mesh)
    step = make_train_step(graphdef, spec, config, optimizer, mesh)
    values = []
    for batch in input_pipeline.batches(split, order):
        state, numbers = step(state, to_global(on_device(batch), mesh))
        values.append(float(numbers["loss"]))
    return values


def memory(changes: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Memory of a setting's step on whole patches by the TPU compiler, or its error message."""
    config = configured(changes)
    config.batch_size = args.batch_size
    mesh = make_mesh(topology_devices(args.topology))
    try:
        figures = figures_of(lower_train_step(config, 512, mesh).compile())
    except jax.errors.JaxRuntimeError as error:
        return {"error": str(error).splitlines()[0]}
    return {"memory": figures.memory, "temporaries": figures.temporaries, "flops": figures.flops,
            "traffic": figures.traffic}  # fmt: skip


def configured(changes: dict[str, Any]) -> ml_collections.ConfigDict:
    """The baseline's configuration in bfloat16, with `changes`."""
    config = configuration.default()
    config.dtype = "bfloat16"
    config.update(changes)
    return config


def table(rows: dict[str, dict[str, Any]]) -> str:
    """A Markdown table of all settings."""
    plain = rows["float32"]["losses"]
    last = len(plain)
    lines = [
        f"| setting | loss of step 1 | of step {last} | largest difference | memory of a chip | "
        "temporaries | traffic |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        apart = max(abs(a / b - 1) for a, b in zip(row["losses"], plain, strict=True))
        if "error" in row:
            compiled = f"{row['error']} | | "
        else:
            compiled = (
                f"{row['memory'] / 2**30:.2f} GiB | {row['temporaries'] / 2**30:.2f} GiB | "
                f"{row['traffic'] / 1e9:.1f} GB"
            )
        lines.append(
            f"| {name} | {row['losses'][0]:.4f} | {row['losses'][-1]:.4f} | {apart:.1%} | "
            f"{compiled} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
