"""Initial weights: random, from a checkpoint, from PyTorch weights, or an ImageNet encoder."""

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
from flair_jax.models.functional import Arrays, split_model
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime.sharding import replicated

# torchvision's first ("v1") ImageNet weights of ResNet34, which the baseline starts from.
IMAGENET = "hf://timm/resnet34.tv_in1k/model.safetensors"
STEM = "encoder.conv1.kernel"
HEAD = ("segmentation_head.0.kernel", "segmentation_head.0.bias")
# What depends on the bands, the classes and the metadata, by PyTorch's names; all else must fit.
_MAY_DIFFER = (torch_weights.torch_name(STEM), "segmentation_head.", "enc.", "enc_channels.")


def random_weights(spec: ModelSpec, seed: int, mesh: Mesh) -> tuple[Arrays, Arrays]:
    """Random parameters and first batch statistics of a model, on every device.

    In one compiled program: drawn one by one they need eighty.
    """
    return jax.jit(
        lambda: split_model(spec.build_model(seed))[1:], out_shardings=replicated(mesh)
    )()


def initial_weights(
    params: Arrays,
    batch_stats: Arrays,
    spec: ModelSpec,
    *,
    init_from: str,
    encoder_weights: str,
    mesh: Mesh,
) -> tuple[Arrays, Arrays, list[str]]:
    """Replaces randomly initialised weights by those of a file or a checkpoint.

    Where bands or classes differ, the weights of a common band or class are copied: the stem's by
    the name of the band, the head's by the mask values that map to the class.

    Args:
        params, batch_stats: of the model, randomly initialised.
        spec: of the model.
        init_from: "", a checkpoint of this package (see `loading.find`), or a file with PyTorch
            weights (see `torch_weights.read`) of the complete network.
        encoder_weights: "", "imagenet", or a file of a bare ResNet34 (torchvision's or timm's).
        mesh: the devices for a checkpoint's arrays.

    Returns:
        Parameters, statistics, and lines for the log that name the source of the tensors.

    Raises:
        UserError: a file cannot be read, or a tensor that should fit does not.
    """
    if init_from and encoder_weights:
        raise UserError(
            "config.init_from has the encoder's weights too: set config.encoder_weights=''"
        )
    if not init_from and not encoder_weights:
        return params, batch_stats, []
    initial = {**params, **batch_stats}
    notes: list[str] = []
    if init_from:
        source = init_from
        arrays, problems, notes = _whole_network(init_from, initial, spec, mesh)
    else:
        source = IMAGENET if encoder_weights == "imagenet" else encoder_weights
        arrays, problems = _encoder(source, initial)
    torch_weights.refuse(problems, source)
    kept = [name for name in initial if name not in arrays]
    lines = [f"weights  {len(arrays)} tensors from {source}, {len(kept)} randomly initialised"]
    if init_from:
        lines += [f"  randomly initialised: {name} {initial[name].shape}" for name in kept]
    merged = {**initial, **arrays}
    return {k: merged[k] for k in params}, {k: merged[k] for k in batch_stats}, lines + notes


def _whole_network(
    source: str, initial: Arrays, spec: ModelSpec, mesh: Mesh
) -> tuple[Arrays, list[str], list[str]]:
    """The tensors that fit, fully or in part; those that should fit and do not; notes."""
    given, problems, source_spec = _read_network(source, initial, mesh)
    arrays = {name: value for name, value in given.items() if _fits(name, value, initial)}
    problems = [p for p in problems if not p.split(": ", 1)[1].startswith(_MAY_DIFFER)]
    if source_spec is None:
        note = (
            f"  note: {source} does not name its bands and classes; where their numbers agree "
            "with this model's, the same order is assumed"
        )
        return arrays, problems, [note]
    notes = []
    if source_spec.bands != spec.bands:
        arrays[STEM], note = _by_name(initial[STEM], given[STEM], 2, spec.bands, source_spec.bands)
        notes.append(f"  {STEM}: bands {note}")
    ours, others = spec.nomenclature, source_spec.nomenclature
    if [(c.name, c.values) for c in ours.classes] != [(c.name, c.values) for c in others.classes]:
        values, source_values = ([c.values for c in n.classes] for n in (ours, others))
        for name in HEAD:
            arrays[name], note = _by_name(
                initial[name],
                given[name],
                initial[name].ndim - 1,
                values,
                source_values,
                ours.names,
            )
        notes.append(f"  {', '.join(HEAD)}: classes {note}")
    if source_spec.normalization != spec.normalization:
        notes.append(
            f"  note: these weights were trained with config.normalization="
            f"{source_spec.normalization!r}, this run uses {spec.normalization!r}"
        )
    return arrays, problems, notes


def _by_name(
    initial: jax.Array,
    given: jax.Array,
    axis: int,
    keys: Sequence[Any],
    source_keys: Sequence[Any],
    names: Sequence[str] | None = None,
) -> tuple[jax.Array, str]:
    """The initial array, with the slices of common keys copied from `given`; and a note."""
    names = names or keys
    mixed = np.moveaxis(np.array(initial), axis, 0)
    source = np.moveaxis(np.asarray(given), axis, 0)
    copied = [key in source_keys for key in keys]
    for index, key in enumerate(keys):
        if copied[index]:
            mixed[index] = source[list(source_keys).index(key)]
    by_origin = {
        origin: ", ".join(n for n, t in zip(names, copied, strict=True) if t is kind) or "none"
        for origin, kind in (("copied", True), ("randomly initialised", False))
    }
    text = "; ".join(f"{by_origin[origin]} {origin}" for origin in by_origin)
    return jnp.asarray(np.moveaxis(mixed, 0, axis)), text


def _read_network(
    source: str, initial: Arrays, mesh: Mesh
) -> tuple[Arrays, list[str], ModelSpec | None]:
    """A source's arrays by our names, problems, and its spec if it has or implies one."""
    if not _is_file(source):
        spec, params, batch_stats, _ = load(source, mesh)
        given = {**params, **batch_stats}
        problems = [
            f"does not fit: {torch_weights.torch_name(name)}"
            for name in sorted(initial.keys() | given.keys())
            if name not in given or not _fits(name, given[name], initial)
        ]
        return given, problems, spec
    state_dict = torch_weights.read(source)
    given, problems = torch_weights.match(state_dict, initial)
    tensors = torch_weights.network_tensors(state_dict)
    for name in (STEM, *HEAD):  # parts of these are useful where the tensor as a whole does not fit
        key = torch_weights.torch_name(name)
        if name not in given and key in tensors:
            given[name] = jnp.asarray(torch_weights.from_torch_layout(name, tensors[key]))
    return given, problems, published_spec(source, state_dict)


def _fits(name: str, value: jax.Array, initial: Arrays) -> bool:
    return name in initial and initial[name].shape == value.shape


def _encoder(source: str, initial: Arrays) -> tuple[Arrays, list[str]]:
    """A bare ResNet34, its three-band stem spread over the model's bands."""
    state_dict = {
        f"encoder.{key.removeprefix('encoder.')}": value
        for key, value in torch_weights.read(source).items()
        if not key.startswith("fc.")
    }
    encoder = {name: value for name, value in initial.items() if name.startswith("encoder.")}
    key, bands = torch_weights.torch_name(STEM), encoder[STEM].shape[2]
    if key in state_dict and state_dict[key].ndim == 4:
        state_dict[key] = adapt_stem(state_dict[key], bands)
    return torch_weights.match(state_dict, encoder)


def adapt_stem(kernel: np.ndarray, bands: int) -> np.ndarray:
    """Adapts a stem for three bands to any number, as segmentation-models-pytorch does.

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
