"""The command: trains, scores or predicts.

python -m flair_jax.main --config=configs/baseline.py [--workdir=DIR] [--mode=train|eval|predict]
"""

import errno
import pathlib
import signal
import traceback

from absl import app, flags, logging

from flair_jax import command_line
from flair_jax.errors import UserError
from flair_jax.runtime import distributed, huge_pages
from flair_jax.runtime.preemption import Preempted

flags.declare_key_flag("config")
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
_SUBMISSION = flags.DEFINE_string(
    "submission", None, "With --mode=predict: also write the challenge's zip of the test split."
)
_OVERLAYS = flags.DEFINE_string(
    "overlays", "0",
    "With --mode=predict: also draw the classes over so many patches, spread over the split, or "
    "over 'all'; into predictions_overlays/OVERLAY_<number>.png.",
)  # fmt: skip
distributed.define_flags()
_LOST_PROCESS = (
    "error: this host ends, and the others will within two minutes. If another host was lost, "
    "see its messages; the same command on every host resumes from what is saved"
)


def main(argv: list[str]) -> None:
    """Runs the mode that the flags ask for."""
    config = command_line.given_config(argv)
    if _MODE.value != "predict" and (_SUBMISSION.value or _OVERLAYS.value != "0"):
        raise UserError("--submission and --overlays belong to --mode=predict")
    logging.set_verbosity(logging.ERROR)  # Orbax narrates every save

    distributed.start()
    from etils import epath

    from flair_jax.data import synthetic
    from flair_jax.evaluation import evaluate, predict
    from flair_jax.report import page
    from flair_jax.runtime import compilation_cache, storage
    from flair_jax.training import loop

    compilation_cache.use(config.compilation_cache)

    workdir = epath.Path(_WORKDIR.value or f"runs/{command_line.config_name()}")
    storage.check_reachable(workdir, "--workdir")
    if config.synthetic.use:
        config = synthetic.prepare(config)
    if _MODE.value == "train":
        loop.train_and_evaluate(config, workdir)
        if config.report_after_training:
            page.update_report(workdir.expanduser())
    elif _MODE.value == "eval":
        evaluate.evaluate_run(config, workdir, _SPLIT.value, _AVERAGE.value)
    else:
        overlays = predict.overlay_count(_OVERLAYS.value)
        predict.predict_run(
            config, workdir, _SPLIT.value, _AVERAGE.value, overlays, _SUBMISSION.value
        )


def with_saved_config(argv: list[str]) -> list[str]:
    """Adds `--config` of the workdir where only a workdir is given, as eval and predict allow.

    Raises:
        UserError: the workdir has none.
    """
    given = command_line.flags_as_written(argv)
    if "config" in given or "workdir" not in given or given.get("mode", "train") == "train":
        return argv
    from etils import epath

    from flair_jax.runtime import storage

    storage.check_reachable(given["workdir"], "--workdir")
    if not (epath.Path(given["workdir"]).expanduser() / "config.json").exists():
        raise UserError(
            f"there is no {given['workdir']}/config.json: {given['workdir']} is not the workdir of "
            "a run. Give the --workdir of a run, or train one with --config=configs/baseline.py"
        )
    saved = pathlib.Path(__file__).with_name("saved_config.py")
    return [argv[0], f"--config={saved}:{given['workdir']}", *argv[1:]]


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line, with the workdir's configuration where that is allowed."""
    return command_line.parse_flags(with_saved_config(argv))


def run() -> None:
    """Entry point of the command."""
    # Outside the training loop, which notes them, both signals end the program where it is: what
    # is written is written whole, and the same command goes on.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app.run(main, flags_parser=parse_flags)
    except UserError as error:
        distributed.leave(f"error: {error}")
    except Preempted as stop:
        print(stop)
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes from what is saved")
        distributed.leave(0)
    except Exception as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            distributed.leave(
                f"error: nothing more can be written ({error}). What was saved before is whole: "
                "make room, and give the same command again"
            )
        traceback.print_exc()
        distributed.leave(_LOST_PROCESS if distributed.joined() else 1)


if __name__ == "__main__":
    huge_pages.use("flair_jax.main")
    run()
