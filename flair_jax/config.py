"""Every key of a configuration, its default and its meaning; the check of its values."""

import difflib
import json
from typing import Any

import ml_collections
from etils import epath

from flair_jax.data.bands import BANDS, band_indices
from flair_jax.data.metadata import SIZES
from flair_jax.data.nomenclature import nomenclature
from flair_jax.errors import UserError
from flair_jax.models.choices import FUSIONS, LOSS_NORMALIZATIONS, check_size
from flair_jax.runtime.atomic_io import atomic_write

# What a run may change when it goes on: nothing that the weights already depend on.
CHANGEABLE = frozenset(
    {
        "data_dir", "num_epochs", "num_workers", "log_every_steps", "eval_batch_size",
        "early_stop_patience", "checkpoint_every_steps", "max_to_keep", "predict_after_training",
        "report_after_training", "tensorboard_patches", "profile", "compilation_cache",
    }
)  # fmt: skip


def default() -> ml_collections.ConfigDict:
    """The published baseline's values; a configuration file changes what it wants."""
    config = ml_collections.ConfigDict()

    # Data. `data_dir` is the --data_dir of the build ("" is TFDS's own, ~/tensorflow_datasets),
    # `data_config` its --config.
    config.data_dir = ""
    config.data_config = "published"
    # Classes. "baseline": 12 classes and "other"; "full": all 19; another name for a list of your
    # own, `classes` = ((name, "#rrggbb", weight, (mask values, ...)), ...). Those named in
    # `disabled_classes` get weight 0. A mask value that no class gathers is an error, or counts
    # nowhere with `unlisted_values` = "ignore".
    config.nomenclature = "baseline"
    config.classes = ()
    config.disabled_classes = ()
    config.unlisted_values = "error"
    # Which of them the model sees, in this order; --config.bands="('red', 'green', 'blue')".
    config.bands = BANDS
    config.normalization = "scaling"  # "scaling": / 255; "custom": (x - mean) / deviation
    # Of all five bands, in the order red, green, blue, nir, height.
    config.normalization_means = (105.08, 110.87, 101.82, 106.38, 53.26)
    config.normalization_stds = (52.17, 45.38, 44.0, 39.69, 79.3)
    config.num_workers = 0  # processes that read; 0 reads in threads

    # Batches. `batch_size` is the global one, over all devices of all hosts.
    config.batch_size = 10
    config.eval_batch_size = 0  # 0: as batch_size
    config.crop_size = 0  # side of a random square to train on, in pixels; 0: whole patches
    config.augment = False
    config.augment_probability = ml_collections.ConfigDict(
        {"vertical_flip": 0.5, "horizontal_flip": 0.5, "rotation": 0.5}
    )

    # Model. `metadata.encoding`: "reference" (the baseline's 45 numbers, which say little of place
    # and season) or "corrected". `metadata.fusion`: "rows" (the baseline's, 512 x 512 pixels only)
    # or "channels" (any size).
    # `batch_norm`: statistics of the global batch ("sync"), or of each device's share
    # ("per_device", as in the reference's distributed training). `remat` computes inner maps twice
    # to save memory.
    config.dtype = "float32"  # of the activations: "float32" or "bfloat16"
    config.batch_norm = "sync"
    config.remat = False
    config.metadata = ml_collections.ConfigDict(
        {"use": False, "encoding": "reference", "fusion": "rows"}
    )

    # First weights. `init_from`: a workdir, a checkpoint or a file of PyTorch weights to start
    # from; `encoder_weights`: a file of a bare ResNet34, or "imagenet" (fetched from the Hugging
    # Face hub, extra `hub`), which the published baseline starts from.
    config.init_from = ""
    config.encoder_weights = ""

    # Optimisation: plain SGD; the rate is lowered when the validation loss stalls.
    config.loss_normalization = "pixels"  # "pixels" (challenge) or "weights" (later code)
    config.learning_rate = 0.02
    config.accumulate_steps = 1  # parts that a batch is worked through in, one after the other
    config.ema_decay = 0.0  # moving average of the weights, scored beside them; 0: none, or 0.999
    config.plateau = ml_collections.ConfigDict(
        {"factor": 0.5, "patience": 10, "cooldown": 4, "threshold": 1e-4, "min_lr": 1e-7}
    )
    config.num_epochs = 200
    config.early_stop_patience = 30
    config.seed = 2022

    # The run.
    config.log_every_steps = 50
    # Validation patches that TensorBoard shows after each epoch, with the confusion matrix; 0: no
    # pictures.
    config.tensorboard_patches = 4
    config.checkpoint_every_steps = 0  # 0: after each epoch only
    config.max_to_keep = 2  # beside the best
    config.predict_after_training = False
    config.report_after_training = True  # write index.html, a page to look at; see report.py
    config.profile = (0, 0)  # first and last step of a trace for TensorBoard, in profile/; 0: none
    # Where compiled programs are kept for the next start: a folder; "default" is one in ~/.cache;
    # "" is nowhere.
    config.compilation_cache = "default"

    # Made-up data, made and built on first use; see synthetic.py.
    config.synthetic = ml_collections.ConfigDict(
        {"use": False, "patch_size": 128, "train": 192, "val": 32, "test": 48, "seed": 0}
    )
    return config.lock()


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises a UserError that names the key of the first value that cannot be."""
    for key in flat(config):
        check_known(key, where="in the configuration file")
    for key in flat(default()):
        if key not in flat(config):
            raise UserError(f"config.{key} is missing: start from flair_jax.config.default()")

    def require(key: str, holds: bool, expected: str) -> None:
        if not holds:
            raise UserError(f"config.{key} is {flat(config)[key]!r}; expected {expected}")

    band_indices(config.bands)
    for key in ("normalization_means", "normalization_stds"):
        require(key, len(flat(config)[key]) == len(BANDS), f"{len(BANDS)} numbers, one a band")
    nomenclature(config.nomenclature, config.classes, config.disabled_classes)
    for key, choices in (
        ("normalization", ("scaling", "custom")),
        ("dtype", ("float32", "bfloat16")),
        ("batch_norm", ("sync", "per_device")),
        ("unlisted_values", ("error", "ignore")),
        ("loss_normalization", LOSS_NORMALIZATIONS),
        ("metadata.encoding", tuple(SIZES)),
        ("metadata.fusion", FUSIONS),
    ):
        require(key, flat(config)[key] in choices, " or ".join(map(repr, choices)))
    require("batch_size", config.batch_size >= 1, "at least 1")
    require("eval_batch_size", config.eval_batch_size >= 0, "0 (as batch_size) or more")
    require("num_epochs", config.num_epochs >= 0, "0 or more")
    require("learning_rate", config.learning_rate > 0, "more than 0")
    require("accumulate_steps", config.accumulate_steps >= 1, "at least 1")
    require("ema_decay", 0 <= config.ema_decay < 1, "0 (none) or more, and less than 1")
    first, last = config.profile
    require("profile", 0 <= first <= last, "(first step, last step), or (0, 0) for none")
    require("seed", 0 <= config.seed < 2**32, "0 to 4294967295")
    require("crop_size", config.crop_size >= 0, "0 (whole patches) or more")
    require("log_every_steps", config.log_every_steps >= 1, "at least 1")
    require("tensorboard_patches", config.tensorboard_patches >= 0, "0 (no pictures) or more")
    require("checkpoint_every_steps", config.checkpoint_every_steps >= 0, "0 or more")
    # Orbax removes the oldest before the newest is whole: one must be left if that never comes.
    require("max_to_keep", config.max_to_keep >= 2, "at least 2")
    require("num_workers", config.num_workers >= 0, "0 or more")
    require("plateau.factor", 0 < config.plateau.factor < 1, "between 0 and 1")
    for key, value in flat(config.augment_probability).items():
        require(f"augment_probability.{key}", 0 <= value <= 1, "a probability, 0 to 1")
    if config.crop_size:
        check_size(config.crop_size, config.crop_size, by_rows=fuses_by_rows(config))


def check_patch_size(config: ml_collections.ConfigDict, height: int, width: int) -> None:
    """Raises a UserError unless a run of this configuration takes patches of this size."""
    if config.crop_size > min(height, width):
        raise UserError(
            f"config.crop_size={config.crop_size} is more than the patches' {height} x {width}"
        )
    # Validation and test work on whole patches, whatever the crops.
    check_size(height, width, by_rows=fuses_by_rows(config))
    if config.augment and not config.crop_size and height != width:
        raise UserError(
            f"config.augment rotates by 90 degrees, which needs square patches, not {height} x "
            f"{width}: set config.crop_size"
        )


def fuses_by_rows(config: ml_collections.ConfigDict) -> bool:
    """Whether the metadata is fused along the bottleneck's rows, for 512 x 512 pixels only."""
    return config.metadata.use and config.metadata.fusion == "rows"


