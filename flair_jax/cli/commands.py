"""The command `flair-jax`: the list of subcommands, and what every one of them has in common."""

import importlib
import os
import sys
from collections.abc import Sequence

import flair_jax
from flair_jax.cli.parser import Parser, did_you_mean
from flair_jax.errors import UsageError, UserError

COMMANDS = {
    "doctor": "Check a FLAIR #1 download or a built data set.",
    "build": "Build the data set for training: FLAIR #1, or your images.",
    "train": "Train a model, or resume a run; then evaluate the test split.",
    "evaluate": "Evaluate a trained run on a split.",
    "predict": "Predict a split with a trained run, as georeferenced rasters.",
    "detect": "Predict the land cover of rasters of any size.",
    "report": "Write the HTML report of one or several runs.",
    "summarize": "Print scores of several runs: means and standard deviations.",
    "config": "List the configuration keys, or what a configuration changes.",
    "import-torch": "Convert PyTorch weights to a checkpoint.",
    "export": "Convert a checkpoint: PyTorch weights, ONNX, StableHLO.",
    "train-compile": "Compile the train step for TPUs or GPUs: memory, roofline.",
    "synthetic": "Write a small synthetic data set in FLAIR #1's file layout.",
}
RENAMED = {"export-torch": "export --format=torch --checkpoint=DIR --output=FILE"}
EXAMPLES = ("flair-jax train --config=toy", "flair-jax detect --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: the arguments after the name of the program; None: those of this process.

    Returns:
        The exit status: 0, or 1 for an error, 2 for a command line that cannot be read.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name, *flags = argv or ["--help"]
    try:
        if name in ("-h", "--help"):
            print(overview())
            status = 0 if argv else 2
        elif name == "--version":
            print(f"flair-jax {flair_jax.__version__}")
            status = 0
        else:
            status = _run(name, flags)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _run(name: str, flags: list[str]) -> int:
    if name not in COMMANDS:
        if name.startswith("-"):
            raise UsageError(f"a command comes before its flags, such as {EXAMPLES[0]}")
        if name in RENAMED:
            raise UsageError(f"{name} is now flair-jax {RENAMED[name]}")
        hint = did_you_mean(name, COMMANDS) or "; see flair-jax --help"
        raise UsageError(f"unknown command {name!r}{hint}")
    module = importlib.import_module(f"flair_jax.cli.{name.replace('-', '_')}")
    parser = Parser(f"flair-jax {name}", COMMANDS[name], module.EXAMPLES)
    module.add_flags(parser)
    return module.run(parser.parse(flags))


def overview() -> str:
    """What `flair-jax --help` prints."""
    lines = [
        "usage: flair-jax COMMAND [flags]",
        "",
        "FLAIR #1 land cover in JAX: train, evaluate and apply the U-Net baseline.",
        "",
        "commands:",
        *(f"  {name:<15}{text}" for name, text in COMMANDS.items()),
        "",
        "flair-jax COMMAND --help shows the flags of a command, --version the version.",
        "",
        "examples:",
        *(f"  {example}" for example in EXAMPLES),
    ]
    return "\n".join(lines)
