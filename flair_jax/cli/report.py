"""flair-jax report: the HTML report of one or several runs."""

import argparse

from flair_jax.cli.parser import one_of
from flair_jax.cli.runs import SPLITS

EXAMPLES = (
    "flair-jax report runs/baseline",
    "flair-jax report runs/a runs/b --output=comparison.html",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Defines the flags."""
    add = parser.add_argument
    add("workdirs", nargs="+", metavar="WORKDIR", help="folder of a run")
    add(
        "--output",
        metavar="FILE",
        help="to write; index.html in the workdir, or here for several runs",
    )
    add(
        "--split",
        type=one_of(*SPLITS),
        default="test",
        metavar="NAME",
        help="whose scores to show: train, val or test (the default)",
    )
    add(
        "--gallery", type=int, metavar="N",
        help="best, typical and worst patches to show of a run; 0: none (3; 1 for several runs)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Writes the report; returns the exit status."""
    from absl import logging

    from flair_jax.report.page import write_report

    logging.set_verbosity(logging.ERROR)  # Orbax logs that it only reads
    output = write_report(args.workdirs, args.output, split=args.split, gallery=args.gallery)
    print(f"written to {output}")
    return 0
