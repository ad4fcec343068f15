"""flair-jax evaluate: scores of a trained run on a split."""

import argparse

from flair_jax.cli import runs
from flair_jax.runtime import huge_pages

EXAMPLES = (
    "flair-jax evaluate --workdir=runs/baseline",
    "flair-jax evaluate --workdir=runs/baseline --split=val --ema",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Defines the flags."""
    runs.add_evaluation_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluates the best checkpoint, into evaluation/<split>/; returns the exit status."""
    huge_pages.use()
    return runs.run(
        runs.evaluate(args.split, args.ema, args.adapt or ""),
        config=args.config, changes=args.changes, workdir=args.workdir, trained=True,
        hosts={name: getattr(args, name) for name in runs.HOSTS},
    )  # fmt: skip
