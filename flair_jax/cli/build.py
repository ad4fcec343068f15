"""flair-jax build: a FLAIR #1 download, or your own images -> the data set for training."""

import argparse

from tfds_builder import flags

EXAMPLES = (
    "flair-jax build --source=/data/flair_download --data_dir=/data/tfds",
    "flair-jax build --name=a --images=img --masks=msk --classes=classes.csv",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Defines the flags, which are those of `python -m tfds_builder.build`."""
    flags.add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Builds; returns the exit status."""
    from tfds_builder.build import run

    return run(args)
