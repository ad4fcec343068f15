"""Conversion between PyTorch state dicts and this model: names, layouts, checks.

Names are those of segmentation-models-pytorch's U-Net with a ResNet34 encoder
(`encoder.layer1.0.conv1.weight`) and of the baseline's metadata MLP (`enc.enc_mlp.0.weight`).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flair_jax.errors import UserError
from flair_jax.models.functional import Arrays, split_model, value_fault
from flair_jax.models.unet import UNet
from flair_jax.weights.architectures import check_network

_SUFFIXES = {"scale": "weight", "mean": "running_mean", "var": "running_var", "kernel": "weight"}
# Attributes of modules that wrap a network: DataParallel's, torch.compile's, Lightning's, FLAIR's.
_WRAPPERS = {"module", "_orig_mod", "model", "net", "network", "seg_model"}
# Of training only: losses, FLAIR-HUB's auxiliary decoders, the count of torch's AveragedModel.
_OF_TRAINING = ("criterion.", "aux_decoders.")
_COUNTERS = ("num_batches_tracked", "n_averaged")
# PyTorch's names of the tensors whose size depends on bands and classes, and on which axis.
RESIZED = {
    "encoder.conv1.weight": 1,
    "segmentation_head.0.weight": 0,
    "segmentation_head.0.bias": 0,
}
_OF_METADATA = ("enc.", "enc_channels.")
CLASS_WEIGHTS = "criterion.weight"  # FLAIR-INC's: 0 for the classes it was not trained on


def torch_name(name: str) -> str:
    """The state dict's key of a parameter or statistic: `...bn1.scale` -> `...bn1.weight`."""
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{_SUFFIXES.get(suffix, suffix)}"


def from_torch_layout(name: str, array: np.ndarray) -> np.ndarray:
    """PyTorch's layout -> ours: OIHW -> HWIO for convolutions, (out, in) -> (in, out) for linear.

    Args:
        name: our name of the array, which tells whether it is a kernel.
        array: in PyTorch's layout.
    """
    if name.endswith(".kernel"):
        return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return array


def to_torch_layout(name: str, array: np.ndarray) -> np.ndarray:
    """The inverse of `from_torch_layout`."""
    if name.endswith(".kernel"):
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    return np.ascontiguousarray(array)


def _own_parts(key: str) -> list[str]:
    """The parts of a dotted name without those of wrappers."""
    return [part for part in key.split(".") if part not in _WRAPPERS]


def hub_source(
    state_dict: Mapping[str, np.ndarray], source: str = "the state dict"
) -> tuple[str, str] | None:
    """Modality and labels of a model of FLAIR-HUB's code; None for another.

    Raises:
        UserError: it has several of them, which no model here has.
    """
    keys = [parts for parts in map(_own_parts, state_dict) if len(parts) > 2]
    modalities = sorted({parts[1] for parts in keys if parts[0] == "encoders"})
    labels = sorted({parts[1] for parts in keys if parts[0] == "main_decoders"})
    if not modalities and not labels:
        return None
    for what, names in (("modalities", modalities), ("sets of labels", labels)):
        if len(names) != 1:
            raise UserError(
                f"{source} is a model of FLAIR-HUB's code with {len(names)} {what} "
                f"({', '.join(names) or 'none'}); one can be loaded"
            )
    return modalities[0], labels[0]


def network_tensors(
    state_dict: Mapping[str, np.ndarray], source: str = "the state dict"
) -> dict[str, np.ndarray]:
    """The network's tensors under its own names.

    Without the names of modules that wrap it, as `module.`, `net.`, `_orig_mod.`, `model.` and
    `seg_model.`; without what is of the training only; of FLAIR-HUB's models the encoder and the
    decoder, without the fusion that a single modality does not use.

    Raises:
        UserError: two tensors have one name, or it is of several modalities.
    """
    hub = hub_source(state_dict, source)
    tensors: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    for key, value in state_dict.items():
        parts = _own_parts(key)
        if hub and parts[:1] == ["fusion_handler"]:
            continue
        if hub and len(parts) > 2 and parts[0] in ("encoders", "main_decoders"):
            of_encoder = parts[0] == "encoders" and parts[2] != "encoder"
            parts = ["encoder", *parts[2:]] if of_encoder else parts[2:]
        name = ".".join(parts)
        if name.startswith(_OF_TRAINING) or name.endswith(_COUNTERS):
            continue
        if name in origin:
            raise UserError(
                f"{source} has two tensors of the name {name}, {origin[name]} and {key}: it holds "
                "more than one network, of which one has to be saved alone"
            )
        origin[name], tensors[name] = key, np.asarray(value)
    return tensors


