"""What the commands that take a configuration share: its flag, and how a command line is read."""

import pathlib

import ml_collections
from absl import flags
from ml_collections import config_flags

from flair_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="Configuration file; --config.KEY=VALUE changes one of its keys."
)


def given_config(argv: list[str]) -> ml_collections.ConfigDict:
    """The configuration that the flags describe.

    Args:
        argv: what `app.run` passes on: the arguments that are not flags.

    Raises:
        UserError: there is none, or something is left over that is not a flag.
    """
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: flags are written --name=value")
    if CONFIG.value is None:
        raise UserError("--config=FILE is needed, such as --config=configs/baseline.py")
    return CONFIG.value


def config_name() -> str:
    """The name of the configuration file, without folder and ending."""
    return pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem


def flags_as_written(argv: list[str]) -> dict[str, str]:
    """Name -> value of the flags of a command line, `--name=value` or `--name value`."""
    given = {}
    for arg, following in zip(argv[1:], [*argv[2:], ""], strict=False):
        if arg.startswith("-"):
            name, equals, value = arg.lstrip("-").partition("=")
            given[name] = value if equals else following
    return given


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; what is wrong with it becomes one message.

    Raises:
        UserError: a flag, a configuration key or the configuration file is not there.
    """
    given = flags_as_written(argv)
    file = given.get("config", "").split(":")[0]
    if file and not pathlib.Path(file).exists():
        raise UserError(
            f"there is no configuration file {file} (--config); the repository's configs/ has "
            "baseline.py, metadata_augmentation.py and toy.py: give the path to one"
        )
    try:
        return flags.FLAGS(argv)
    except AttributeError as error:  # what a locked configuration says of an unknown key
        from flair_jax import config

        for name in given:
            if name.startswith("config."):
                config.check_known(name.removeprefix("config."), where="on the command line")
        raise UserError(str(error)) from error
    except flags.Error as error:
        raise UserError(f"{error}\nPass --help to see the flags.") from error
