"""Initial weights: random, from a checkpoint, from PyTorch weights, or an ImageNet encoder."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from flair_jax.data.nomenclature import BASELINE, FULL, Nomenclature
from flair_jax.errors import UserError
from flair_jax.inference.loading import load
from flair_jax.models.functional import Arrays, split_model
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime.sharding import replicated
from flair_jax.weights import torch_files, torch_weights
from flair_jax.weights.published import SUFFIXES, is_published, read

# torchvision's first ("v1") ImageNet weights of ResNet34, which the baseline starts from.
IMAGENET = "hf://timm/resnet34.tv_in1k/model.safetensors"
STEM = "encoder.conv1.kernel"
HEAD = ("segmentation_head.0.kernel", "segmentation_head.0.bias")
_FLAIRS = {(c.name, c.values) for n in (BASELINE, FULL) for c in n.classes}
_FLAIRS_ORDERS = [[(c.name, c.values) for c in n.classes] for n in (BASELINE, FULL)]


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

    The weights of bands and classes that both models have are copied: the stem's by the name of
    the band, the head's by the name of the class (see `match_classes`). All others are randomly
    initialised.

    Args:
        params, batch_stats: of the model, randomly initialised.
        spec: of the model.
        init_from: "", a checkpoint of this package (see `loading.find`), or published weights of
            the complete network (see `published.read`).
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
        arrays, notes = _whole_network(init_from, initial, spec, mesh)
    else:
        source = IMAGENET if encoder_weights == "imagenet" else encoder_weights
        arrays = _encoder(source, initial)
    kept = [name for name in initial if name not in arrays]
    lines = [f"weights  {len(arrays)} tensors from {source}, {len(kept)} randomly initialised"]
    if init_from:
        lines += [f"  randomly initialised: {name} {initial[name].shape}" for name in kept]
    merged = {**initial, **arrays}
    return {k: merged[k] for k in params}, {k: merged[k] for k in batch_stats}, lines + notes


def _whole_network(
    source: str, initial: Arrays, spec: ModelSpec, mesh: Mesh
) -> tuple[Arrays, list[str]]:
    """The tensors that fit, fully or in part, and notes."""
    given, source_spec = _read_network(source, initial, mesh)
    arrays = {k: value for k, value in given.items() if value.shape == initial[k].shape}
    if source_spec is None:
        if [(c.name, c.values) for c in spec.nomenclature.classes] in _FLAIRS_ORDERS:
            note = (
                f"  note: {source} does not name its bands and classes; where their numbers agree "
                "with this model's, the same order is assumed"
            )
        else:
            arrays = {k: v for k, v in arrays.items() if k not in (STEM, *HEAD)}
            note = (
                f"  note: {source} does not name its bands and classes: to copy the weights of "
                "those that this model has too, give them names with flair-jax import-torch "
                "--bands --nomenclature, and start from its checkpoint"
            )
        return arrays, [note]
    bands = _matches(spec.bands, source_spec.bands)
    if STEM in given:
        arrays[STEM] = _copied(initial[STEM], given[STEM], 2, bands)
    ours, others = spec.nomenclature, source_spec.nomenclature
    classes = match_classes(ours, others)
    for name in HEAD:
        if name in given:
            arrays[name] = _copied(initial[name], given[name], initial[name].ndim - 1, classes)
    notes = [
        "  bands    " + _mapping(spec.bands, source_spec.bands, bands),
        "  classes  " + _mapping(ours.names, others.names, classes),
    ]
    if source_spec.normalization != spec.normalization:
        notes.append(
            f"  note: these weights were trained with config.normalization="
            f"{source_spec.normalization!r}, this run uses {spec.normalization!r}"
        )
    return arrays, notes


def is_flairs(nomenclature: Nomenclature) -> bool:
    """Whether all classes are FLAIR's, by name and mask values."""
    return all((c.name, c.values) in _FLAIRS for c in nomenclature.classes)


def match_classes(ours: Nomenclature, others: Nomenclature) -> list[int | None]:
    """For each of our classes the index of the same class of another nomenclature, or None.

    Classes are the same by their name. Only where both nomenclatures are FLAIR's, it is by their
    mask values: "other" is the values 13 to 19 in one and 19 in the other.
    """
    if is_flairs(ours) and is_flairs(others):
        return _matches([c.values for c in ours.classes], [c.values for c in others.classes])
    return _matches(ours.names, others.names)


def _matches(keys: Sequence[Any], source_keys: Sequence[Any]) -> list[int | None]:
    """For each key the index of the equal one; names are equal in upper and lower case."""
    folded, source_folded = ([_folded(k) for k in each] for each in (keys, source_keys))
    if len(set(folded)) < len(folded) or len(set(source_folded)) < len(source_folded):
        folded, source_folded = list(keys), list(source_keys)
    return [source_folded.index(key) if key in source_folded else None for key in folded]


def _folded(key: Any) -> Any:
    return key.strip().casefold() if isinstance(key, str) else key


def _copied(
    initial: jax.Array, given: jax.Array, axis: int, matches: Sequence[int | None]
) -> jax.Array:
    """The initial array, with the slices that have a match copied from `given`."""
    mixed = np.moveaxis(np.array(initial), axis, 0)
    source = np.moveaxis(np.asarray(given), axis, 0)
    for index, match in enumerate(matches):
        if match is not None:
            mixed[index] = source[match]
    return jnp.asarray(np.moveaxis(mixed, 0, axis))


def _mapping(
    names: Sequence[str], source_names: Sequence[str], matches: Sequence[int | None]
) -> str:
    """Where the weights of each band or class come from: "water <- water, road random"."""
    return ", ".join(
        f"{name} randomly initialised" if match is None else f"{name} <- {source_names[match]}"
        for name, match in zip(names, matches, strict=True)
    )


def _read_network(source: str, initial: Arrays, mesh: Mesh) -> tuple[Arrays, ModelSpec | None]:
    """A source's arrays by our names, and its spec if it has or implies one."""
    spec: ModelSpec | None
    if is_published(source) or source.endswith(SUFFIXES):
        published = read(source)
        state_dict, spec = published.state_dict, published.spec
    else:
        spec, params, batch_stats, _ = load(source, mesh)
        state_dict = torch_weights.state_dict_of(params, batch_stats)
    return torch_weights.match(state_dict, initial, source, partial=True), spec


def _encoder(source: str, initial: Arrays) -> Arrays:
    """A bare ResNet34, its stem for other bands spread over the model's."""
    encoder = {name: value for name, value in initial.items() if name.startswith("encoder.")}
    arrays = torch_weights.match(torch_files.read(source), encoder, source, partial=True)
    if STEM in arrays:
        stem = torch_weights.to_torch_layout(STEM, np.asarray(arrays[STEM]))
        stem = adapt_stem(stem, encoder[STEM].shape[2])
        arrays[STEM] = jnp.asarray(torch_weights.from_torch_layout(STEM, stem))
    return arrays


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
