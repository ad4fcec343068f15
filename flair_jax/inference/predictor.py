"""A checkpoint as a Python object: uint8 images in, class probabilities out."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from flair_jax.errors import UserError
from flair_jax.inference.loading import load
from flair_jax.models.functional import Arrays, abstract_model, forward
from flair_jax.models.ops import for_mesh
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime.sharding import batch_sharding, make_mesh, replicated, to_global


class Model:
    """A trained model, ready to be called; made by `load_model`.

    Attributes:
        path: where it was loaded from.
        spec: bands, classes, normalisation and metadata that the model was made for.
        params, batch_stats: its weights and running statistics.
        step: the training step of its weights.
    """

    def __init__(
        self,
        path: str,
        mesh: Mesh,
        spec: ModelSpec,
        params: Arrays,
        batch_stats: Arrays,
        step: int,
    ) -> None:
        self.path = path
        self.spec = spec
        self.params, self.batch_stats = params, batch_stats
        self.step = step
        graphdef = abstract_model(spec)[0]
        self._mesh, ops = mesh, for_mesh(mesh)

        def infer(params: Arrays, batch_stats: Arrays, batch: dict[str, jax.Array]) -> jax.Array:
            logits = ops.leave(forward(graphdef, spec, params, batch_stats, batch, ops))
            return jax.nn.softmax(logits.astype(jnp.float32))

        whole, split = replicated(mesh), batch_sharding(mesh)
        self._infer = jax.jit(infer, in_shardings=(whole, whole, split), out_shardings=split)

    def with_dtype(self, dtype: str) -> "Model":
        """The same model with activations of another type, "float32" or "bfloat16"."""
        spec = dataclasses.replace(self.spec, dtype=dtype)
        return Model(self.path, self._mesh, spec, self.params, self.batch_stats, self.step)

    def __call__(self, image: np.ndarray, metadata: np.ndarray | None = None) -> jax.Array:
        """Class probabilities of every pixel; the devices share the batch.

        Args:
            image: (N, H, W, bands) uint8 digital numbers, bands in the spec's order; H and W
                multiples of 32.
            metadata: (N, numbers) of `flair_jax.data.metadata.encode`, for a model that takes it.

        Returns:
            (N, H, W, classes) float32, summing to 1; classes in the order of
            `spec.nomenclature.names`.

        Raises:
            UserError: the image or the metadata do not fit the model.
        """
        image = np.asarray(image)
        bands = self.spec.bands
        if image.dtype != np.uint8 or image.ndim != 4 or image.shape[-1] != len(bands):
            raise UserError(
                f"expected images (N, H, W, {len(bands)}) of uint8 digital numbers, bands "
                f"{', '.join(bands)}; found {image.shape} of {image.dtype}"
            )
        if (metadata is not None) != self.spec.takes_metadata:
            wants = "takes" if self.spec.takes_metadata else "takes no"
            raise UserError(f"this model {wants} metadata")
        batch = {"image": image}
        if metadata is not None:
            batch["metadata"] = np.asarray(metadata, np.float32)
        count = len(image)
        missing = -count % self._mesh.size
        padded = {
            name: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for name, x in batch.items()
        }
        return self._infer(self.params, self.batch_stats, to_global(padded, self._mesh))[:count]


def load_model(
    path: str | os.PathLike[str], step: int | None = None, *, ema: bool | None = None
) -> Model:
    """Loads a model for inference, on all devices of this process.

    Args:
        path: a workdir (its best checkpoint is taken), a folder of checkpoints, or one of a step;
            or a published model: `hf://organisation/repository`, with `@revision` or `/file` where
            wanted, a folder with the files of such a repository, or a file of weights.
        step: a step to take instead.
        ema: the moving average of the weights in place of the weights themselves; None: the one
            of the two that the run has watched (config.monitor).

    Raises:
        UserError: there is no model, it cannot be read, or its bands, classes or normalisation are
            not known.
    """
    mesh = make_mesh(jax.local_devices())
    return Model(os.fspath(path), mesh, *load(path, mesh, step, ema=ema))
