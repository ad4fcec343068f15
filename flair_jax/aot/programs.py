"""The train, evaluation, prediction and detection programs, lowered from shapes alone.

Each is lowered for the devices of a mesh, which need not exist, as it is on these devices when it
runs. Compile it with `.compile()`, and see `flair_jax.aot.figures` for what it asks of a chip.
"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax.sharding import Mesh, Sharding

from flair_jax import config as configuration
from flair_jax.data import metadata
from flair_jax.evaluation.evaluate import make_eval_step
from flair_jax.evaluation.predict import make_predict_step
from flair_jax.inference.tile_predictor import tile_programs
from flair_jax.models.functional import Arrays, abstract_model, split_model
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime.sharding import batch_sharding, replicated
from flair_jax.training.optimizer import make_optimizer
from flair_jax.training.state import create_train_state
from flair_jax.training.step import make_train_step, set_training_options


def lower_train_step(
    config: ml_collections.ConfigDict, patch_size: int, mesh: Mesh
) -> jax.stages.Lowered:
    """The train step of a configuration.

    Args:
        config: see `config.default`; its `batch_size` is the global one, or 0.
        patch_size: side of the square patches in pixels.
        mesh: over the devices to compile for.
    """
    spec = ModelSpec.from_config(config, (patch_size, patch_size))
    model = set_training_options(spec.abstract_model(), config, mesh)
    graphdef, params, batch_stats = split_model(model)
    optimizer = make_optimizer(config, num_steps=config.num_epochs)  # any number: not run
    ema = config.ema_decay > 0
    state = jax.eval_shape(
        lambda p, s: create_train_state(p, s, optimizer, ema=ema), params, batch_stats
    )
    size = configuration.batch_size(config, mesh.size)
    batch = _batch(spec, size, patch_size, "mask", "stop")
    step = make_train_step(graphdef, spec, config, optimizer, mesh)
    return step.lower(_on(replicated(mesh), state), _on(batch_sharding(mesh), batch))


def lower_eval_step(
    config: ml_collections.ConfigDict, patch_size: int, mesh: Mesh
) -> jax.stages.Lowered:
    """The evaluation step of a configuration; arguments as of `lower_train_step`."""
    spec, graphdef, arrays = _model(config, patch_size, mesh)
    size = configuration.eval_batch_size(config, mesh.size)
    batch = _batch(spec, size, patch_size, "mask", "stop", "valid")
    step = make_eval_step(graphdef, spec, config.loss_normalization, mesh)
    return step.lower(*arrays, _on(batch_sharding(mesh), batch))


def lower_predict_step(
    config: ml_collections.ConfigDict, patch_size: int, mesh: Mesh
) -> jax.stages.Lowered:
    """The prediction step of a configuration; arguments as of `lower_train_step`."""
    spec, graphdef, arrays = _model(config, patch_size, mesh)
    batch = _batch(spec, configuration.eval_batch_size(config, mesh.size), patch_size)
    return make_predict_step(graphdef, spec, mesh).lower(*arrays, _on(batch_sharding(mesh), batch))


def lower_tiles(
    config: ml_collections.ConfigDict,
    tile: int,
    mesh: Mesh,
    *,
    batch_size: int,
    views: int = 1,
    probabilities: bool = False,
    confidence: bool = False,
) -> jax.stages.Lowered:
    """The program of a batch of tiles in the detection of rasters.

    Args:
        config: of the model, which takes no metadata.
        tile: side of the tiles in pixels.
        mesh: over the devices to compile for.
        batch_size: tiles of a batch, over all devices.
        views: 1, or 8: one of the views of an average over the symmetries of the square.
        probabilities, confidence: what is wanted beside the classes.
    """
    spec, _, arrays = _model(config, tile, mesh)
    programs = tile_programs(spec, mesh, views, probabilities, confidence)
    image = _on(batch_sharding(mesh), _batch(spec, batch_size, tile)["image"])
    if views == 1:
        return programs.plain.lower(*arrays, image)
    shape = *image.shape[:3], len(spec.nomenclature)
    total = _on(batch_sharding(mesh), jax.ShapeDtypeStruct(shape, jnp.int32))
    view = _on(replicated(mesh), jax.ShapeDtypeStruct((), jnp.int32))
    return programs.add_view.lower(*arrays, image, view, total)


def _model(
    config: ml_collections.ConfigDict, size: int, mesh: Mesh
) -> tuple[ModelSpec, nnx.GraphDef, tuple[Arrays, Arrays]]:
    """Spec, structure, and the shapes of parameters and running statistics."""
    spec = ModelSpec.from_config(config, (size, size))
    graphdef, *arrays = abstract_model(spec)
    params, batch_stats = _on(replicated(mesh), arrays)
    return spec, graphdef, (params, batch_stats)


def _batch(
    spec: ModelSpec, batch_size: int, size: int, *names: str
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch: "image", "metadata" if the model takes it, and what is named."""
    shapes = {
        "image": ((size, size, len(spec.bands)), jnp.uint8),
        "mask": ((size, size), jnp.uint8),
        "valid": ((), jnp.bool_),
        "stop": ((), jnp.bool_),
    }
    names = "image", *names
    if spec.takes_metadata:
        shapes["metadata"] = (metadata.SIZES[spec.metadata_encoding],), jnp.float32
        names = *names, "metadata"
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
        for name, (shape, dtype) in shapes.items()
        if name in names
    }


def _on(sharding: Sharding, tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
