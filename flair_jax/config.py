"""Configurations: defaults, configuration files, checks, and the `config.json` of a run.

The keys with their defaults and meanings are in `config_keys.py`; `flair-jax config` prints them.
"""

import ast
import difflib
import json
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
from etils import epath

from flair_jax.config_keys import KEYS, KINDS, RENAMED, Key
from flair_jax.data.nomenclature import OF_DATA, nomenclature
from flair_jax.errors import UsageError, UserError
from flair_jax.models.choices import check_size
from flair_jax.runtime.atomic_io import atomic_write

# What a run may change when it resumes: nothing that its weights depend on.
CHANGEABLE = frozenset(name for name, key in KEYS.items() if key.changeable)
BATCH_PER_DEVICE = 10  # patches: the published baseline's
BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def default() -> ml_collections.ConfigDict:
    """The published baseline's values; a configuration file changes some of them."""
    config = ml_collections.ConfigDict()
    for name, key in KEYS.items():
        *groups, last = name.split(".")
        group = config
        for part in groups:
            if part not in group:
                group[part] = ml_collections.ConfigDict()
            group = group[part]
        group[last] = key.default
    return config.lock()


def validate(config: ml_collections.ConfigDict, where: str = "") -> None:
    """Raises a UserError that names the first key that is unknown, missing or of a wrong value.

    Args:
        config: what to check.
        where: what it comes from, for the message, such as "in runs/a/config.json".
    """
    check_keys(config, where)
    values = flat(config)
    for name, key in KEYS.items():
        if not key.takes(values[name]):
            raise UserError(f"{_named(name, where)} is {values[name]!r}; expected {key.expected}")
    if config.nomenclature != OF_DATA or config.classes:  # the data set's are checked with it
        nomenclature(config.nomenclature, config.classes, config.disabled_classes, None)
    if is_of_ema(config.monitor) and not config.ema_decay:
        raise UserError(
            f"{_named('monitor', where)} is {config.monitor!r}, of the weights' moving average, "
            "and there is none with config.ema_decay=0: set it to 0.999, for example"
        )
    if config.crop_size:
        check_size(config.crop_size, config.crop_size, by_rows=fuses_by_rows(config))


def check_keys(config: ml_collections.ConfigDict, where: str = "") -> None:
    """Raises a UserError if a configuration has other keys than `default()`."""
    names = flat(config)
    for name in names:
        check_known(name, where)
    for name in KEYS:
        if name not in names:
            raise UserError(
                f"{_named(name, where)} is missing: start from flair_jax.config.default()"
            )


def check_known(name: str, where: str = "") -> None:
    """Raises a UserError with the new or the nearest name if there is no key of this name."""
    if name in KEYS:
        return
    if name in RENAMED:
        raise UserError(f"{_named(name, where)} is now called config.{RENAMED[name]}")
    if group := [known for known in KEYS if known.startswith(f"{name}.")]:
        raise UserError(
            f"{_named(name, where)} is a group of keys: give each by itself, such as "
            f"config.{group[0]}"
        )
    last = {known.split(".")[-1]: known for known in KEYS}
    near = difflib.get_close_matches(name, KEYS, n=1) or [
        last[part] for part in difflib.get_close_matches(name.split(".")[-1], last, n=1)
    ]
    hint = f"; did you mean config.{near[0]}?" if near else "; flair-jax config lists the keys"
    raise UserError(f"unknown configuration key {_named(name, where)}{hint}")


def _named(name: str, where: str) -> str:
    return f"config.{name} {where}".rstrip()


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


def with_batch_size(
    config: ml_collections.ConfigDict, devices: int, workdir: epath.Path
) -> ml_collections.ConfigDict:
    """The configuration with its global batch size settled, where `batch_size` is 0.

    A run keeps that of its first start, on whatever number of devices it resumes.
    """
    if config.batch_size:
        return config
    saved = load(workdir).batch_size if (workdir / "config.json").exists() else 0
    settled = config.copy_and_resolve_references()
    settled.batch_size = saved or batch_size(config, devices)
    return settled


def batch_size(config: ml_collections.ConfigDict, devices: int) -> int:
    """The global batch size of a training that starts on a number of devices."""
    return config.batch_size or BATCH_PER_DEVICE * devices


