"""flair-jax config: every key of a configuration, or what one changes."""

import argparse
import textwrap

from flair_jax.cli import config_flags

EXAMPLES = (
    "flair-jax config",
    "flair-jax config --config=toy --config.batch_size=4",
)
WIDTH = 80


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Defines the flags."""
    config_flags.add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the keys, or the changes; returns the exit status."""
    from flair_jax import config
    from flair_jax.config_keys import KEYS

    if args.config is None and not args.changes:
        print(all_keys())
        return 0
    if args.config is None:
        changed = config_flags.change(config.default(), args.changes)
    else:
        changed = config_flags.read(args.config, args.changes)
    before, after = config.flat(config.default()), config.flat(changed)
    lines = [
        f"config.{key} = {after[key]!r} (default {before[key]!r})"
        for key in KEYS
        if before[key] != after[key]
    ]
    print("\n".join(lines) or "nothing is changed: these are the defaults, the published baseline")
    return 0


def all_keys() -> str:
    """Every key with its default, its meaning and its values."""
    from flair_jax import config
    from flair_jax.config_keys import SECTIONS

    lines = [
        "Keys of a configuration, with their defaults (the published baseline's).",
        "Change one with --config.KEY=VALUE. Those with a * may be changed when a run",
        "resumes. Configurations by name:",
        f"{', '.join(config.shipped())}.",
    ]
    for section, keys in SECTIONS.items():
        lines += ["", section]
        for key in keys:
            lines.append(f"{'*' if key.changeable else ' '} {key.name} = {key.default!r}")
            text = f"{key.meaning} [{key.expected}]"
            lines += textwrap.wrap(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)
