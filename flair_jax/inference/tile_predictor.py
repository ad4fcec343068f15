"""Tiles -> classes, probabilities, confidence: one jitted function, batches over all devices."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from flair_jax.inference.engines import Engine
from flair_jax.inference.predictor import Model
from flair_jax.inference.tiles import Grid
from flair_jax.models.functional import abstract_model, forward
from flair_jax.models.ops import for_mesh
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime.sharding import batch_sharding, replicated, to_global

# Probabilities that are added up are integers of this unit: sums of integers do not depend on the
# order, so a flipped raster gives exactly the flipped result.
UNIT = 2**24
Made = Mapping[str, jax.Array | np.ndarray]
VIEWS = 8  # symmetries of the square


class TilePredictor:
    """A model applied to batches of tiles.

    Args:
        model: what `load_model` gives.
        mesh: the devices.
        grid: the tiles.
        tta: whether to average over the eight symmetries.
        probabilities, confidence: what is wanted beside the classes.
        engine: computes the logits, or if nothing else is wanted the classes; None: the devices do.
    """

    def __init__(
        self, model: Model, mesh: Mesh, grid: Grid, *, tta: bool, probabilities: bool,
        confidence: bool, engine: Engine | None = None,
    ) -> None:  # fmt: skip
        self._mesh, self._grid, self._engine = mesh, grid, engine
        self._arrays = model.params, model.batch_stats
        self._views = VIEWS if tta else 1
        self._classes = len(model.spec.nomenclature)
        self._measures = probabilities or confidence
        self._run = tile_programs(
            model.spec,
            mesh,
            self._views,
            probabilities,
            confidence,
            of_logits=engine is not None,
        )

    def __call__(self, images: np.ndarray, row: int, columns: Sequence[int]) -> Made:
        """Starts computing a batch.

        Args:
            images: (N, height, width, bands) uint8, N a multiple of the devices; square for
                test-time augmentation.
            row: of all tiles in the grid.
            columns: of the tiles; fewer than N if the last images are of no interest.

        Returns:
            Arrays, usually on the devices, of N tiles: what `products` gives; with blending,
            "scores" (N, height, width, classes) int32 for `tiles.Blender`.
        """
        blended = self._grid.horizontal.blended
        if not blended and self._views == 1:
            if self._engine and not self._measures:
                return {"classes": self._engine(images)}
            return self._run.plain(*self._inputs(images, 0))
        total = jax.device_put(
            jnp.zeros((*images.shape[:3], self._classes), jnp.int32), batch_sharding(self._mesh)
        )
        for view in range(self._views):
            total = self._run.add_view(*self._inputs(images, view), jnp.int32(view), total)
        if not blended:
            return self._run.of_total(total)
        down = np.stack([self._grid.vertical.weights(row)] * len(images))
        right = np.ones((len(images), images.shape[2]), np.float32)
        for i, column in enumerate(columns):
            right[i] = self._grid.horizontal.weights(column)
        weights = to_global({"down": down, "right": right}, self._mesh)
        return self._run.weigh(total, weights["down"], weights["right"])

    def _inputs(self, images: np.ndarray, view: int) -> tuple[Any, ...]:
        """What the programs take first: weights, statistics and images; or a view's logits."""
        if self._engine is None:
            return *self._arrays, to_global({"image": images}, self._mesh)["image"]
        image = np.ascontiguousarray(_turned(images, view)) if self._views > 1 else images
        logits = self._engine(image)
        return (to_global({"logits": logits}, self._mesh)["logits"],)

    def finish(self, scores: np.ndarray) -> dict[str, np.ndarray]:
        """What `products` gives of blended scores (height, width, classes) int32."""
        return jax.device_get(self._run.finish(scores))


class TilePrograms(NamedTuple):
    """Jitted functions of batches of tiles; see `tile_programs`."""

    plain: jax.stages.Wrapped  # (*inputs) -> Made
    add_view: jax.stages.Wrapped  # (*inputs, view, total) -> total
    of_total: jax.stages.Wrapped  # total -> Made
    weigh: jax.stages.Wrapped  # (total, down, right) -> Made
    finish: jax.stages.Wrapped  # scores -> Made


