"""Conversion between PyTorch state dicts and this model: names, layouts, files.

Names are those of segmentation-models-pytorch's U-Net with a ResNet34 encoder
(`encoder.layer1.0.conv1.weight`) and of the baseline's metadata MLP (`enc.enc_mlp.0.weight`).
"""

import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flair_jax.errors import UserError
from flair_jax.models.functional import Arrays, split_model
from flair_jax.models.unet import UNet

_SUFFIXES = {"scale": "weight", "mean": "running_mean", "var": "running_var", "kernel": "weight"}
# What wraps the network's own names, longest first: Lightning, FLAIR-INC, the metadata model.
_PREFIXES = ("model.seg_model.", "seg_model.", "model.")
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


def network_tensors(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The network's tensors under its own names: without prefixes, loss weights and counters."""
    tensors = {}
    for key, value in state_dict.items():
        if key.startswith("criterion.") or key.endswith("num_batches_tracked"):
            continue
        prefix = next((p for p in _PREFIXES if key.startswith(p)), "")
        tensors[key.removeprefix(prefix)] = np.asarray(value)
    return tensors


def load_state_dict(model: UNet, state_dict: Mapping[str, np.ndarray]) -> None:
    """Fills a model with the arrays of a PyTorch state dict, in place.

    Args:
        model: a `UNet`, with or without metadata.
        state_dict: PyTorch names -> arrays in PyTorch's layout. The prefixes `model.`,
            `seg_model.` and `model.seg_model.`, `criterion...` and `...num_batches_tracked` are
            passed over.

    Raises:
        UserError: a tensor is missing, surplus or of another shape; the message names each.
    """
    _, params, batch_stats = split_model(model)
    arrays, problems = match(state_dict, {**params, **batch_stats})
    refuse(problems, "the state dict")
    for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
        variable[...] = arrays[".".join(map(str, path))]


def match(
    state_dict: Mapping[str, np.ndarray], like: Mapping[str, jax.Array]
) -> tuple[Arrays, list[str]]:
    """The tensors of a PyTorch state dict that fit a model, by our names, and what does not fit.

    Args:
        state_dict: as of `load_state_dict`.
        like: our names -> arrays of the shapes wanted.

    Returns:
        Our names -> float32 arrays in our layout, and a line for every tensor that is missing,
        surplus or misshapen.
    """
    given = network_tensors(state_dict)
    wanted = {torch_name(name): name for name in like}
    problems = [f"missing: {key}" for key in wanted if key not in given]
    problems += [f"surplus: {key} {given[key].shape}" for key in given if key not in wanted]
    arrays = {}
    for key in wanted.keys() & given.keys():
        name, value = wanted[key], given[key]
        expected = to_torch_shape(name, like[name].shape)
        if value.shape == expected:
            arrays[name] = jnp.asarray(from_torch_layout(name, value), jnp.float32)
        else:
            problems.append(f"misshapen: {key} has shape {value.shape}, expected {expected}")
    return arrays, problems


def refuse(problems: list[str], source: str) -> None:
    """Raises a UserError that names the tensors of a source which do not fit, if there are any."""
    if problems:
        raise UserError(
            f"{source} does not fit the model in {len(problems)} tensors:\n  "
            + "\n  ".join(sorted(problems)[:20])
        )


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


def read(path: str) -> dict[str, np.ndarray]:
    """Reads a file of PyTorch weights.

    Args:
        path: a `.safetensors` file, which needs no PyTorch; a pickled `.pth`, `.pt`, `.bin` or
            Lightning's `.ckpt`; or `hf://organisation/repository/file` of the Hugging Face hub.

    Returns:
        PyTorch names -> arrays.

    Raises:
        UserError: it is not there, is no such file, or a package is missing to read it.
    """
    file = pathlib.Path(_from_hub(path) if path.startswith("hf://") else path).expanduser()
    if not file.is_file():
        raise UserError(f"there is no file of weights {file}")
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is not a complete .safetensors file: {error}") from error
    return _read_pickled(file)


def _read_pickled(file: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{file} is a pickled PyTorch file, and reading it needs PyTorch: "
            "pip install 'flair-jax[torch]', or convert it to .safetensors elsewhere"
        ) from error
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        first = str(error).splitlines()[0] if str(error) else repr(error)
        raise UserError(
            f"{file} cannot be read as PyTorch weights (weights_only=True, so that nothing in it "
            f"is executed): {first}"
        ) from error
    state_dict = content.get("state_dict", content) if isinstance(content, dict) else None
    if not state_dict or not all(isinstance(v, torch.Tensor) for v in state_dict.values()):
        raise UserError(f"{file} holds no state dict, but a {type(content).__name__}")
    return {key: value.float().numpy() for key, value in state_dict.items()}


def _from_hub(path: str) -> str:
    parts = path.removeprefix("hf://").split("/", 2)
    if len(parts) != 3:
        raise UserError(f"{path} is not of the form hf://organisation/repository/file")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise UserError(f"{path} needs huggingface_hub: pip install 'flair-jax[hub]'") from error
    try:
        return hf_hub_download(repo_id=f"{parts[0]}/{parts[1]}", filename=parts[2])
    except Exception as error:  # the hub raises many kinds when it cannot be reached
        raise UserError(
            f"{path} cannot be fetched from the Hugging Face hub ({type(error).__name__}): "
            "without a network, download the file elsewhere and give its path"
        ) from error
