"""flair-jax predict: predictions of a trained run, as rasters in the challenge's form."""

import argparse

from flair_jax.cli import runs
from flair_jax.runtime import huge_pages

EXAMPLES = (
    "flair-jax predict --workdir=runs/baseline --submission=submission.zip",
    "flair-jax predict --workdir=runs/baseline --split=val --overlays=20",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Defines the flags."""
    runs.add_evaluation_flags(parser)
    parser.add_argument(
        "--submission", metavar="FILE.zip", help="also write the challenge's zip of the test split"
    )
    parser.add_argument(
        "--overlays", default="0", metavar="N|all",
        help="also draw the classes over N images, spread over the split, or over all",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Predicts with the best checkpoint, into predictions/; returns the exit status."""
    huge_pages.use()
    return runs.run(
        runs.predict(args.split, args.ema, args.adapt or "", args.overlays, args.submission),
        config=args.config, changes=args.changes, workdir=args.workdir, trained=True,
        hosts={name: getattr(args, name) for name in runs.HOSTS},
    )  # fmt: skip
