"""Train, evaluate or predict; `flair-jax train`, `evaluate` and `predict` do the same.

python -m flair_jax.main --config=configs/baseline.py [--workdir=DIR] [--mode=train|eval|predict]
"""

import sys

from absl import app, flags

from flair_jax.cli import config_flags, runs
from flair_jax.errors import UserError
from flair_jax.runtime import huge_pages

_CONFIG = flags.DEFINE_string(
    "config", None,
    "Configuration file, or the name of a shipped one; --config.KEY=VALUE changes one of its keys.",
)  # fmt: skip
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; runs/<name of the configuration> if not given."
)
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval", "predict"],
    "train (or resume, then evaluate the test split), or evaluate or predict with a trained run.",
)  # fmt: skip
_SPLIT = flags.DEFINE_enum(
    "split", "test", runs.SPLITS, "What --mode=eval and --mode=predict work on."
)
_EMA = flags.DEFINE_bool(
    "ema", None,
    "Evaluate or predict with the exponential moving average of the weights (config.ema_decay), or "
    "not; by default what config.monitor watches.",
)  # fmt: skip
_ADAPT = flags.DEFINE_enum(
    "adapt", "", ["", "domain"],
    "Evaluate or predict with batch statistics re-estimated from the images of each domain, "
    "without labels (AdaBN).",
)  # fmt: skip
_SUBMISSION = flags.DEFINE_string(
    "submission", None, "With --mode=predict: also write the challenge's zip of the test split."
)
_OVERLAYS = flags.DEFINE_string(
    "overlays", "0",
    "With --mode=predict: also draw the classes over so many images, spread over the split, or "
    "over 'all'; into predictions_overlays/OVERLAY_<number>.png.",
)  # fmt: skip
flags.DEFINE_bool(
    "multihost", None,
    "Work as one of several hosts. Under Slurm, Open MPI and on GKE's TPU slices this needs no "
    "flag; give --multihost on each host of a Cloud TPU pod.",
)  # fmt: skip
flags.DEFINE_string(
    "coordinator", None, "host:port of process 0, on clusters that JAX does not recognise."
)
flags.DEFINE_integer("num_processes", None, "Number of hosts, with --coordinator.")
flags.DEFINE_integer("process_id", None, "This host's number from 0, with --coordinator.")


def main(argv: list[str], changes: config_flags.Changes) -> None:
    """Runs the mode that the flags ask for.

    Args:
        argv: what absl has left: the program, and arguments that are no flags.
        changes: of `--config.KEY=VALUE`.
    """
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: flags are written --name=value")
    if _MODE.value != "predict" and (_SUBMISSION.value or _OVERLAYS.value != "0"):
        raise UserError("--submission and --overlays belong to --mode=predict")
    if _MODE.value == "train" and _ADAPT.value:
        raise UserError("--adapt belongs to --mode=eval and --mode=predict")
    work = {
        "train": runs.train,
        "eval": runs.evaluate(_SPLIT.value, _EMA.value, _ADAPT.value),
        "predict": runs.predict(
            _SPLIT.value, _EMA.value, _ADAPT.value, _OVERLAYS.value, _SUBMISSION.value
        ),
    }[_MODE.value]
    runs.run(
        work, config=_CONFIG.value, changes=changes, workdir=_WORKDIR.value,
        trained=_MODE.value != "train",
        hosts={name: flags.FLAGS[name].value for name in runs.HOSTS},
    )  # fmt: skip


def run() -> None:
    """Entry point of the command."""
    changes: list[tuple[str, str]] = []

    def parse_flags(argv: list[str]) -> list[str]:
        changes[:], rest = config_flags.split(argv[1:])
        if any(arg.lstrip("-").partition("=")[0] in ("average", "noaverage") for arg in rest):
            raise UserError("--average is now called --ema")
        try:
            return flags.FLAGS([argv[0], *rest])
        except flags.Error as error:
            raise UserError(f"{error}\nPass --help to see the flags.") from error

    try:
        app.run(lambda argv: main(argv, changes), flags_parser=parse_flags)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    huge_pages.use("flair_jax.main")
    run()
