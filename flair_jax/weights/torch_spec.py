"""The spec of PyTorch weights: what bands, classes and normalisation their file shows."""

import dataclasses
import pathlib
import re

import numpy as np

from flair_jax.data import reference_facts
from flair_jax.data.bands import BANDS, band_indices
from flair_jax.data.description import FLAIR_NAME
from flair_jax.data.nomenclature import COSIA, FULL, NOMENCLATURES, Nomenclature
from flair_jax.errors import UserError
from flair_jax.models.spec import ModelSpec
from flair_jax.weights import hugging_face, torch_weights
from flair_jax.weights.architectures import check_network
from tfds_builder.hub import reference as hub_reference

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
    """The spec of a file of weights: from the arguments, else from what the file shows.

    A FLAIR-INC file shows it by its name, or that of its repository on the hub; a model of
    FLAIR-HUB's code by its tensors' names, but for the normalisation.

    Args:
        weights: the file's path.
        state_dict: what it holds.
        bands: names of the input bands.
        nomenclature: name of the classes.
        normalization: "scaling" or "custom".

    Raises:
        UserError: it is of another architecture, something is neither given nor known, or does not
            fit the tensors.
    """
    tensors = torch_weights.network_tensors(state_dict, weights)
    check_network(tensors, weights)
    channels = torch_weights.size(tensors, "encoder.conv1.weight", weights)
    outputs = torch_weights.size(tensors, "segmentation_head.0.weight", weights)
    known = _flair_inc(weights)
    hub = torch_weights.hub_source(state_dict, weights)
    chosen: Nomenclature | None = None
    if nomenclature is not None:
        if nomenclature not in NOMENCLATURES:
            *first, last = sorted(NOMENCLATURES)
            raise UserError(
                f"--nomenclature={nomenclature} is unknown: {', '.join(first)} or {last}"
            )
        chosen = NOMENCLATURES[nomenclature]
    if hub:
        for what, known_name, name in (
            ("takes", hub_reference.IMAGE, hub[0]),
            ("predicts", hub_reference.MASK, hub[1]),
        ):  # fmt: skip
            if name != known_name:
                raise UserError(
                    f"{weights} {what} FLAIR-HUB's {name}; only models of {known_name} can be "
                    "loaded"
                )
        if channels == 4:
            bands = bands or BANDS[:4]
        if outputs == len(COSIA):
            if chosen is not None and chosen != COSIA:
                raise UserError(
                    f"{weights} has the classes of {hub[1]}, as its tensors' names show, and not "
                    f"{chosen.name!r}: leave --nomenclature out"
                )
            chosen = COSIA
    elif known:
        bands = bands or _FLAIR_INC_BANDS[known[1].lower()]
        normalization = normalization or "custom"
        chosen = chosen or _flair_inc_classes(state_dict, outputs, known[2])
    unknown = [
        flag
        for flag, value in (
            ("--bands", bands), ("--normalization", normalization), ("--nomenclature", chosen),
        )
        if value is None
    ]  # fmt: skip
    if bands is None or normalization is None or chosen is None:
        kind = "of FLAIR-HUB's code" if hub else "not named like a FLAIR-INC file"
        hint = "; the default of FLAIR-HUB's code is custom" if hub and not normalization else ""
        raise UserError(
            f"{weights} is {kind}, so {' and '.join(unknown)} must be "
            f"given: the weights have {channels} input bands and {outputs} classes{hint}"
        )
    if len(bands) != channels:
        raise UserError(
            f"{len(bands)} bands ({', '.join(bands)}), but the weights have {channels} (--bands)"
        )
    band_indices(bands)
    if len(chosen) != outputs:
        raise UserError(
            f"the nomenclature {chosen.name!r} has {len(chosen)} classes, but the weights have "
            f"{outputs} (--nomenclature)"
        )
    published = reference_facts.HUB_BANDS if hub else reference_facts.BANDS
    if missing := [band for band in bands if band not in published]:
        raise UserError(f"FLAIR-HUB's aerial images have no band {missing[0]} (--bands)")
    takes_metadata = any(key.startswith("enc.enc_mlp") for key in tensors)
    return ModelSpec(
        bands=bands,
        nomenclature=chosen,
        normalization=normalization,
        means=tuple(published[band][0] for band in bands),
        stds=tuple(published[band][1] for band in bands),
        metadata_encoding="reference" if takes_metadata else "",
        metadata_fusion="rows" if takes_metadata else "",
        data_name=hub_reference.NAME if hub else FLAIR_NAME,
    )


def _flair_inc(weights: str) -> re.Match[str] | None:
    """What the name of a FLAIR-INC file, or of its repository on the hub, shows."""
    found = _FLAIR_INC.search(pathlib.PurePath(weights).name)
    if not found and weights.startswith(hugging_face.SCHEME):
        found = _FLAIR_INC.search(hugging_face.parse(weights).repository)
    return found


def known_spec(weights: str, state_dict: dict[str, np.ndarray]) -> ModelSpec | None:
    """The spec of a FLAIR-INC file by its name; None for a file that shows nothing of it.

    Raises:
        UserError: it is of FLAIR-HUB's code, whose classes are known, and the rest is not.
    """
    if torch_weights.hub_source(state_dict, weights):
        check_network(torch_weights.network_tensors(state_dict, weights), weights)
        raise UserError(
            f"{weights} is of FLAIR-HUB's code: make a checkpoint of it with flair-jax "
            f"import-torch --weights={weights} --out=DIR --normalization=NAME, and start from DIR"
        )
    if not _flair_inc(weights):
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
            "so its classes are not known: give flair-jax import-torch their --nomenclature"
        )
    enabled = tuple(
        dataclasses.replace(c, weight=float(w)) for c, w in zip(FULL.classes, weights, strict=True)
    )
    return Nomenclature(f"flair-inc-{count}cl", enabled)
