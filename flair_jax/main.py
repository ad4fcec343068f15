"""The command: trains, scores or predicts.

python -m flair_jax.main --config=configs/baseline.py [--workdir=DIR] [--mode=train|eval|predict]
"""

import errno
import pathlib
import signal
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from flair_jax import hosts
from flair_jax.errors import UserError
from flair_jax.interruption import Interrupted

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="Configuration file; --config.KEY=VALUE changes one of its keys."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; runs/<name of the configuration> if not given."
)
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval", "predict"],
    "train (or go on, then score the test split), or score or predict with a trained run.",
)  # fmt: skip
_SPLIT = flags.DEFINE_enum(
    "split", "test", ["train", "val", "test"], "What --mode=eval and --mode=predict work on."
)
_AVERAGE = flags.DEFINE_bool(
    "average", False, "Score or predict with the moving average of the weights (config.ema_decay)."
)
hosts.define_flags()


def main(argv: list[str]) -> None:
    """Runs the mode that the flags ask for."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: flags are written --name=value")
    if _CONFIG.value is None:
        raise UserError("--config=FILE is needed, such as --config=configs/baseline.py")
    logging.set_verbosity(logging.ERROR)  # Orbax narrates every save
    config = _CONFIG.value

    hosts.start()
    from etils import epath

    from flair_jax import compilation_cache, evaluate, predict, synthetic, train

    compilation_cache.use(config.compilation_cache)

    workdir = epath.Path(_WORKDIR.value or f"runs/{_config_name()}")
    if config.synthetic.use:
        config = synthetic.prepare(config)
    if _MODE.value == "train":
        train.train_and_evaluate(config, workdir)
    elif _MODE.value == "eval":
        evaluate.evaluate_run(config, workdir, _SPLIT.value, _AVERAGE.value)
    else:
        predict.predict_run(config, workdir, _SPLIT.value, _AVERAGE.value)


def _config_name() -> str:
    return pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem


def with_saved_config(argv: list[str]) -> list[str]:
    """Adds `--config` of the workdir where only a workdir is given, as eval and predict allow.

    Raises:
        UserError: the workdir has none.
    """
    given = _given(argv)
    if "config" in given or "workdir" not in given or given.get("mode", "train") == "train":
        return argv
    if not (pathlib.Path(given["workdir"]) / "config.json").exists():
        raise UserError(
            f"there is no {given['workdir']}/config.json: {given['workdir']} is not the workdir of "
            "a run. Give the --workdir of a run, or train one with --config=configs/baseline.py"
        )
    saved = pathlib.Path(__file__).with_name("saved_config.py")
    return [argv[0], f"--config={saved}:{given['workdir']}", *argv[1:]]


def _given(argv: list[str]) -> dict[str, str]:
    """The flags of a command line as written, `--name=value` or `--name value`."""
    given = {}
    for arg, following in zip(argv[1:], [*argv[2:], ""], strict=True):
        if arg.startswith("-"):
            name, equals, value = arg.lstrip("-").partition("=")
            given[name] = value if equals else following
    return given


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; what is wrong with it becomes one message.

    Raises:
        UserError: a flag, a configuration key or the configuration file is not there.
    """
    argv = with_saved_config(argv)
    given = _given(argv)
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


def run() -> None:
    """Entry point of the command."""
    # Outside the training loop, which notes them, both signals end the program where it is: what
    # is written is written whole, and the same command goes on.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app.run(main, flags_parser=parse_flags)
    except UserError as error:
        sys.exit(f"error: {error}")
    except Interrupted as stop:
        print(stop)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from what is saved")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        sys.exit(
            f"error: nothing more can be written ({error}). What was saved before is whole: make "
            "room, and give the same command again"
        )


if __name__ == "__main__":
    run()