def eval_batch_size(config: ml_collections.ConfigDict, devices: int) -> int:
    """The global batch size of validation, evaluation and prediction.

    Scores do not depend on it: `batch_size` is rounded up to what the devices can share.
    """
    if config.eval_batch_size:
        return config.eval_batch_size
    return -(-batch_size(config, devices) // devices) * devices


def is_of_ema(monitor: str) -> bool:
    """Whether a choice of `config.monitor` is of the moving average of the weights (EMA)."""
    return monitor.endswith("_ema")


def follows_validation(config: ml_collections.ConfigDict) -> bool:
    """Whether the learning rate is reduced when the monitored value stalls, and by nothing else."""
    return config.schedule == "plateau"


def fuses_by_rows(config: ml_collections.ConfigDict) -> bool:
    """Whether the metadata is fused along the bottleneck's rows, for 512 x 512 pixels only."""
    return config.metadata.use and config.metadata.fusion == "rows"


def shipped() -> dict[str, pathlib.Path]:
    """The configurations that come with flair-jax: name -> file."""
    folder = pathlib.Path(__file__).with_name("configs")
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def read(name: str) -> ml_collections.ConfigDict:
    """The configuration of a shipped name, or of a file.

    Args:
        name: such as "baseline", "folder/mine.py", or "mine.py:TEXT", whose `get_config` takes
            the text as its argument.

    Raises:
        UsageError: there is no such file, and nothing of this name.
        UserError: the file fails, or has other keys than `default()`.
    """
    file, colon, argument = name.partition(":")
    path = pathlib.Path(file).expanduser()
    if not path.is_file():
        known = shipped()
        if file not in known:
            near = difflib.get_close_matches(path.stem, known, n=1)
            raise UsageError(
                f"there is no configuration file {file} (--config): give the path of a file, or "
                f"one of the names {', '.join(known)}"
                + (f"; did you mean {near[0]}?" if near else "")
            )
        path = known[file]
    config = _get_config(path, [argument] if colon else [])
    check_keys(config, f"in {path}")
    return config.lock()


def _get_config(path: pathlib.Path, arguments: list[str]) -> ml_collections.ConfigDict:
    """What a configuration file's `get_config` returns."""
    module = types.ModuleType(f"config_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses look for the file's names
    try:
        exec(compile(path.read_bytes(), path, "exec"), module.__dict__)
        config = module.get_config(*arguments)
    except Exception as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(path)
        ]
        where = f"in {path}" + (f", line {lines[-1]}" if lines else "")
        unknown = re.search(r'Key "(\w+)" does not exist', str(error))
        if isinstance(error, AttributeError) and unknown:  # the message of a locked configuration
            old = {name.split(".")[-1]: name for name in RENAMED}
            check_known(old.get(unknown[1], unknown[1]), where)
        raise UserError(f"{where}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f"get_config() in {path} returns a {type(config).__name__}, not a ConfigDict: start "
            "from flair_jax.config.default()"
        )
    return config


def set_text(config: ml_collections.ConfigDict, name: str, texts: Sequence[str]) -> None:
    """Sets a key to a value of the command line.

    Args:
        config: to change.
        name: of the key.
        texts: the value as written, by its last text; those of a tuple are joined.

    Raises:
        UsageError: the text is no value of the key's type.
    """
    kind = type(KEYS[name].default)
    try:
        if kind is bool:
            value: Any = BOOLEANS[texts[-1].lower()]
        elif kind is tuple:
            value = tuple(element for text in texts for element in _as_tuple(text))
        else:
            value = kind(texts[-1])
    except (KeyError, SyntaxError, ValueError) as error:
        rule = KEYS[name].rule
        expected = KINDS[kind] + (f", {rule.expected}" if rule else "")
        raise UsageError(f"--config.{name}={texts[-1]}: expected {expected}") from error
    config.update_from_flattened_dict({name: value})


def _as_tuple(text: str) -> tuple:
    """A tuple, a list or a single value in Python's notation; strings may be red,green,blue."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        if not text or set(text) & set("()[]'\""):
            raise
        return tuple(part.strip() for part in text.split(","))
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def save(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Writes `config.json` into a workdir, atomically."""
    atomic_write(workdir / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")


def load(workdir: epath.PathLike) -> ml_collections.ConfigDict:
    """The configuration of a workdir.

    Raises:
        UserError: there is none, or it is not one of this version.
    """
    path = epath.Path(workdir).expanduser() / "config.json"
    if not path.exists():
        raise UserError(
            f"there is no {path}: {workdir} is not the workdir of a run. Give the --workdir of a "
            "run, or train one with flair-jax train --config=baseline"
        )
    config = default()
    try:
        saved = ml_collections.ConfigDict(_tuples(json.loads(path.read_text())))
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a saved configuration: {error}") from error
    for name in flat(saved):
        check_known(name, f"in {path}")
    try:
        config.update(saved)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is not a saved configuration: {error}") from error
    validate(config, f"in {path}")
    return config


def changeable(config: ml_collections.ConfigDict) -> frozenset[str]:
    """What a run of this configuration may change when it resumes."""
    # The other schedules depend on the number of steps.
    return CHANGEABLE - (frozenset() if follows_validation(config) else {"num_epochs"})


def check_unchanged(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Raises a UserError if a run would resume with settings its weights were not trained with."""
    if not (workdir / "config.json").exists():
        return
    free = changeable(config)
    lines = _differences(load(workdir), config, lambda key: key.name not in free)
    if lines:
        note = (
            f"The rates of config.schedule={config.schedule!r} depend on config.num_epochs. "
            if "config.num_epochs:" in lines
            else ""
        )
        raise UserError(
            f"{workdir} holds a run with other settings:\n{lines}\n{note}"
            "Give another --workdir, or remove this one to start afresh."
        )


def check_same_model(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Raises a UserError if a configuration describes another model than the run in a workdir."""
    lines = _differences(load(workdir), config, lambda key: key.of_model)
    if lines:
        raise UserError(
            f"{workdir} holds a model with other settings:\n{lines}\n"
            "A trained model is evaluated with its own: leave these keys out, or give the "
            "--workdir of another run."
        )


def _differences(
    saved: ml_collections.ConfigDict,
    given: ml_collections.ConfigDict,
    compared: Callable[[Key], bool],
) -> str:
    """A line for each key that differs."""
    old, new = flat(saved), _tuples(flat(given))  # lists are saved, and read as tuples
    return "\n".join(
        f"  config.{name}: {old[name]!r} in the run, {new[name]!r} given"
        for name, key in KEYS.items()
        if compared(key) and old[name] != new[name]
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
    """A value of JSON, which knows no tuples, with tuples in the place of lists."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(_tuples, value))
    return value
