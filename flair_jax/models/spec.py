"""The model spec of a checkpoint (`model.json`): bands, classes, normalisation, metadata."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import ml_collections
from etils import epath
from flax import nnx

import flair_jax
from flair_jax.data import metadata, reference_facts
from flair_jax.data.bands import band_indices
from flair_jax.data.description import FLAIR_DATA, DataDescription
from flair_jax.data.nomenclature import (
    IGNORED,
    LandCover,
    Nomenclature,
    in_values_of,
    nomenclature,
)
from flair_jax.errors import UserError
from flair_jax.models.unet import UNet
from flair_jax.runtime import checksums
from flair_jax.runtime.atomic_io import atomic_write

FILE = "model.json"


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """The inputs and outputs of a model: all that is needed to build it and to feed it.

    Attributes:
        bands: names of the input bands, in order.
        nomenclature: the classes of the output channels, in order.
        normalization: "scaling" or "custom", see `preprocess.normalise`.
        means, stds: of each band in digital numbers, for "custom".
        metadata_encoding: name of the metadata's encoding, or "" for a model without metadata.
        metadata_fusion: how the metadata joins the bottleneck, or "".
        dtype: of the activations.
        unlisted_values: "error" or "ignore": how mask values that map to no class are treated.
        patch_size: (height, width) of the patches it was trained on; 0, 0 when unknown.
        pixel_size: their ground sample distance in metres; 0 when unknown.
        data_name: the data set that it was trained on.
        mask_values: what the values of the masks of that data set stand for: (value, name).
        synthetic: whether that data set is synthetic, so that the model is of no use on real
            images.
        stretch: (lowest, highest) value of each band in the images of that data set, which became 0
            and 255; empty where they were uint8 as they are.
        image_types: the types of those images' pixels.
    """

    bands: tuple[str, ...]
    nomenclature: Nomenclature
    normalization: str
    means: tuple[float, ...]
    stds: tuple[float, ...]
    metadata_encoding: str = ""
    metadata_fusion: str = ""
    dtype: str = "float32"
    unlisted_values: str = "error"
    patch_size: tuple[int, int] = (0, 0)
    pixel_size: float = 0.0
    data_name: str = FLAIR_DATA.name
    mask_values: tuple[tuple[int, str], ...] = FLAIR_DATA.nomenclature.names_of_values
    synthetic: bool = False
    stretch: tuple[tuple[float, float], ...] = ()
    image_types: tuple[str, ...] = ("uint8",)

    @classmethod
    def from_config(
        cls,
        config: ml_collections.ConfigDict,
        patch_size: tuple[int, int],
        pixel_size: float = 0.0,
        data: DataDescription | None = None,
    ) -> "ModelSpec":
        """The spec of the model that a configuration describes.

        Args:
            config: the configuration.
            patch_size: (height, width) of the patches to train on.
            pixel_size: see the attributes.
            data: the data set to train on; None where there is none: FLAIR's bands and mask values.

        Raises:
            UserError: the configuration asks for bands, classes, normalisation or metadata that
                the data set does not have.
        """
        of_data = data.nomenclature if data else None
        data = data or FLAIR_DATA
        use = config.metadata.use
        if use and not data.is_flairs:
            raise UserError(
                f"config.metadata.use feeds FLAIR's metadata, which the data set {data.name!r} "
                "does not have: set it to False"
            )
        classes = nomenclature(
            config.nomenclature, config.classes, config.disabled_classes, of_data
        )
        bands = tuple(config.bands) or data.bands
        indices = band_indices(bands, data.bands)
        means, stds = config.normalization_means, config.normalization_stds
        if config.normalization == "custom":
            _check_normalization(config, data)
        elif len(means) != len(data.bands) or len(stds) != len(data.bands):
            means, stds = [0.0] * len(data.bands), [1.0] * len(data.bands)  # not used
        return cls(
            bands=bands,
            nomenclature=classes,
            normalization=config.normalization,
            means=tuple(means[i] for i in indices),
            stds=tuple(stds[i] for i in indices),
            metadata_encoding=config.metadata.encoding if use else "",
            metadata_fusion=config.metadata.fusion if use else "",
            dtype=config.dtype,
            unlisted_values=config.unlisted_values,
            patch_size=patch_size,
            pixel_size=pixel_size if data.has_crs else 0.0,
            data_name=data.name,
            mask_values=data.nomenclature.names_of_values,
            synthetic=data.synthetic,
            stretch=tuple(data.stretch[i] for i in indices) if data.stretch else (),
            image_types=data.image_types,
        )

    @property
    def refused_values(self) -> tuple[int, ...]:
        """The mask values that must not occur in a truth."""
        if self.unlisted_values == "ignore":
            return ()
        labels = self.nomenclature.labels
        return tuple(value for value, _ in self.mask_values if labels[value] == IGNORED)

    @property
    def is_flairs(self) -> bool:
        """Whether the model was trained on FLAIR's classes, or on groups of them."""
        return self.mask_values == FLAIR_DATA.nomenclature.names_of_values

    @property
    def takes_metadata(self) -> bool:
        """Whether the model wants a metadata vector with each image."""
        return bool(self.metadata_encoding)

    def build_model(self, seed: int = 0) -> UNet:
        """The network with weights randomly initialised from `seed`."""
        return UNet(
            len(self.bands),
            len(self.nomenclature),
            metadata_features=metadata.SIZES[self.metadata_encoding] if self.takes_metadata else 0,
            fusion=self.metadata_fusion or "rows",
            dtype=jnp.dtype(self.dtype),
            rngs=nnx.Rngs(seed),
        )

    def abstract_model(self) -> UNet:
        """The network with shapes in place of weights."""
        return nnx.eval_shape(self.build_model)

    def save(self, directory: epath.PathLike) -> None:
        """Writes `model.json` into a directory."""
        spec: dict[str, Any] = dataclasses.asdict(self) | {
            "architecture": "unet-resnet34",
            "first_class": 0,
            "written_by": {
                name: importlib.metadata.version(name)
                for name in ("jax", "flax", "orbax-checkpoint")
            }
            | {"flair_jax": flair_jax.__version__},
        }
        sealed = checksums.seal(json.loads(json.dumps(spec)))
        atomic_write(epath.Path(directory) / FILE, json.dumps(sealed, indent=2) + "\n")

    @classmethod
    def load(cls, directory: epath.PathLike) -> "ModelSpec":
        """Reads `model.json` of a directory.

        Raises:
            UserError: there is none, or it is not a model spec.
        """
        path = epath.Path(directory) / FILE
        if not path.exists():
            raise UserError(f"there is no {FILE} in {directory}: it is not a folder of checkpoints")
        try:
            spec = json.loads(path.read_text())
            intact = checksums.is_intact(spec)
            classes = tuple(
                LandCover(**(c | {"values": tuple(c["values"])}))
                for c in spec["nomenclature"]["classes"]
            )
            if "deviations" in spec:  # as version 0.1 called them
                spec["stds"] = spec.pop("deviations")
            for field in dataclasses.fields(cls):  # earlier versions did not record all of them
                if field.default is not dataclasses.MISSING:
                    spec.setdefault(field.name, field.default)
            spec["mask_values"] = tuple((int(v), str(name)) for v, name in spec["mask_values"])
            spec["stretch"] = tuple((float(low), float(high)) for low, high in spec["stretch"])
            values = {f.name: spec[f.name] for f in dataclasses.fields(cls)}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not a model spec: {error!r}") from error
        if not intact:
            raise UserError(
                f"{path} is damaged: it is not what was saved. If you have edited it, remove its "
                f"{checksums.KEY!r} too"
            )
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        values["nomenclature"] = Nomenclature(spec["nomenclature"]["name"], classes)
        return cls(**values)

    def check_same_model(self, other: "ModelSpec", where: str) -> None:
        """Raises a UserError unless a checkpoint with the spec `other` fits this model."""
        differences = [
            f"{what}: {saved} in the checkpoint, {wanted} in the configuration"
            for what, wanted, saved in (
                ("classes", _classes(self), _classes(other)),
                ("names of the classes", self.nomenclature.names, other.nomenclature.names),
                ("mask values", dict(self.mask_values), dict(other.mask_values)),
                ("bands", " ".join(self.bands), " ".join(other.bands)),
                ("normalization", self.normalization, other.normalization),
                ("metadata encoding", self.metadata_encoding, other.metadata_encoding),
                ("metadata fusion", self.metadata_fusion, other.metadata_fusion),
            )
            if wanted != saved
        ]
        if differences:
            raise UserError(
                f"the checkpoint in {where} is of a different model:\n  "
                + "\n  ".join(differences)
                + "\nUse the configuration it was trained with, or another --workdir."
            )

    def for_masks_of(self, data: DataDescription) -> "ModelSpec":
        """The spec to score the model by a data set's masks: FLAIR's and FLAIR-HUB's are mapped."""
        values = data.nomenclature.names_of_values
        classes = in_values_of(self.nomenclature, self.mask_values, values)
        if classes is self.nomenclature:
            return self
        return dataclasses.replace(self, nomenclature=classes, mask_values=values)

    def check_data(self, data: DataDescription, where: str, *, scored: bool) -> None:
        """Raises a UserError unless the model takes the images of a data set.

        Args:
            data: the data set.
            where: its folder, for the message.
            scored: whether its masks are used: they must have the meaning that they had in the
                model's training.
        """
        if missing := [band for band in self.bands if band not in data.bands]:
            raise UserError(
                f"the model takes the bands {', '.join(self.bands)}, and the data set {where} has "
                f"{', '.join(data.bands)}: it lacks {', '.join(missing)}"
            )
        stretch = {
            name: limits
            for name, limits in zip(data.bands, data.stretch, strict=False)
            if name in self.bands
        }
        of_model = dict(zip(self.bands, self.stretch, strict=False))
        if data.image_types == self.image_types and stretch != of_model:
            raise UserError(
                f"the model was trained on {' and '.join(self.image_types)} images "
                f"{stretch_text(of_model)}, and the data set {where} is built from such images "
                f"{stretch_text(stretch)}: build it with the model's --stretch"
            )
        values = data.nomenclature.names_of_values
        if scored and values != self.mask_values:
            raise UserError(
                f"the model was trained on {self.data_name!r}, whose mask values stand for "
                f"{_listed(self.mask_values)}; in the data set {where} they stand for "
                f"{_listed(values)}: its masks cannot score this model"
            )


