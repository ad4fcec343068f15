"""The command: trains, scores or predicts.

python -m flair_jax.main --config=configs/baseline.py [--workdir=DIR] [--mode=train|eval|predict]
"""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from flair_jax.errors import UserError

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


def main(argv: list[str]) -> None:
    """Runs the mode that the flags ask for."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}: flags are written --name=value")
    if _CONFIG.value is None:
        raise app.UsageError("--config=FILE is needed, such as --config=configs/baseline.py")
    logging.set_verbosity(logging.WARNING)
    config = _CONFIG.value
    workdir = pathlib.Path(_WORKDIR.value or pathlib.Path("runs") / _config_name())

    from flair_jax import evaluate, predict, synthetic, train

    try:
        if config.synthetic.use:
            config = synthetic.prepare(config)
        if _MODE.value == "train":
            train.train_and_evaluate(config, workdir)
        elif _MODE.value == "eval":
            evaluate.evaluate_run(config, workdir, _SPLIT.value)
        else:
            predict.predict_run(config, workdir, _SPLIT.value)
    except UserError as error:
        sys.exit(f"error: {error}")


def _config_name() -> str:
    return pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem


def with_saved_config(argv: list[str]) -> list[str]:
    """Adds `--config` of the workdir where only a workdir is given, as eval and predict allow."""
    given = {arg.split("=", 1)[0].lstrip("-"): arg.split("=", 1)[-1] for arg in argv[1:]}
    if "config" in given or "workdir" not in given or given.get("mode", "train") == "train":
        return argv
    saved = pathlib.Path(__file__).with_name("saved_config.py")
    return [argv[0], f"--config={saved}:{given['workdir']}", *argv[1:]]


def run() -> None:
    """Entry point of the command."""
    try:
        app.run(main, argv=with_saved_config(sys.argv))
    except UserError as error:  # from a configuration file that is read while flags are parsed
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    run()