@functools.lru_cache(maxsize=8)  # so that many rasters need one compilation
def tile_programs(
    spec: ModelSpec,
    mesh: Mesh,
    views: int,
    probabilities: bool,
    confidence: bool,
    *,
    of_logits: bool = False,
) -> TilePrograms:
    """The programs of a model for the devices of a mesh.

    Args:
        spec: of the model.
        mesh: the devices.
        views: 1, or 8 for an average over the symmetries of the square.
        probabilities, confidence: what is wanted beside the classes.
        of_logits: whether the inputs are the logits of an engine (N, height, width, classes)
            float32, of a view if there are several; or else parameters, statistics and images (N,
            height, width, bands) uint8.
    """
    whole, split = replicated(mesh), batch_sharding(mesh)
    graphdef, ops = abstract_model(spec)[0], for_mesh(mesh)
    wanted = functools.partial(products, probabilities=probabilities, confidence=confidence)

    def infer(*inputs: Any, view: jax.Array | None = None) -> jax.Array:
        if of_logits:
            return inputs[0]
        params, batch_stats, image = inputs
        image = image if view is None else _turned(image, view)
        logits = forward(graphdef, spec, params, batch_stats, {"image": image}, ops)
        return ops.leave(logits).astype(jnp.float32)

    def plain(*inputs: Any) -> Made:
        logits = infer(*inputs)
        return wanted(logits, jax.nn.softmax(logits))

    def add_view(*arguments: Any) -> jax.Array:
        *inputs, view, total = arguments
        if views == 1:
            return _integers(jax.nn.softmax(infer(*inputs)))
        logits = infer(*inputs, view=view)
        return total + _turned_back(_integers(jax.nn.softmax(logits)), view)

    def of_total(total: jax.Array) -> Made:
        return wanted(total, total / (UNIT * views))

    def weigh(total: jax.Array, down: jax.Array, right: jax.Array) -> Made:
        weights = down[:, :, None, None] * right[:, None, :, None]
        return {"scores": _integers(total / (UNIT * views) * weights)}

    given = (split,) if of_logits else (whole, whole, split)
    return TilePrograms(
        jax.jit(plain, in_shardings=given, out_shardings=split),
        jax.jit(
            add_view,
            in_shardings=(*given, whole, split),
            out_shardings=split,
            donate_argnums=len(given) + 1,
        ),
        jax.jit(of_total, in_shardings=split, out_shardings=split),
        jax.jit(weigh, in_shardings=split, out_shardings=split, donate_argnums=0),
        jax.jit(lambda scores: wanted(scores, scores / UNIT)),
    )


def products(
    order: jax.Array, probability: jax.Array, *, probabilities: bool, confidence: bool
) -> dict[str, jax.Array]:
    """What is written of every pixel, as bytes.

    Args:
        order: (..., classes): its largest entry is the class.
        probability: (..., classes) float32, in the same order.
        probabilities, confidence: whether these are wanted.

    Returns:
        "classes" (...) uint8, from 0; "probabilities" (..., classes) uint8, 255 for 1, rounded;
        "confidence" (..., 3) uint8, 255 for 1: the probability of the class, its margin to the
        second one, and the entropy of all of them divided by the largest that it could be.
    """
    classes = jnp.argmax(order, -1)
    made = {"classes": classes.astype(jnp.uint8)}
    if probabilities:
        made["probabilities"] = _bytes(probability)
    if confidence:
        count = probability.shape[-1]
        best = jax.nn.one_hot(classes, count, dtype=bool)
        highest = jnp.max(probability, -1)
        margin = highest - jnp.max(jnp.where(best, 0, probability), -1)
        entropy = -jnp.sum(jax.scipy.special.xlogy(probability, probability), -1) / np.log(count)
        made["confidence"] = _bytes(jnp.stack([highest, margin, entropy], -1))
    return made


def _bytes(values: jax.Array) -> jax.Array:
    return jnp.rint(255 * jnp.clip(values, 0, 1)).astype(jnp.uint8)


def _integers(probability: jax.Array) -> jax.Array:
    return jnp.rint(probability * UNIT).astype(jnp.int32)


def _turned(x: Any, view: Any) -> Any:
    """One of the eight views of square images (N, S, S, ...): transposed, then flipped.

    Of an array of NumPy's, with a view that is an int, an array of NumPy's.
    """
    select: Any = np.where if isinstance(x, np.ndarray) else jnp.where
    x = select(view & 4, x.swapaxes(1, 2), x)
    x = select(view & 2, x[:, ::-1], x)
    return select(view & 1, x[:, :, ::-1], x)


def _turned_back(x: jax.Array, view: jax.Array) -> jax.Array:
    """The inverse of `_turned`."""
    x = jnp.where(view & 1, x[:, :, ::-1], x)
    x = jnp.where(view & 2, x[:, ::-1], x)
    return jnp.where(view & 4, jnp.swapaxes(x, 1, 2), x)