def size(tensors: Mapping[str, np.ndarray], name: str, weights: str) -> int:
    """The input channels of the stem, or the outputs of the head.

    Args:
        tensors: of `network_tensors`.
        name: "encoder.conv1.weight" or "segmentation_head.0.weight".
        weights: the file, for messages.

    Raises:
        UserError: it is missing, or has other dimensions.
    """
    tensor = tensors.get(name)
    axis = RESIZED[name]
    if tensor is None:
        raise UserError(f"{weights} has no {name}: it is not complete")
    if tensor.ndim != 4 or not tensor.shape[axis]:
        raise UserError(f"{weights} has {name} in the shape {tensor.shape}, expected 4 dimensions")
    return tensor.shape[axis]


def load_state_dict(
    model: UNet, state_dict: Mapping[str, np.ndarray], source: str = "the state dict"
) -> None:
    """Fills a model with the arrays of a PyTorch state dict, in place.

    Args:
        model: a `UNet`, with or without metadata.
        state_dict: PyTorch names -> arrays in PyTorch's layout, see `network_tensors`.
        source: where it is from, for messages.

    Raises:
        UserError: it is of another architecture, or a tensor is missing, surplus, of another shape
            or type, or has values that no network has; the message names each.
    """
    _, params, batch_stats = split_model(model)
    arrays = match(state_dict, {**params, **batch_stats}, source)
    for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
        variable[...] = arrays[".".join(map(str, path))]


def match(
    state_dict: Mapping[str, np.ndarray],
    like: Mapping[str, jax.Array],
    source: str,
    *,
    partial: bool = False,
) -> Arrays:
    """The tensors of a PyTorch state dict that fit a model, by our names.

    All weights come in by this function, whatever file they are from.

    Args:
        state_dict: as of `load_state_dict`.
        like: our names -> arrays of the shapes wanted, of a network or of its encoder.
        source: where the state dict is from, for messages.
        partial: allows other numbers of bands and classes, whose tensors (`RESIZED`) are given as
            they are, and with or without metadata.

    Returns:
        Our names -> float32 arrays in our layout.

    Raises:
        UserError: see `load_state_dict`.
    """
    bare = not any(name.startswith("decoder.") for name in like)
    given = network_tensors(state_dict, source)
    check_network(given, source, bare=bare)
    if bare:
        given = {f"encoder.{k.removeprefix('encoder.')}": given[k] for k in given if k[:3] != "fc."}
    wanted = {torch_name(name): name for name in like}
    optional = (*RESIZED, *_OF_METADATA) if partial else ("\0",)
    problems = [
        f"missing: {key}" for key in wanted if key not in given and not key.startswith(optional)
    ]
    problems += [
        f"surplus: {key} {given[key].shape}"
        for key in given
        if key not in wanted and not key.startswith(optional)
    ]
    fitting = {}
    for key in wanted.keys() & given.keys():
        name, value = wanted[key], given[key]
        expected = to_torch_shape(name, like[name].shape)
        if value.shape != expected:
            if partial and key.startswith(_OF_METADATA):
                continue
            if not (partial and _is_resized(key, value.shape, expected)):
                problems.append(f"misshapen: {key} has shape {value.shape}, expected {expected}")
                continue
        if not jnp.issubdtype(value.dtype, jnp.floating) or value.dtype.itemsize < 2:
            problems.append(f"not of floating-point numbers: {key} is of type {value.dtype}")
            continue
        with np.errstate(over="ignore"):
            value = np.asarray(value, np.float32)
        if fault := value_fault(name, value):
            problems.append(f"{fault}: {key}")
            continue
        fitting[name] = value
    if problems:
        raise UserError(
            f"{source} does not fit the model, or is damaged, in {len(problems)} "
            f"tensor{'s' * (len(problems) > 1)}:\n  " + "\n  ".join(sorted(problems)[:20])
        )
    return {k: jnp.asarray(from_torch_layout(k, value)) for k, value in fitting.items()}


def _is_resized(key: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether a tensor differs in the number of bands or classes alone."""
    axis = RESIZED.get(key)
    if axis is None or len(shape) != len(expected) or not shape[axis]:
        return False
    return shape[:axis] + shape[axis + 1 :] == expected[:axis] + expected[axis + 1 :]


def to_torch_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that one of our arrays has in PyTorch's layout."""
    if not name.endswith(".kernel"):
        return tuple(shape)
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else tuple(reversed(shape))


def state_dict_of(params: Arrays, batch_stats: Arrays) -> dict[str, np.ndarray]:
    """The PyTorch state dict of a model: its names, its layout, its counters of batches.

    A model with metadata gets the baseline's names, `seg_model.` before those of the U-Net.
    """
    tensors = {
        torch_name(name): to_torch_layout(name, np.asarray(value, np.float32))
        for name, value in {**params, **batch_stats}.items()
    }
    for name in batch_stats:
        if name.endswith(".mean"):
            key = name.removesuffix("mean") + "num_batches_tracked"
            tensors[key] = np.zeros((), np.int64)
    if not any(key.startswith("enc.") for key in tensors):
        return tensors
    return {
        key if key.startswith("enc.") else f"seg_model.{key}": value
        for key, value in tensors.items()
    }
