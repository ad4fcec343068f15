"""Set-up of a training: checks before the first step, the experiment, its first state."""

import dataclasses
import json
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from flair_jax import config as configuration
from flair_jax.data import dataset, fingerprint, input_pipeline
from flair_jax.data.dataset import Split
from flair_jax.errors import UserError
from flair_jax.evaluation.evaluate import EvalStep, make_eval_step
from flair_jax.inference.georeference import common_pixel_size
from flair_jax.models.functional import Arrays, abstract_model
from flair_jax.models.spec import FILE, ModelSpec
from flair_jax.runtime import arithmetic, checksums, console
from flair_jax.runtime.atomic_io import atomic_write
from flair_jax.runtime.sharding import check_batch_size, from_first, largest, make_mesh, replicate
from flair_jax.runtime.storage import is_remote
from flair_jax.training.augmentation import radiometric_bands
from flair_jax.training.checkpoints import Checkpoints
from flair_jax.training.initialization import initial_weights, random_weights
from flair_jax.training.optimizer import learning_rate, make_optimizer, with_learning_rate
from flair_jax.training.schedules import Monitor, Plateau, Progress
from flair_jax.training.state import TrainState, create_train_state
from flair_jax.training.step import (
    TrainStep,
    batch_norm_groups,
    make_train_step,
    set_training_options,
)

