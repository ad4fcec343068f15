"""Where a training's first weights come from: drawn, a checkpoint, a PyTorch file, ImageNet."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from flair_jax.errors import UserError
from flair_jax.inference.loading import load
from flair_jax.interop import torch_weights
from flair_jax.interop.import_torch import published_spec
from flair_jax.models.functional import Arrays
from flair_jax.models.spec import ModelSpec

# torchvision's first ("v1") ImageNet weights of ResNet34, which the baseline starts from.
IMAGENET = "hf://timm/resnet34.tv_in1k/model.safetensors"
STEM = "encoder.conv1.kernel"
HEAD = ("segmentation_head.0.kernel", "segmentation_head.0.bias")
# What depends on the bands, the classes and the metadata, by PyTorch's names; all else must fit.
_MAY_DIFFER = (torch_weights.torch_name(STEM), "segmentation_head.", "enc.", "enc_channels.")


def initial_weights(
    params: Arrays,
    batch_stats: Arrays,
    spec: ModelSpec,
    *,
    init_from: str,
    encoder_weights: str,
    mesh: Mesh,
) -> tuple[Arrays, Arrays, list[str]]:
    """Replaces freshly drawn weights by those of a file or a checkpoint.

    Where bands or classes differ, what belongs to a common band or class is kept: the stem's
    weights of a band by the band's name, the head's of a class by the mask values it gathers.

    Args:
        params, batch_stats: of the model, freshly drawn.
        spec: of the model.
        init_from: "" or a checkpoint of ours (see `checkpoint.find`) or a file of PyTorch weights
            (see `torch_weights.read`) of the whole network.
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
        return params, batch_stats, []
    drawn = {**params, **batch_stats}
    notes: list[str] = []
    if init_from:
        source = init_from
        arrays, problems, notes = _whole_network(init_from, drawn, spec, mesh)
    else:
        source = IMAGENET if encoder_weights == "imagenet" else encoder_weights
        arrays, problems = _encoder(source, drawn)
    torch_weights.refuse(problems, source)
    kept = [name for name in drawn if name not in arrays]
    lines = [f"weights  {len(arrays)} tensors from {source}, {len(kept)} drawn anew"]
    if init_from:
        lines += [f"  drawn anew: {name} {drawn[name].shape}" for name in kept]
    merged = {**drawn, **arrays}
    return {k: merged[k] for k in params}, {k: merged[k] for k in batch_stats}, lines + notes


def _whole_network(
    source: str, drawn: Arrays, spec: ModelSpec, mesh: Mesh
) -> tuple[Arrays, list[str], list[str]]:
    """The tensors that fit, whole or in part; what should fit and does not; what to know."""
    given, problems, theirs = _read_network(source, drawn, mesh)
    arrays = {name: value for name, value in given.items() if _fits(name, value, drawn)}
    problems = [p for p in problems if not p.split(": ", 1)[1].startswith(_MAY_DIFFER)]
    if theirs is None:
        note = (
            f"  note: {source} does not name its bands and classes; where their numbers agree "
            "with this model's, their order is taken to be the same"
        )
        return arrays, problems, [note]
    notes = []
    if theirs.bands != spec.bands:
        arrays[STEM], note = _by_name(drawn[STEM], given[STEM], 2, spec.bands, theirs.bands)
        notes.append(f"  {STEM}: bands {note}")
    ours, others = spec.nomenclature, theirs.nomenclature
    if [(c.name, c.values) for c in ours.classes] != [(c.name, c.values) for c in others.classes]:
        values, their_values = ([c.values for c in n.classes] for n in (ours, others))
        for name in HEAD:
            arrays[name], note = _by_name(
                drawn[name], given[name], drawn[name].ndim - 1, values, their_values, ours.names
            )
        notes.append(f"  {', '.join(HEAD)}: classes {note}")
    if theirs.normalization != spec.normalization:
        notes.append(
            f"  note: these weights were trained with config.normalization="
            f"{theirs.normalization!r}, this run uses {spec.normalization!r}"
        )
    return arrays, problems, notes


def _by_name(
    drawn: jax.Array,
    given: jax.Array,
    axis: int,
    ours: Sequence[Any],
    theirs: Sequence[Any],
    names: Sequence[str] | None = None,
) -> tuple[jax.Array, str]:
    """An array with the slices of common names from `given`, the others as drawn."""
    names = names or ours
    mixed = np.moveaxis(np.array(drawn), axis, 0)
    source = np.moveaxis(np.asarray(given), axis, 0)
    taken = [name in theirs for name in ours]
    for place, name in enumerate(ours):
        if taken[place]:
            mixed[place] = source[list(theirs).index(name)]
    said = {
        what: ", ".join(n for n, t in zip(names, taken, strict=True) if t is kind) or "none"
        for what, kind in (("taken over", True), ("drawn anew", False))
    }
    text = "; ".join(f"{said[what]} {what}" for what in said)
    return jnp.asarray(np.moveaxis(mixed, 0, axis)), text


def _read_network(
    source: str, drawn: Arrays, mesh: Mesh
) -> tuple[Arrays, list[str], ModelSpec | None]:
    """A source's arrays by our names, what does not fit, and its spec if it has or implies one."""
    if not _is_file(source):
        spec, params, batch_stats, _ = load(source, mesh)
        given = {**params, **batch_stats}
        problems = [
            f"does not fit: {torch_weights.torch_name(name)}"
            for name in sorted(drawn.keys() | given.keys())
            if name not in given or not _fits(name, given[name], drawn)
        ]
        return given, problems, spec
    state_dict = torch_weights.read(source)
    given, problems = torch_weights.match(state_dict, drawn)
    tensors = torch_weights.network_tensors(state_dict)
    for name in (STEM, *HEAD):  # of these, parts may be of use where the whole does not fit
        key = torch_weights.torch_name(name)
        if name not in given and key in tensors:
            given[name] = jnp.asarray(torch_weights.from_torch_layout(name, tensors[key]))
    return given, problems, published_spec(source, state_dict)


def _fits(name: str, value: jax.Array, drawn: Arrays) -> bool:
    return name in drawn and drawn[name].shape == value.shape


def _encoder(source: str, drawn: Arrays) -> tuple[Arrays, list[str]]:
    """A bare ResNet34, its three-band stem spread over the model's bands."""
    state_dict = {
        f"encoder.{key.removeprefix('encoder.')}": value
        for key, value in torch_weights.read(source).items()
        if not key.startswith("fc.")
    }
    encoder = {name: value for name, value in drawn.items() if name.startswith("encoder.")}
    key, bands = torch_weights.torch_name(STEM), encoder[STEM].shape[2]
    if key in state_dict and state_dict[key].ndim == 4:
        state_dict[key] = adapt_stem(state_dict[key], bands)
    return torch_weights.match(state_dict, encoder)


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
