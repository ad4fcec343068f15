"""flair-jax train-compile: what the train step asks of hardware that need not be there."""

import argparse
import os

from flair_jax.cli import config_flags
from flair_jax.errors import UserError

EXAMPLES = (
    "flair-jax train-compile --config=baseline --topology=v5e:2x4 --batch_size=64 \\\n"
    "      --config.dtype=bfloat16",
    "flair-jax train-compile --config=baseline --topology=h100:8 --batch_size=64 \\\n"
    "      --config.dtype=bfloat16",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Defines the flags."""
    config_flags.add_flags(parser)
    add = parser.add_argument
    add(
        "--topology",
        metavar="DEVICES",
        help="to compile for: TPUs as generation:shape, such as v5e:2x4, v5p:2x2x2 or v6e:16x16 "
        "(extra `tpu`); GPUs as card:number or card:hosts x number, such as h100:8 or a100:2x8 "
        "(extra `gpu-compile`); the devices at hand, if not given",
    )
    add("--batch_size", type=int, metavar="N", help="global batch size (config.batch_size)")
    add(
        "--patch_size", type=int, default=512, metavar="PIXELS",
        help="side of the square patches (512)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Compiles and prints the table; returns the exit status, which is 1 if it does not fit."""
    from flair_jax.aot import topologies, train_compile

    if args.topology:
        for name, value in topologies.ENVIRONMENT.items():  # before JAX is imported
            os.environ.setdefault(name, value)
    config = config_flags.read(args.config, args.changes)
    from flair_jax import config as configuration
    from flair_jax.runtime import arithmetic
    from flair_jax.runtime.sharding import check_batch_size, make_mesh

    flag = "config.batch_size"
    if args.batch_size is not None:
        config.batch_size, flag = args.batch_size, "--batch_size"
    try:
        configuration.check_patch_size(config, args.patch_size, args.patch_size)
    except UserError as error:
        raise UserError(f"--patch_size={args.patch_size}: {error}") from error
    if config.deterministic:
        arithmetic.fix_order()
    mesh = make_mesh(topologies.topology_devices(args.topology) if args.topology else None)
    config.batch_size = configuration.batch_size(config, mesh.size)
    check_batch_size(config.batch_size, mesh, flag, config.accumulate_steps)
    train_compile.show(("train step of", config_flags.stem(args.config)))
    return 0 if train_compile.compile_and_show(config, args.patch_size, mesh) else 1
