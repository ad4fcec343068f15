"""Import of PyTorch weights into a checkpoint of this package."""

import dataclasses
import pathlib
import re

import numpy as np

from flair_jax import config as configuration
from flair_jax.data.bands import BANDS, band_indices
from flair_jax.data.nomenclature import FULL, Nomenclature
from flair_jax.data.nomenclature import nomenclature as named
from flair_jax.errors import UserError
from flair_jax.inference.loading import save_model
from flair_jax.interop import torch_weights
from flair_jax.models.functional import split_model
from flair_jax.models.spec import ModelSpec

# FLAIR-INC_rgbie_15cl_resnet34-unet_weights.pth
_FLAIR_INC = re.compile(r"FLAIR-INC_(rgbie|rgbi|rgb)_(12|15)cl_", re.IGNORECASE)
_FLAIR_INC_BANDS = {"rgb": BANDS[:3], "rgbi": BANDS[:4], "rgbie": BANDS}


def spec_for(
    weights: str,
    state_dict: dict[str, np.ndarray],
    bands: tuple[str, ...] | None = None,
    nomenclature: str | None = None,
    normalization: str | None = None,
) -> ModelSpec:
    """The spec of a file of weights: from the arguments, else from a FLAIR-INC file's name.

    Args:
        weights: the file's path.
        state_dict: what it holds.
        bands: names of the input bands.
        nomenclature: name of the classes.
        normalization: "scaling" or "custom".

    Raises:
        UserError: something is neither given nor known, or does not fit the tensors.
    """
    tensors = torch_weights.network_tensors(state_dict)
    try:
        channels = tensors["encoder.conv1.weight"].shape[1]
        outputs = tensors["segmentation_head.0.weight"].shape[0]
    except KeyError as error:
        if "layer1.0.conv1.weight" in tensors:
            raise UserError(
                f"{weights} is a bare ResNet, which predicts no land cover: train from it with "
                f"--config.encoder_weights={weights}"
            ) from error
        raise UserError(
            f"{weights} has no {error}: it is not a segmentation-models-pytorch U-Net"
        ) from error
    known = _FLAIR_INC.search(pathlib.PurePath(weights).name)
    if known:
        bands = bands or _FLAIR_INC_BANDS[known[1].lower()]
        normalization = normalization or "custom"
    unknown = [
        flag
        for flag, value in (("--bands", bands), ("--normalization", normalization))
        if value is None
    ]
    if nomenclature is None and not known:
        unknown.append("--nomenclature")
    if bands is None or normalization is None or unknown:
        raise UserError(
            f"{weights} is not named like a FLAIR-INC file, so {' and '.join(unknown)} must be "
            f"given: the weights have {channels} input bands and {outputs} classes"
        )
    if len(bands) != channels:
        raise UserError(
            f"{len(bands)} bands ({', '.join(bands)}), but the weights have {channels} (--bands)"
        )
    indices = band_indices(bands)
    if nomenclature is not None:
        chosen = named(nomenclature)
    else:
        chosen = _flair_inc_classes(state_dict, outputs, known[2] if known else "")
    if len(chosen) != outputs:
        raise UserError(
            f"the nomenclature {chosen.name!r} has {len(chosen)} classes, but the weights have "
            f"{outputs} (--nomenclature)"
        )
    defaults = configuration.default()
    takes_metadata = any(key.startswith("enc.enc_mlp") for key in tensors)
    return ModelSpec(
        bands=bands,
        nomenclature=chosen,
        normalization=normalization,
        means=tuple(defaults.normalization_means[i] for i in indices),
        stds=tuple(defaults.normalization_stds[i] for i in indices),
        metadata_encoding="reference" if takes_metadata else "",
        metadata_fusion="rows" if takes_metadata else "",
    )


def published_spec(weights: str, state_dict: dict[str, np.ndarray]) -> ModelSpec | None:
    """The spec of a FLAIR-INC file by its name; None for any other file."""
    if not _FLAIR_INC.search(pathlib.PurePath(weights).name):
        return None
    return spec_for(weights, state_dict)


def _flair_inc_classes(state_dict: dict[str, np.ndarray], outputs: int, count: str) -> Nomenclature:
    """All 19 mask values in order; those of weight 0 in the file's loss are disabled."""
    weights = state_dict.get(torch_weights.CLASS_WEIGHTS)
    if weights is None and count == "12":
        weights = np.array([1.0] * 12 + [0.0] * 7)
    if weights is None or len(weights) != outputs or outputs != len(FULL):
        raise UserError(
            f"the file has {outputs} outputs and no {torch_weights.CLASS_WEIGHTS} for 19 classes, "
            "so its classes are not known: give --nomenclature"
        )
    enabled = tuple(
        dataclasses.replace(c, weight=float(w)) for c, w in zip(FULL.classes, weights, strict=True)
    )
    return Nomenclature(f"flair-inc-{count}cl", enabled)


def import_weights(weights: str, out: str, **choices: object) -> ModelSpec:
    """Converts a file of PyTorch weights into a checkpoint with its spec.

    Args:
        weights: see `torch_weights.read`.
        out: folder to create; `checkpoints/` in it gets the checkpoint, as step 0.
        choices: `bands`, `nomenclature`, `normalization`, see `spec_for`.

    Returns:
        The spec.

    Raises:
        UserError: the file cannot be read or does not fit, or `out` has a checkpoint.
    """
    target = pathlib.Path(out).expanduser() / "checkpoints"
    if target.exists():
        raise UserError(f"{target} exists: give another --out, or remove it")
    state_dict = torch_weights.read(weights)
    spec = spec_for(weights, state_dict, **choices)  # type: ignore[arg-type]
    model = spec.build_model()
    torch_weights.load_state_dict(model, state_dict)
    _, params, batch_stats = split_model(model)
    save_model(target, spec, params, batch_stats)
    return spec
