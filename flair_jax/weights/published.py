"""Published models: a repository of the Hugging Face hub, a folder of one, or a file of weights.

A repository or folder that `flair-jax export --format=hub` wrote has `model.json` (the spec) and
`model.safetensors`. Others have one file of PyTorch weights, whose bands, classes and normalisation
are known if it is one of FLAIR-INC's.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flair_jax.errors import UserError
from flair_jax.models.functional import Arrays, abstract_model
from flair_jax.models.spec import FILE, ModelSpec
from flair_jax.runtime import checksums
from flair_jax.runtime.storage import is_remote
from flair_jax.weights import hugging_face, torch_files, torch_weights
from flair_jax.weights.architectures import check_network
from flair_jax.weights.torch_spec import known_spec

WEIGHTS = "model.safetensors"
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
_SIZED = ("encoder.conv1.weight", "segmentation_head.0.weight")
RECORD = "flair_jax"  # the key of the record in the metadata of a file of safetensors


@dataclasses.dataclass(frozen=True)
class Published:
    """Weights, and what is known of their model.

    Attributes:
        source: the file as flair-jax import-torch takes it.
        state_dict: PyTorch names -> arrays in PyTorch's layout.
        spec: None if nothing tells it.
        record: what the export wrote beside the weights: `step` of the training, `weights` ("raw"
            or "ema"), `arrays_crc32`; {} for another's file.
    """

    source: str
    state_dict: dict[str, np.ndarray]
    spec: ModelSpec | None
    record: Mapping[str, Any]


def is_published(path: str | os.PathLike[str]) -> bool:
    """Whether a path is of published weights, and not of checkpoints of this package."""
    text = os.fspath(path)
    if text.startswith("hf:"):
        return True
    if is_remote(text):
        return False
    local = pathlib.Path(text).expanduser()
    if not local.is_dir():
        return local.is_file()
    steps = (entry for entry in local.iterdir() if entry.name.isdigit())
    if (local / "checkpoints" / FILE).exists() or ((local / FILE).exists() and any(steps)):
        return False
    names = [entry.name for entry in local.iterdir()]
    return WEIGHTS in names or (FILE not in names and any(_weights(names)))


def read(path: str | os.PathLike[str]) -> Published:
    """Reads published weights.

    Args:
        path: `hf://organisation/repository`, with `@revision` or `/file` where wanted; a folder
            with the files of such a repository; or a file of weights.

    Raises:
        UserError: they cannot be fetched or read, or are of another architecture.
    """
    source, file, folder = _locate(os.fspath(path))
    state_dict = torch_files.read(os.fspath(file))
    if folder is None:
        return Published(source, state_dict, known_spec(source, state_dict), {})
    return Published(source, state_dict, ModelSpec.load(folder), _record(file))


def load(path: str | os.PathLike[str]) -> tuple[ModelSpec, Arrays, Arrays, int]:
    """Spec, parameters, batch statistics and step (0 where it is not known) of published weights.

    Raises:
        UserError: see `read`; or their bands, classes or normalisation are not known; or they are
            damaged, or do not fit the spec.
    """
    published = read(path)
    spec = _known(published)
    _, params, batch_stats = abstract_model(spec)
    like = {**params, **batch_stats}
    arrays = torch_weights.match(published.state_dict, like, published.source)
    expected = published.record.get("arrays_crc32")
    if expected is not None and checksums.of_arrays(arrays) != expected:
        raise UserError(
            f"{published.source} is damaged: its arrays are not those that were exported (their "
            "CRC differs); fetch or export it again"
        )
    step = int(published.record.get("step", 0))
    return spec, {k: arrays[k] for k in params}, {k: arrays[k] for k in batch_stats}, step


def _known(published: Published) -> ModelSpec:
    if published.spec is not None:
        return published.spec
    tensors = torch_weights.network_tensors(published.state_dict, published.source)
    check_network(tensors, published.source)
    bands, classes = (torch_weights.size(tensors, name, published.source) for name in _SIZED)
    raise UserError(
        f"nothing tells the bands, classes and normalisation of {published.source}, which has "
        f"{bands} input bands and {classes} classes: make a checkpoint of it with flair-jax "
        f"import-torch --weights={published.source} --out=DIR --bands=NAMES --nomenclature=NAME "
        "--normalization=NAME, and give DIR"
    )


def _locate(path: str) -> tuple[str, pathlib.Path, pathlib.Path | None]:
    """The file of weights as import-torch takes it, where it is, and the folder of its spec."""
    if path.startswith("hf:"):
        address = hugging_face.parse(path)
        if address.file:
            return path, hugging_face.download(address), None
        files = hugging_face.download_all(address, lambda names: _choose(names, path))
        source = str(address.with_file(files[-1].name))
    else:
        local = pathlib.Path(path).expanduser()
        if not local.is_dir():
            return path, local, None
        names = [entry.name for entry in local.iterdir() if entry.is_file()]
        files = [local / name for name in _choose(names, path)]
        source = os.fspath(files[-1])
    return source, files[-1], files[0].parent if len(files) > 1 else None


def _choose(names: Sequence[str], path: str) -> list[str]:
    """The files to read of a repository: the spec if there is one, then the weights."""
    if FILE in names:
        if WEIGHTS not in names:
            raise UserError(f"{path} has {FILE} and no {WEIGHTS}: it is not complete")
        return [FILE, WEIGHTS]
    found = _weights(names)
    if len(found) == 1:
        return found
    listed = ", ".join(f"{path.rstrip('/')}/{name}" for name in found)
    raise UserError(
        f"{path} has {len(found)} files of weights: give one of {listed}"
        if found
        else f"{path} has no file of weights; expected one that ends in {', '.join(SUFFIXES)}"
    )


def _weights(names: Sequence[str]) -> list[str]:
    return sorted(name for name in names if "/" not in name and name.endswith(SUFFIXES))


def _record(file: pathlib.Path) -> dict[str, Any]:
    """The record of an export; {} for a file of safetensors without one."""
    from safetensors import safe_open

    try:
        with safe_open(file, "numpy") as tensors:
            record = json.loads((tensors.metadata() or {}).get(RECORD, "{}"))
        if not isinstance(record, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise UserError(f"{file} is damaged: its record of the export is {error}") from error
    return record