def check_known(key: str, where: str) -> None:
    """Raises a UserError with the nearest known key if there is none of this name."""
    known = flat(default())
    if key in known:
        return
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean config.{near[0]}?" if near else ""
    raise UserError(f"unknown configuration key config.{key} {where}{hint}")


def save(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Writes `config.json` into a workdir, whole or not at all."""
    atomic_write(workdir / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")


def load(workdir: epath.PathLike) -> ml_collections.ConfigDict:
    """The configuration of a workdir.

    Raises:
        UserError: there is none.
    """
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise UserError(
            f"there is no {path}: {workdir} is not the workdir of a run. Give the --workdir of a "
            "run, or train one with --config=configs/baseline.py"
        )
    config = default()
    try:
        with config.unlocked():
            config.update(_tuples(json.loads(path.read_text())))
    except ValueError as error:
        raise UserError(f"{path} is not a saved configuration: {error}") from error
    validate(config)
    return config


def check_unchanged(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Raises a UserError if a run would go on with settings its weights were not made with."""
    if not (workdir / "config.json").exists():
        return
    old, new = flat(load(workdir)), flat(config)
    changed = [key for key in new if old[key] != new[key] and key.split(".")[0] not in CHANGEABLE]
    if changed:
        lines = [f"  config.{key}: {old[key]!r} then, {new[key]!r} now" for key in changed]
        raise UserError(
            f"{workdir} holds a run with other settings:\n" + "\n".join(lines) + "\n"
            "Give another --workdir, or remove this one to start afresh."
        )


def flat(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Dotted key -> value."""
    return _walk(config.to_dict())


def _walk(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _walk(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _tuples(value: Any) -> Any:
    """JSON knows no tuples; the configuration has no lists."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    return value
