"""The model spec of a checkpoint (`model.json`): bands, classes, normalisation, metadata."""

import dataclasses
import importlib.metadata
import json
from typing import Any

import jax.numpy as jnp
import ml_collections
from etils import epath
from flax import nnx

import flair_jax
from flair_jax.data import metadata
from flair_jax.data.bands import band_indices
from flair_jax.data.nomenclature import LandCover, Nomenclature, nomenclature
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

    @classmethod
    def from_config(
        cls,
        config: ml_collections.ConfigDict,
        patch_size: tuple[int, int],
        pixel_size: float = 0.0,
    ) -> "ModelSpec":
        """The spec of the model that a configuration describes."""
        use = config.metadata.use
        indices = band_indices(config.bands)
        return cls(
            bands=tuple(config.bands),
            nomenclature=nomenclature(config.nomenclature, config.classes, config.disabled_classes),
            normalization=config.normalization,
            means=tuple(config.normalization_means[i] for i in indices),
            stds=tuple(config.normalization_stds[i] for i in indices),
            metadata_encoding=config.metadata.encoding if use else "",
            metadata_fusion=config.metadata.fusion if use else "",
            dtype=config.dtype,
            unlisted_values=config.unlisted_values,
            patch_size=patch_size,
            pixel_size=pixel_size,
        )

    @property
    def refused_values(self) -> tuple[int, ...]:
        """The mask values that must not occur in a truth."""
        return self.nomenclature.unlisted if self.unlisted_values == "error" else ()

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
            spec.setdefault("pixel_size", 0.0)  # version 0.1 did not record it
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


def _classes(spec: ModelSpec) -> str:
    return f"{len(spec.nomenclature)} ({spec.nomenclature.name})"
