"""The parser of all subcommands: argparse with hints for misspelt flags, and one style of help."""

import argparse
import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from flair_jax.cli import config_flags
from flair_jax.errors import UsageError

WIDTH = 80  # columns of the help
RENAMED = {"--average": "--ema"}  # flags of version 0.1


class Parser(argparse.ArgumentParser):
    """The parser of one subcommand.

    Mistakes raise a `UsageError`. Flags cannot be abbreviated, and those that take several values
    take them after `=` too: `--input=a.tif b.tif`.
    """

    def __init__(self, prog: str, description: str, examples: Sequence[str]) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog="\n".join(["examples:", *(f"  {example}" for example in examples)]),
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        self._negative_number_matcher = re.compile(r"-\.?\d")  # so that -1,2550 is no flag

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would print with the usage."""
        raise UsageError(message)

    def parse(self, args: Sequence[str]) -> argparse.Namespace:
        """The values of the flags; `changes` holds those of `--config.KEY=VALUE`, if it is one."""
        known = self._option_string_actions
        changes: list[tuple[str, str]] = []
        if config_flags.CHANGE in known:
            changes, args = config_flags.split(args)
        given: list[str] = []
        for position, arg in enumerate(args):
            if arg == "--":
                given += args[position:]
                break
            flag, equals, value = arg.partition("=")
            # Before argparse, which would first complain of the required flag that is misspelt.
            if flag.startswith("--") and flag not in known:
                if flag in RENAMED:
                    raise UsageError(f"{flag} is now called {RENAMED[flag]}")
                hint = did_you_mean(flag, known) or f"; see {self.prog} --help"
                raise UsageError(f"unknown flag {flag}{hint}")
            several = flag in known and known[flag].nargs == "+"
            given += [flag, value] if equals and several else [arg]
        values = self.parse_intermixed_args(given)
        if config_flags.CHANGE in known:
            values.changes = changes
        return values


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=WIDTH)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean NAME?` of the nearest name, or "" if none is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def one_of(*choices: str) -> Callable[[str], str]:
    """An argparse type: one of some texts, the nearest of which is named for a misspelt one."""

    def choose(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(
                f"{text!r} is none of {', '.join(choices)}{did_you_mean(text, choices)}"
            )
        return text

    return choose


def numbers(text: str) -> tuple[int, ...]:
    """An argparse type: integers with commas between them."""
    try:
        return tuple(map(int, text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 1,2,3") from error
