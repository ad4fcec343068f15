"""What train, evaluate and predict share: flags, configuration and workdir, start and end."""

import argparse
import errno
import signal
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from flair_jax.cli import config_flags
from flair_jax.cli.config_flags import Changes
from flair_jax.cli.parser import one_of
from flair_jax.errors import UserError
from flair_jax.runtime import distributed
from flair_jax.runtime.preemption import Preempted

if TYPE_CHECKING:  # what is heavy is imported once the flags have been read
    import ml_collections
    from etils import epath

    from flair_jax.models.spec import ModelSpec

    Work = Callable[[ml_collections.ConfigDict, epath.Path], Any]

SPLITS = ("train", "val", "test")
HOSTS = ("multihost", "coordinator", "num_processes", "process_id")  # flags of `distributed.start`
_LOST_PROCESS = (
    "error: this host ends, and the others will within two minutes. If another host was lost, "
    "see its messages; the same command on every host resumes from what is saved"
)


def add_flags(parser: argparse.ArgumentParser, workdir_help: str) -> None:
    """Defines the flags of all three."""
    config_flags.add_flags(parser)
    parser.add_argument("--workdir", metavar="DIR", help=workdir_help)
    hosts = parser.add_argument_group(
        "several hosts", "Under Slurm, Open MPI and on GKE's TPU slices no flag is needed."
    )
    add = hosts.add_argument
    add(
        "--multihost", action="store_true", default=None,
        help="work as one of several hosts: give it on each host of a Cloud TPU pod",
    )  # fmt: skip
    add("--nomultihost", action="store_false", dest="multihost", help="work alone")
    add(
        "--coordinator", metavar="HOST:PORT",
        help="of process 0, on clusters that JAX does not recognise",
    )  # fmt: skip
    add("--num_processes", type=int, metavar="N", help="of all hosts, with --coordinator")
    add("--process_id", type=int, metavar="I", help="of this host from 0, with --coordinator")


def add_evaluation_flags(parser: argparse.ArgumentParser) -> None:
    """Defines the flags of evaluate and predict."""
    add_flags(parser, "the run; without --config its own configuration is used")
    parser.add_argument(
        "--split", type=one_of(*SPLITS), default="test", metavar="NAME",
        help="train, val or test (the default)",
    )  # fmt: skip
    parser.add_argument(
        "--ema", action=argparse.BooleanOptionalAction, default=None,
        help="use the exponential moving average of the weights (config.ema_decay), or not; by "
        "default what config.monitor watches",
    )  # fmt: skip
    parser.add_argument(
        "--adapt", type=one_of("domain"), metavar="domain",
        help="re-estimate the batch statistics from the images of each domain, without labels "
        "(AdaBN)",
    )  # fmt: skip


def run(
    work: "Work",
    *,
    config: str | None,
    changes: Changes,
    workdir: str | None,
    trained: bool,
    hosts: Mapping[str, Any],
) -> int:
    """Works, and ends as a user, a cluster or a full disk asks.

    Args:
        work: takes the configuration and the workdir.
        config, changes, workdir, trained: see `configuration`.
        hosts: see `distributed.start`.

    Returns:
        The exit status.

    Raises:
        UserError: something that the user can mend is wrong.
    """
    # Outside the training loop, which notes them, both signals end the program where it is: what
    # is written is written atomically, and the same command resumes.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        values, folder = configuration(config, changes, workdir, trained=trained)
        from flair_jax.runtime import arithmetic

        if values.deterministic:
            arithmetic.fix_order()
        distributed.start(**hosts)
        import jax
        from absl import logging

        from flair_jax.data import synthetic
        from flair_jax.runtime import compilation_cache, storage

        logging.set_verbosity(logging.ERROR)  # Orbax logs every save
        compilation_cache.use(values.compilation_cache)
        if values.matmul_precision != "highest":  # otherwise the backend need not start yet
            arithmetic.set_precision(values.matmul_precision, jax.devices()[0])
        storage.check_reachable(folder, "--workdir")
        if values.synthetic.use:
            values = synthetic.prepare(values)
        work(values, folder)
    except UserError as error:
        if not distributed.joined():
            raise
        distributed.leave(f"error: {error}")
    except Preempted as stop:
        print(stop)
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes from what is saved")
        distributed.leave(0)
    except Exception as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            distributed.leave(
                f"error: nothing more can be written ({error}). What was saved before is complete: "
                "make room, and give the same command again"
            )
        traceback.print_exc()
        distributed.leave(_LOST_PROCESS if distributed.joined() else 1)
    return 0


