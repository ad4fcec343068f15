"""PyTorch state dicts of segmentation-models-pytorch's U-Net -> this model."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from flair_jax.errors import UserError
from flair_jax.models import UNet
from flair_jax.train_state import split_model

_SUFFIXES = {"scale": "weight", "mean": "running_mean", "var": "running_var", "kernel": "weight"}


def torch_name(name: str) -> str:
    """The state dict's key of a parameter or statistic: `...bn1.scale` -> `...bn1.weight`."""
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{_SUFFIXES.get(suffix, suffix)}"


def from_torch_layout(name: str, array: np.ndarray) -> np.ndarray:
    """PyTorch's layout -> ours: OIHW -> HWIO for convolutions, (out, in) -> (in, out) for linear.

    Args:
        name: our name of the array, which says whether it is a kernel.
        array: in PyTorch's layout.
    """
    if name.endswith(".kernel"):
        return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return array


def load_state_dict(model: UNet, state_dict: Mapping[str, np.ndarray]) -> None:
    """Fills a model with the arrays of a PyTorch state dict, in place.

    Args:
        model: a `UNet`, with or without metadata.
        state_dict: PyTorch names (segmentation-models-pytorch's, without prefix; with
            `seg_model.` and `enc.` for a model with metadata) -> arrays in PyTorch's layout.
            `num_batches_tracked` entries are passed over.

    Raises:
        UserError: a tensor is missing, surplus or of another shape; the message names each.
    """
    given = {
        key.removeprefix("seg_model."): np.asarray(value)
        for key, value in state_dict.items()
        if not key.endswith("num_batches_tracked")
    }
    _, params, stats = split_model(model)
    wanted = {torch_name(name): name for name in [*params, *stats]}
    problems = [f"missing: {key}" for key in wanted if key not in given]
    problems += [f"surplus: {key} {given[key].shape}" for key in given if key not in wanted]
    arrays = {}
    for key in wanted.keys() & given.keys():
        name = wanted[key]
        expected = (params[name] if name in params else stats[name]).shape
        kernel = name.endswith(".kernel")
        if kernel and given[key].ndim not in (2, 4):
            problems.append(f"misshapen: {key} has shape {given[key].shape}")
            continue
        array = from_torch_layout(name, given[key])
        if array.shape != expected:
            problems.append(f"misshapen: {key} has shape {given[key].shape}, which is not ours")
        arrays[name] = jnp.asarray(array, jnp.float32)
    if problems:
        raise UserError(
            f"the state dict does not fit the model in {len(problems)} tensors:\n  "
            + "\n  ".join(sorted(problems)[:20])
        )
    for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
        variable[...] = arrays[".".join(map(str, path))]
