"""Set-up of a training run: checks, model, checkpoints, data, before the first step."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import ml_collections
from etils import epath
from jax.sharding import Mesh

from flair_jax import config as configuration
from flair_jax.data import input_pipeline
from flair_jax.data.input_pipeline import Split, split_batches
from flair_jax.errors import UserError
from flair_jax.evaluation.evaluate import Evaluation, accumulate, make_eval_step
from flair_jax.inference.georeference import common_pixel_size
from flair_jax.models.functional import Arrays, split_model
from flair_jax.models.spec import FILE, ModelSpec
from flair_jax.runtime import console
from flair_jax.runtime.sharding import check_batch_size, make_mesh, replicate
from flair_jax.runtime.storage import is_remote
from flair_jax.training.checkpoints import Checkpoints, Progress
from flair_jax.training.image_summaries import ImageSummaries
from flair_jax.training.initialization import initial_weights
from flair_jax.training.optimizer import EarlyStop, Plateau, make_optimizer
from flair_jax.training.state import TrainState, create_train_state
from flair_jax.training.step import TrainStep, make_train_step, set_training_options


@dataclasses.dataclass
class Run:
    """The parts of a run that its loop uses; made once by `set_up`."""

    config: ml_collections.ConfigDict
    workdir: epath.Path
    mesh: Mesh
    spec: ModelSpec
    splits: dict[str, Split]
    checkpoints: Checkpoints
    state: TrainState
    progress: Progress
    train_step: TrainStep
    validate: Callable[[Arrays, Arrays, Callable[[], bool]], Evaluation]
    steps_per_epoch: int
    description: dict[str, str]
    image_summaries: ImageSummaries | None
    compiled: bool = False


def set_up(config: ml_collections.ConfigDict, workdir: epath.Path) -> Run:
    """Checks everything that can be checked before the first step, and makes the run's parts.

    The restore order: the workdir's own latest checkpoint, else `config.init_from`, else
    random weights, with an encoder from `config.encoder_weights`.
    """
    configuration.validate(config)
    if config.profile[1] and is_remote(workdir):
        raise UserError(
            f"config.profile={config.profile} writes a profile, which needs a local folder, and "
            f"--workdir={workdir} is not one: profile in a short run with a local --workdir"
        )
    configuration.check_unchanged(config, workdir)
    mesh = make_mesh()
    check_batch_size(config.batch_size, mesh, "config.batch_size", config.accumulate_steps)
    eval_batch_size = config.eval_batch_size or config.batch_size
    check_batch_size(eval_batch_size, mesh, "config.eval_batch_size")
    directory = input_pipeline.dataset_directory(config.data_dir, config.data_config)
    splits = {name: input_pipeline.open_split(directory, name) for name in ("train", "val")}
    height, width = splits["train"].patch_size
    configuration.check_patch_size(config, height, width)
    pixel_size = common_pixel_size(splits["train"].records)
    spec = ModelSpec.from_config(config, (height, width), pixel_size, splits["train"].data)
    steps = input_pipeline.steps_per_epoch(splits["train"], config.batch_size)

    model = set_training_options(spec.build_model(config.seed), config, mesh)
    graphdef, params, batch_stats = split_model(model)
    if (workdir / "checkpoints" / FILE).exists():
        saved = ModelSpec.load(workdir / "checkpoints")
        spec.check_same_model(saved, str(workdir / "checkpoints"))
    _make_workdir(workdir)
    checkpoints = Checkpoints(workdir / "checkpoints", max_to_keep=config.max_to_keep)
    messages: list[str] = []
    if checkpoints.latest() is None:
        params, batch_stats, messages = initial_weights(
            params, batch_stats, spec, init_from=config.init_from,
            encoder_weights=config.encoder_weights, mesh=mesh,
        )  # fmt: skip
    optimizer = make_optimizer(config.learning_rate)
    ema = config.ema_decay > 0
    state = replicate(create_train_state(params, batch_stats, optimizer, ema=ema), mesh)
    plateau = Plateau(config.learning_rate, **config.plateau)
    progress = Progress(0, 0.0, plateau, EarlyStop(config.early_stop_patience))
    found = checkpoints.restore_newest(state, mesh)
    if found is not None:
        state, progress, damaged = found
        progress.early_stop.patience = config.early_stop_patience
        if damaged:
            checkpoints.quarantine(after=int(state.step))
            messages += [*damaged, f"quarantined in {workdir / 'damaged_checkpoints'}"]
    if jax.process_index() == 0:
        configuration.save(config, workdir)
        spec.save(workdir / "checkpoints")

    eval_step = make_eval_step(graphdef, spec, config.loss_normalization, mesh)

    def validate(params: Arrays, batch_stats: Arrays, stop: Callable[[], bool]) -> Evaluation:
        data = split_batches(
            splits["val"], eval_batch_size, mesh, metadata_encoding=spec.metadata_encoding,
            bands=spec.bands, num_workers=config.num_workers,
            prefetch_mb=config.prefetch_mb,
            refused_values=spec.refused_values,
        )  # fmt: skip
        return accumulate(eval_step, params, batch_stats, data, mesh, stop)

    train_step = make_train_step(graphdef, spec, config, optimizer, mesh)
    image_summaries = None
    if config.tensorboard_patches:
        count = config.tensorboard_patches
        image_summaries = ImageSummaries(splits["val"], count, graphdef, spec, mesh)
    description = describe(spec, splits, config, steps, params)
    run = Run(
        config, workdir, mesh, spec, splits, checkpoints, state, progress, train_step, validate,
        steps, description, image_summaries,
    )  # fmt: skip
    lines = [f"{what:<8} {text}" for what, text in description.items()]
    console.log("\n".join([*lines, *messages, f"workdir  {workdir}"]))
    if found is not None:
        console.log(f"resuming from step {int(state.step)} ({progress.epoch} epochs finished)")
    return run


def describe(
    spec: ModelSpec,
    splits: Mapping[str, Split],
    config: ml_collections.ConfigDict,
    steps: int,
    params: Arrays,
) -> dict[str, str]:
    """A description of a run: one line each for `data`, `model` and `devices`."""
    counts = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
    height, width = spec.patch_size
    device = jax.devices()[0]
    inputs = f"{len(spec.bands)} bands" + (" and metadata" if spec.takes_metadata else "")
    crop = f", crops of {config.crop_size}" if config.crop_size else ""
    return {
        "data": f"{splits['train'].directory}: {counts} patches of {height} x {width}{crop}",
        "model": f"U-Net, ResNet34 encoder: {inputs} -> {len(spec.nomenclature)} classes, "
        f"{sum(p.size for p in params.values()):,} parameters, {spec.dtype}",
        "devices": f"{jax.device_count()} x {device.device_kind} ({device.platform}), "
        f"{jax.process_count()} host(s), global batch {config.batch_size}, {steps} steps an epoch",
    }


def _make_workdir(workdir: epath.Path) -> None:
    try:
        (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable-{jax.process_index()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"the workdir {workdir} cannot be written to ({error}): choose another --workdir"
        ) from error