RECORD = "run.json"  # what a run was started with, beside its configuration


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What does not change while a run trains; `make_experiment` checks and makes it.

    Attributes:
        config: with its batch size settled.
        workdir: the run's folder.
        mesh: the devices.
        spec, graphdef: of the model.
        train, val: the splits.
        eval_batch_size: global batch of the validation.
        steps_per_epoch: whole batches of the training split.
        optimizer: its state is in the `TrainState`.
        train_step, eval_step: jitted functions.
        record: what must be the same when the run resumes: data set, steps an epoch, groups.
    """

    config: ml_collections.ConfigDict
    workdir: epath.Path
    mesh: Mesh
    spec: ModelSpec
    graphdef: nnx.GraphDef
    train: Split
    val: Split
    eval_batch_size: int
    steps_per_epoch: int
    optimizer: optax.GradientTransformation
    train_step: TrainStep
    eval_step: EvalStep
    record: dict[str, Any]

    @property
    def monitor(self) -> Monitor:
        """The validation value that decides which epoch is best."""
        return Monitor(self.config.monitor)

    @property
    def plateau(self) -> Plateau:
        """The schedule of the learning rate."""
        return Plateau(**self.config.plateau)

    @property
    def num_steps(self) -> int:
        """Steps of the whole training, unless it stops early."""
        return self.steps_per_epoch * self.config.num_epochs

    def is_finished(self, progress: Progress) -> bool:
        """Whether a run has come to its end."""
        return (
            progress.epoch >= self.config.num_epochs
            or progress.epochs_since_best >= self.config.early_stop_patience
        )


def make_experiment(
    config: ml_collections.ConfigDict, workdir: epath.PathLike, mesh: Mesh | None = None
) -> Experiment:
    """Checks everything that can be checked before the first step; writes nothing.

    Args:
        config: see `config.default`.
        workdir: the run's folder, which need not exist.
        mesh: the devices; all of them if None.

    Raises:
        UserError: something does not fit, or the workdir holds a run of other settings or data.
    """
    workdir, mesh = epath.Path(workdir).expanduser(), mesh or make_mesh()
    configuration.validate(config)
    if config.profile[1] and is_remote(workdir):
        raise UserError(
            f"config.profile={config.profile} writes a profile, which needs a local folder, and "
            f"--workdir={workdir} is not one: profile in a short run with a local --workdir"
        )
    config = configuration.with_batch_size(config, mesh.size, workdir)
    configuration.check_unchanged(config, workdir)
    check_batch_size(config.batch_size, mesh, "config.batch_size", config.accumulate_steps)
    eval_batch_size = configuration.eval_batch_size(config, mesh.size)
    check_batch_size(eval_batch_size, mesh, "config.eval_batch_size")
    directory = dataset.dataset_directory(config.data_dir, config.data_config)
    train, val = (dataset.open_split(directory, name) for name in ("train", "val"))
    dataset.check_masks(train)
    dataset.check_masks(val)
    configuration.check_patch_size(config, *train.patch_size)
    pixel_size = common_pixel_size(train.records)
    spec = ModelSpec.from_config(config, train.patch_size, pixel_size, train.data)
    if config.augment_radiometry and not _changed_bands(config, spec):
        raise UserError(
            f"config.augment_radiometry changes none of the bands {', '.join(spec.bands)}: "
            f"config.radiometry.keep={config.radiometry.keep!r} excepts them all"
        )
    if (workdir / "checkpoints" / FILE).exists():
        spec.check_same_model(ModelSpec.load(workdir / "checkpoints"), str(workdir / "checkpoints"))
    steps = input_pipeline.steps_per_epoch(train, config.batch_size)
    if config.profile[1] > steps * config.num_epochs:
        raise UserError(
            f"config.profile={config.profile} ends after the run's last step, "
            f"{steps * config.num_epochs} ({config.num_epochs} epochs of {steps} steps)"
        )
    record = {
        "data": fingerprint.fingerprint(directory),
        "steps_per_epoch": steps,
        "batch_norm_groups": batch_norm_groups(config, mesh),
    }
    _check_record(record, workdir, directory)
    model = set_training_options(spec.abstract_model(), config, mesh)
    graphdef = nnx.split(model)[0]
    optimizer = make_optimizer(config, steps * config.num_epochs)
    return Experiment(
        config=config,
        workdir=workdir,
        mesh=mesh,
        spec=spec,
        graphdef=graphdef,
        train=train,
        val=val,
        eval_batch_size=eval_batch_size,
        steps_per_epoch=steps,
        optimizer=optimizer,
        train_step=make_train_step(graphdef, spec, config, optimizer, mesh),
        eval_step=make_eval_step(graphdef, spec, config.loss_normalization, mesh),
        record=record,
    )


def _changed_bands(config: ml_collections.ConfigDict, spec: ModelSpec) -> list[str]:
    return radiometric_bands(spec.bands, config.radiometry.keep)


def _check_record(record: dict[str, Any], workdir: epath.Path, directory: epath.Path) -> None:
    """Raises a UserError unless a run trains on what it was started with, on every process."""
    identity = checksums.seal(record)[checksums.KEY] % 2**31
    if largest(int(from_first([identity]) != [identity])):
        raise UserError(
            f"the processes do not read the same data set: in {directory}, this one has "
            f"{record['data']['splits']}. Give every host the same files"
        )
    path = workdir / RECORD
    if not path.exists():
        return
    try:
        saved = json.loads(path.read_text())
        lines = fingerprint.differences(saved["data"], record["data"])
        groups = saved["batch_norm_groups"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error!r}): remove it if you are sure that the data set in "
            f"{directory} is the run's"
        ) from error
    if lines:
        raise UserError(
            f"{workdir} holds a run on another data set than that in {directory}:\n  "
            + "\n  ".join(lines)
            + "\nGive the config.data_dir of the run's, wherever it lies now, or another --workdir."
        )
    if groups != record["batch_norm_groups"]:
        raise UserError(
            f"{workdir} holds a run with batch statistics of {groups} devices each by itself "
            f"(config.batch_norm='per_device'), and here are {record['batch_norm_groups']}: resume "
            f"it on {groups} devices"
        )


def start(
    experiment: Experiment, checkpoints: Checkpoints
) -> tuple[TrainState, Progress, list[str]]:
    """The state to train from: the newest intact checkpoint's, or the first one.

    Returns:
        State, progress, and lines for the log.

    Raises:
        UserError: the first weights cannot be read, or no checkpoint is intact.
    """
    config = experiment.config
    restored = checkpoints.restore_newest(abstract_state(experiment), experiment.mesh)
    if restored is None:
        state, lines = first_state(experiment)
        progress = Progress()
    else:
        state, progress, lines = restored.state, restored.progress, restored.messages
        if restored.damaged:
            checkpoints.quarantine(restored.damaged)
            lines = [*lines, f"quarantined in {experiment.workdir / 'damaged_checkpoints'}"]
        lines = [
            *lines,
            f"resuming from step {int(state.step)} ({progress.epoch} epochs finished)",
        ]
    limit = config.learning_rate_limit
    if limit and learning_rate(state.opt_state) > limit:
        opt_state = with_learning_rate(state.opt_state, limit)
        state = dataclasses.replace(state, opt_state=opt_state)
        adapted = configuration.follows_validation(config)
        what = "learning rate" if adapted else "largest learning rate"
        lines = [*lines, f"the {what} is {limit:g} from here (config.learning_rate_limit)"]
    return state, progress, lines


def abstract_state(experiment: Experiment) -> TrainState:
    """The names, shapes and dtypes of the state."""
    _, params, batch_stats = abstract_model(experiment.spec)
    return jax.eval_shape(lambda p, s: _state_of(experiment, p, s), params, batch_stats)


def first_state(experiment: Experiment) -> tuple[TrainState, list[str]]:
    """The state before the first step, on every device, and lines that tell where it is from."""
    config, spec, mesh = experiment.config, experiment.spec, experiment.mesh
    params, batch_stats = random_weights(spec, config.seed, mesh)
    params, batch_stats, lines = initial_weights(
        params, batch_stats, spec, init_from=config.init_from,
        encoder_weights=config.encoder_weights, mesh=mesh,
    )  # fmt: skip
    return replicate(_state_of(experiment, params, batch_stats), mesh), lines


def _state_of(experiment: Experiment, params: Arrays, batch_stats: Arrays) -> TrainState:
    ema = experiment.config.ema_decay > 0
    return create_train_state(params, batch_stats, experiment.optimizer, ema=ema)


def make_workdir(experiment: Experiment) -> None:
    """Makes the folder of a run.

    Raises:
        UserError: it cannot be written to.
    """
    workdir = experiment.workdir
    try:
        (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable-{jax.process_index()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"the workdir {workdir} cannot be written to ({error}): choose another --workdir"
        ) from error


def save_settings(experiment: Experiment) -> None:
    """Writes what a run must be resumed with: its record, configuration and model's spec."""
    workdir = experiment.workdir
    if jax.process_index() == 0:
        atomic_write(workdir / RECORD, json.dumps(experiment.record, indent=1) + "\n")
        configuration.save(experiment.config, workdir)
        experiment.spec.save(workdir / "checkpoints")