def configuration(
    name: str | None, changes: Changes, workdir: str | None, *, trained: bool
) -> "tuple[ml_collections.ConfigDict, epath.Path]":
    """The configuration and the workdir that the flags describe.

    Args:
        name: of `--config`, or None: of a trained run the configuration in its workdir is taken.
        changes: of `--config.KEY=VALUE`.
        workdir: of `--workdir`, or None: runs/<name of the configuration>.
        trained: whether it is for evaluating or predicting with a trained run.

    Raises:
        UserError: there is none, it cannot be, or it contradicts the trained run.
    """
    from etils import epath

    from flair_jax import config as configurations
    from flair_jax.runtime import storage

    if name is None and trained and workdir is not None:
        storage.check_reachable(workdir, "--workdir")
        config = config_flags.change(configurations.load(workdir), changes)
    else:
        config = config_flags.read(name, changes)
    folder = epath.Path(workdir or f"runs/{config_flags.stem(name or '')}").expanduser()
    if trained:
        storage.check_reachable(folder, "--workdir")
        if (folder / "config.json").exists():
            configurations.check_same_model(config, folder)
        else:
            _check_against_spec(config, [key for key, _ in changes], folder)
    return config, folder


def _check_against_spec(
    config: "ml_collections.ConfigDict", keys: list[str], workdir: "epath.Path"
) -> None:
    """Raises a UserError if given keys contradict a model that is no run's, as of import-torch."""
    from flair_jax.config_keys import KEYS
    from flair_jax.models.spec import FILE, ModelSpec

    keys = [key for key in keys if KEYS[key].of_model]
    if not keys or not (workdir / "checkpoints" / FILE).exists():
        return
    saved = ModelSpec.load(workdir / "checkpoints")
    given = ModelSpec.from_config(config, saved.patch_size)
    old, new = _by_key(saved), _by_key(given)
    for key in keys:
        if old[key] != new[key]:
            raise UserError(
                f"config.{key} contradicts the model in {workdir}: {old[key]!r} in its model.json, "
                f"{new[key]!r} given. Leave the key out"
            )


def _by_key(spec: "ModelSpec") -> dict[str, Any]:
    """What a model's spec says to the keys of a configuration that are `of_model`."""
    classes = [(c.name, c.weight, *c.values) for c in spec.nomenclature.classes]
    return {
        "bands": spec.bands,
        "normalization": spec.normalization,
        "normalization_means": spec.means,
        "normalization_stds": spec.stds,
        "nomenclature": classes,
        "classes": classes,
        "disabled_classes": classes,
        "unlisted_values": spec.unlisted_values,
        "dtype": spec.dtype,
        "metadata.use": spec.takes_metadata,
        "metadata.encoding": spec.metadata_encoding,
        "metadata.fusion": spec.metadata_fusion,
    }


def train(config: "ml_collections.ConfigDict", workdir: "epath.Path") -> None:
    """Trains, or resumes; then evaluates and writes the report."""
    from flair_jax.report import page
    from flair_jax.training import loop

    loop.train_and_evaluate(config, workdir)
    if config.report_after_training:
        page.update_report(workdir)


def evaluate(split: str, ema: bool | None, adapt: str) -> "Work":
    """The work of evaluating a split."""

    def work(config: "ml_collections.ConfigDict", workdir: "epath.Path") -> None:
        from flair_jax.evaluation.evaluate import evaluate_run

        evaluate_run(config, workdir, split, ema, adapt)

    return work


def predict(
    split: str, ema: bool | None, adapt: str, overlays: str, submission: str | None
) -> "Work":
    """The work of predicting a split."""

    def work(config: "ml_collections.ConfigDict", workdir: "epath.Path") -> None:
        from flair_jax.evaluation.predict import overlay_count, predict_run

        predict_run(config, workdir, split, ema, adapt, overlay_count(overlays), submission)

    return work
