"""flair-jax train: train a model, or resume a run."""

import argparse

from flair_jax.cli import runs
from flair_jax.runtime import huge_pages

EXAMPLES = (
    "flair-jax train --config=toy",
    "flair-jax train --config=baseline --config.data_dir=/data/tfds",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Defines the flags."""
    runs.add_flags(parser, "folder of the run (runs/<name of the configuration>)")


def run(args: argparse.Namespace) -> int:
    """Trains, evaluates the best checkpoint and writes the report; returns the exit status."""
    huge_pages.use()
    return runs.run(
        runs.train, config=args.config, changes=args.changes, workdir=args.workdir, trained=False,
        hosts={name: getattr(args, name) for name in runs.HOSTS},
    )  # fmt: skip
