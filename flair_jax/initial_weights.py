"""Where a training's first weights come from: drawn, a checkpoint, a PyTorch file, ImageNet."""

import numpy as np
from jax.sharding import Mesh

from flair_jax import pretrained
from flair_jax.checkpoint import load
from flair_jax.errors import UserError
from flair_jax.train_state import Arrays

# torchvision's first ("v1") ImageNet weights of ResNet34, which the baseline starts from.
IMAGENET = "hf://timm/resnet34.tv_in1k/model.safetensors"
STEM = "encoder.conv1.kernel"
# What depends on the bands, the classes and the metadata, by PyTorch's names; all else must fit.
_MAY_DIFFER = (pretrained.torch_name(STEM), "segmentation_head.", "enc.", "enc_channels.")


def initial_weights(
    params: Arrays, stats: Arrays, *, init_from: str, encoder_weights: str, mesh: Mesh
) -> tuple[Arrays, Arrays, list[str]]:
    """Replaces freshly drawn weights by those of a file or a checkpoint.

    Args:
        params, stats: of the model, freshly drawn.
        init_from: "" or a checkpoint of ours (see `checkpoint.find`) or a file of PyTorch weights
            (see `pretrained.read`) of the whole network.
        encoder_weights: "", "imagenet", or a file of a bare ResNet34 (torchvision's or timm's).
        mesh: where a checkpoint's arrays shall lie.

    Returns:
        Parameters, statistics, and lines that say which tensors came from where.

    Raises:
        UserError: a file cannot be read, or a tensor that should fit does not.
    """
    if init_from and encoder_weights:
        raise UserError(
            "config.init_from has the encoder's weights too: set config.encoder_weights=''"
        )
    if not init_from and not encoder_weights:
        return params, stats, []
    drawn = {**params, **stats}
    if init_from:
        source = init_from
        arrays, problems = _whole_network(init_from, drawn, mesh)
    else:
        source = IMAGENET if encoder_weights == "imagenet" else encoder_weights
        arrays, problems = _encoder(source, drawn)
    pretrained.refuse(problems, source)
    kept = [name for name in drawn if name not in arrays]
    lines = [f"weights  {len(arrays)} tensors from {source}, {len(kept)} drawn anew"]
    if init_from:
        lines += [f"  drawn anew: {name} {drawn[name].shape}" for name in kept]
    merged = {**drawn, **arrays}
    return {k: merged[k] for k in params}, {k: merged[k] for k in stats}, lines


def _whole_network(source: str, drawn: Arrays, mesh: Mesh) -> tuple[Arrays, list[str]]:
    """The tensors that fit; of those that may differ, the others are left as drawn."""
    if _is_file(source):
        arrays, problems = pretrained.match(pretrained.read(source), drawn)
    else:
        _, params, stats, _ = load(source, mesh)
        given = {**params, **stats}
        arrays = {
            name: given[name]
            for name, value in drawn.items()
            if name in given and given[name].shape == value.shape
        }
        problems = [
            f"does not fit: {pretrained.torch_name(name)}"
            for name in drawn.keys() | given.keys()
            if name not in arrays
        ]
    return arrays, [p for p in problems if not p.split(": ", 1)[1].startswith(_MAY_DIFFER)]


def _encoder(source: str, drawn: Arrays) -> tuple[Arrays, list[str]]:
    """A bare ResNet34, its three-band stem spread over the model's bands."""
    state_dict = {
        f"encoder.{key.removeprefix('encoder.')}": value
        for key, value in pretrained.read(source).items()
        if not key.startswith("fc.")
    }
    encoder = {name: value for name, value in drawn.items() if name.startswith("encoder.")}
    key, bands = pretrained.torch_name(STEM), encoder[STEM].shape[2]
    if key in state_dict and state_dict[key].ndim == 4:
        state_dict[key] = adapt_stem(state_dict[key], bands)
    return pretrained.match(state_dict, encoder)


def adapt_stem(kernel: np.ndarray, bands: int) -> np.ndarray:
    """A stem for three bands -> one for any number, as segmentation-models-pytorch does it.

    Band i gets the weights of band i mod 3, all scaled by 3 / bands, so that the sum stays alike.

    Args:
        kernel: (64, 3, 7, 7), PyTorch's layout.
        bands: number of input bands.
    """
    if kernel.shape[1] == bands:
        return kernel
    return kernel[:, np.arange(bands) % kernel.shape[1]] * (kernel.shape[1] / bands)


def _is_file(source: str) -> bool:
    return source.startswith("hf://") or source.endswith(
        (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
    )