def stretch_text(stretch: Mapping[str, tuple[float, float]]) -> str:
    """A stretch in words: "with red stretched from 0..3000, nir from 0..6000"."""
    if not stretch:
        return "as they are"
    distinct = set(stretch.values())
    if len(distinct) == 1:
        ((low, high),) = distinct
        return f"stretched from {low:g}..{high:g}"
    listed = (f"{name} from {low:g}..{high:g}" for name, (low, high) in stretch.items())
    return f"with {', '.join(listed)} stretched"


def _listed(values: tuple[tuple[int, str], ...]) -> str:
    return ", ".join(f"{value} {name}" for value, name in values) or "nothing"


def _check_normalization(config: ml_collections.ConfigDict, data: DataDescription) -> None:
    """Raises a UserError unless means and standard deviations can be those of the data set."""
    published = zip(*reference_facts.BANDS.values(), strict=True)
    for key, flairs in zip(("normalization_means", "normalization_stds"), published, strict=True):
        values = tuple(config[key])
        if len(values) != len(data.bands) or (not data.is_flairs and values == flairs):
            raise UserError(
                f"config.{key} has {len(values)} numbers"
                + (", FLAIR's" if values == flairs else "")
                + f"; config.normalization='custom' takes one for each band of the data set "
                f"{data.name!r}, {', '.join(data.bands)}: flair-jax doctor --data_dir measures them"
            )


def _classes(spec: ModelSpec) -> str:
    return f"{len(spec.nomenclature)} ({spec.nomenclature.name})"