def describe(experiment: Experiment) -> dict[str, str]:
    """A description of a run: one line each for `data`, `model` and `devices`."""
    spec, config, splits = experiment.spec, experiment.config, (experiment.train, experiment.val)
    counts = " and ".join(f"{len(split):,} {split.name}" for split in splits)
    height, width = spec.patch_size
    device = experiment.mesh.devices.flat[0]
    kind = "CPU" if device.platform == "cpu" else device.device_kind
    inputs = f"{len(spec.bands)} bands" + (" and metadata" if spec.takes_metadata else "")
    crop = f", in crops of {config.crop_size} x {config.crop_size}" if config.crop_size else ""
    parameters = sum(int(np.prod(p.shape)) for p in abstract_state(experiment).params.values())
    return {
        "data": f"{splits[0].directory}: {counts} patches of {height} x {width} pixels{crop}",
        "model": f"U-Net, ResNet34 encoder: {inputs} to {len(spec.nomenclature)} classes, "
        f"{parameters:,} parameters, {spec.dtype}",
        "devices": f"{console.counted(experiment.mesh.size, 'device')} ({kind}) on "
        f"{console.counted(jax.process_count(), 'host')}; "
        f"{console.counted(experiment.steps_per_epoch, 'step')} an epoch, each of a batch of "
        f"{console.counted(config.batch_size, 'patch')}",
    }


def log_start(experiment: Experiment, lines: list[str]) -> None:
    """Prints what is trained, with lines of `start`."""
    described = [f"{key:<8} {text}" for key, text in describe(experiment).items()]
    if experiment.config.augment_radiometry:
        changed = _changed_bands(experiment.config, experiment.spec)
        rest = [name for name in experiment.spec.bands if name not in changed]
        described.append(
            f"augment  radiometry of {', '.join(changed)}"
            + (f"; {', '.join(rest)} unchanged (config.radiometry.keep)" if rest else "")
        )
    device, config = experiment.mesh.devices.flat[0], experiment.config
    if products := arithmetic.describe(config.dtype, config.matmul_precision, device):
        described.append(f"products {products}")
    console.log("\n".join([*described, *lines, f"workdir  {experiment.workdir}"]))
