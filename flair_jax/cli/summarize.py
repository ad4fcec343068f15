"""flair-jax summarize: scores over several runs, beside the published ones."""

import argparse

from flair_jax.cli.parser import one_of
from flair_jax.cli.runs import SPLITS

EXAMPLES = (
    "flair-jax summarize runs/baseline-1 runs/baseline-2 runs/baseline-3",
    "flair-jax summarize runs/* --split=val --markdown",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Defines the flags."""
    add = parser.add_argument
    add("workdirs", nargs="+", metavar="WORKDIR", help="folder of a run")
    add(
        "--split", type=one_of(*SPLITS), default="test", metavar="NAME",
        help="whose scores to show: train, val or test (the default)",
    )  # fmt: skip
    add("--markdown", action="store_true", help="print tables in Markdown")


def run(args: argparse.Namespace) -> int:
    """Prints the tables; returns the exit status."""
    from flair_jax.evaluation.summarize import summarize

    print(summarize(args.workdirs, args.split, args.markdown))
    return 0
