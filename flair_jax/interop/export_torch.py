"""Export of a checkpoint to a PyTorch state dict for segmentation-models-pytorch."""

import os
import pathlib

from flair_jax.errors import UserError
from flair_jax.inference.loading import load
from flair_jax.interop import torch_weights
from flair_jax.runtime.sharding import make_mesh


def export_weights(checkpoint: str, out: str) -> int:
    """Writes the state dict of a checkpoint.

    Args:
        checkpoint: see `loading.find`; of a run, its best one is taken.
        out: a `.safetensors` file, or `.pth` or `.pt`, which need PyTorch.

    Returns:
        The number of tensors.

    Raises:
        UserError: there is no checkpoint, the model cannot be PyTorch's, or `out` exists.
    """
    path = pathlib.Path(out).expanduser()
    if path.exists():
        raise UserError(f"{path} exists: give another --out, or remove it")
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise UserError(f"--out={out}: expected a name that ends in .safetensors, .pth or .pt")
    spec, params, batch_stats, _ = load(checkpoint, make_mesh())
    if spec.metadata_fusion == "channels":
        raise UserError(
            "the PyTorch model has no channel fusion of metadata: this checkpoint cannot be "
            "exported"
        )
    tensors = torch_weights.state_dict_of(params, batch_stats)
    partial = path.with_name(path.name + ".tmp")
    if path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file(tensors, partial)
    else:
        try:
            import torch
        except ImportError as error:
            raise UserError(
                f"writing {path.name} needs PyTorch: pip install 'flair-jax[torch]', or give a "
                "name that ends in .safetensors"
            ) from error
        torch.save({key: torch.tensor(value) for key, value in tensors.items()}, partial)
    os.replace(partial, path)
    return len(tensors)
