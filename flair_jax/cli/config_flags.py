"""The flags `--config=NAME|PATH` and `--config.KEY=VALUE`, and the configuration they describe."""

import argparse
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flair_jax.errors import UsageError, UserError

if TYPE_CHECKING:  # what is heavy is imported once the flags have been read
    import ml_collections

CHANGE = "--config.KEY"
Changes = Sequence[tuple[str, str]]  # (key, value as written)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Defines both; the second in name only, since `split` takes the keys off before."""
    parser.add_argument(
        "--config", metavar="NAME|PATH",
        help="baseline, metadata_augmentation, toy, or the path of a configuration file",
    )  # fmt: skip
    parser.add_argument(
        CHANGE, metavar="VALUE", help="change a key of it; flair-jax config lists all keys"
    )


def split(args: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Takes `--config.KEY=VALUE`, `--config.KEY VALUE` and, of switches, `--config.KEY` off.

    Returns:
        The keys with their values as written, and the other arguments.

    Raises:
        UsageError: there is no such key, or its value is missing.
    """
    changes, rest = [], []
    remaining = list(args)
    while remaining:
        arg = remaining.pop(0)
        name, equals, value = arg.partition("=")
        dashes = len(name) - len(name.lstrip("-"))
        bare = name[dashes:]
        if arg == "--" or not dashes or not bare.startswith(("config.", "noconfig.")):
            rest += [arg, *remaining] if arg == "--" else [arg]
            remaining = [] if arg == "--" else remaining
            continue
        key, negated = bare.split(".", 1)[1], bare.startswith("no")
        switch = _is_switch(key)
        if negated and (equals or not switch):
            raise UsageError(f"{arg}: write --config.{key}=VALUE")
        if not equals and switch:
            value = str(not negated)
        elif not equals:
            if not remaining:
                raise UsageError(f"{name} needs a value: {name}=VALUE")
            value = remaining.pop(0)
        changes.append((key, value))
    return changes, rest


def _is_switch(key: str) -> bool:
    """Whether a key is True or False."""
    from flair_jax import config
    from flair_jax.config_keys import KEYS

    try:
        config.check_known(key, "on the command line")
    except UserError as error:
        raise UsageError(str(error)) from error
    return isinstance(KEYS[key].default, bool)


def read(name: str | None, changes: Changes) -> "ml_collections.ConfigDict":
    """The configuration of `--config`, changed and checked.

    Raises:
        UserError: there is none, or it cannot be.
    """
    from flair_jax import config

    if name is None:
        raise UsageError(
            "--config=NAME or --config=FILE is needed, such as --config=baseline; there are "
            + ", ".join(config.shipped())
        )
    return change(config.read(name), changes)


def change(config: "ml_collections.ConfigDict", changes: Changes) -> "ml_collections.ConfigDict":
    """Changes keys of a configuration in place, and checks all of it."""
    from flair_jax import config as configuration

    texts: dict[str, list[str]] = {}
    for key, text in changes:
        texts.setdefault(key, []).append(text)
    for key, written in texts.items():
        configuration.set_text(config, key, written)
    configuration.validate(config)
    return config


def stem(name: str) -> str:
    """The name of a configuration, without folder, ending and argument."""
    return pathlib.Path(name.partition(":")[0]).stem
