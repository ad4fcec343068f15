"""Import of PyTorch weights into a checkpoint of this package."""

import pathlib

from flair_jax.errors import UserError
from flair_jax.inference.loading import save_model
from flair_jax.models.functional import split_model
from flair_jax.models.spec import ModelSpec
from flair_jax.weights import torch_files, torch_weights
from flair_jax.weights.torch_spec import spec_for


def import_weights(weights: str, out: str, **choices: object) -> ModelSpec:
    """Converts a file of PyTorch weights into a checkpoint with its spec.

    Args:
        weights: see `torch_files.read`.
        out: folder to create; `checkpoints/` in it gets the checkpoint, as step 0.
        choices: `bands`, `nomenclature`, `normalization`, see `torch_spec.spec_for`.

    Returns:
        The spec.

    Raises:
        UserError: the file cannot be read or does not fit, or `out` has a checkpoint.
    """
    target = pathlib.Path(out).expanduser() / "checkpoints"
    if target.exists():
        raise UserError(f"{target} exists: give another --out, or remove it")
    state_dict = torch_files.read(weights)
    spec = spec_for(weights, state_dict, **choices)  # type: ignore[arg-type]
    model = spec.build_model()
    torch_weights.load_state_dict(model, state_dict, weights)
    _, params, batch_stats = split_model(model)
    save_model(target, spec, params, batch_stats)
    return spec
