"""One step of training: the jitted function from a state and a batch to the next state."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flair_jax.models.functional import Arrays, merge_model, model_batch_stats
from flair_jax.models.losses import cross_entropy_sums
from flair_jax.models.ops import for_mesh
from flair_jax.models.preprocess import normalise, to_labels
from flair_jax.models.spec import ModelSpec
from flair_jax.models.unet import UNet
from flair_jax.runtime.sharding import DATA_AXIS, batch_sharding, replicated
from flair_jax.training.augmentation import (
    augment,
    augment_radiometry,
    radiometric_bands,
    random_crop,
)
from flair_jax.training.state import TrainState

Batch = dict[str, jax.Array]
TrainStep = Any  # what jax.jit returns: (TrainState, Batch) -> (TrainState, {str: jax.Array})
# Sets the keys of the steps apart from those of the initial weights, which Flax counts from 0.
STEPS = 2**32 - 1


def set_training_options(model: UNet, config: ml_collections.ConfigDict, mesh: Mesh) -> UNet:
    """Sets a model's options from a configuration and a mesh, and returns the model."""
    model.set_attributes(groups=batch_norm_groups(config, mesh), remat=config.remat)
    return model


def batch_norm_groups(config: ml_collections.ConfigDict, mesh: Mesh) -> int:
    """How many parts of a batch have batch statistics of their own."""
    return mesh.size if config.batch_norm == "per_device" else 1


def step_key(seed: int, step: jax.Array | int) -> jax.Array:
    """The random key of a step, from which crops, augmentation and dropout are drawn."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), STEPS), step)


def make_train_step(
    graphdef: nnx.GraphDef,
    spec: ModelSpec,
    config: ml_collections.ConfigDict,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> TrainStep:
    """A jitted function: state and global batch of uint8 -> next state (in place) and facts.

    The facts are scalars:

    - `loss`, float32;
    - `grad_norm`, float32: the global norm of the gradients, before they are clipped;
    - `finite`, bool: whether loss, update, batch statistics and optimizer's state are finite;
    - `stop`, bool: whether any process has put a True into its rows of the batch's `stop`, (N,).
    """
    weights, ops = spec.nomenclature.weights, for_mesh(mesh)
    probability, limits = config.augment_probability.to_dict(), config.radiometry.to_dict()
    radiometric = radiometric_bands(spec.bands, config.radiometry.keep)
    changed = [name in radiometric for name in spec.bands]

    def loss_sum(
        params: Arrays, batch_stats: Arrays, batch: Batch, dropout_key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, Arrays]]:
        model = merge_model(graphdef, params, batch_stats, ops)
        image = normalise(batch["image"], spec)
        metadata = batch["metadata"] if spec.takes_metadata else None
        logits = model(image, metadata, train=True, dropout_key=dropout_key)
        labels = to_labels(batch["mask"], spec.nomenclature)
        total, count = cross_entropy_sums(
            logits, labels, jnp.asarray(weights), config.loss_normalization, ops
        )
        return jnp.sum(total), (jnp.sum(count), model_batch_stats(model))

    def gradients_of(
        params: Arrays, batch_stats: Arrays, batch: Batch, dropout_key: jax.Array
    ) -> tuple[jax.Array, jax.Array, Arrays, Arrays]:
        """Sums of the loss and of what it is divided by, the former's gradients, statistics."""
        grad = jax.value_and_grad(loss_sum, has_aux=True)
        (total, (count, batch_stats)), gradients = grad(params, batch_stats, batch, dropout_key)
        return total, count, gradients, batch_stats

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        keys = jax.random.split(step_key(config.seed, state.step), 4)
        crop_key, augment_key, dropout_key, radiometry_key = keys
        stop = jnp.any(batch["stop"])
        batch = {k: batch[k] for k in ("image", "mask", "metadata") if k in batch}
        if config.crop_size:
            cropped = random_crop(crop_key, batch["image"], batch["mask"], config.crop_size)
            batch["image"], batch["mask"] = cropped
        if config.augment:
            augmented = augment(augment_key, batch["image"], batch["mask"], probability)
            batch["image"], batch["mask"] = augmented
        if config.augment_radiometry:
            batch["image"] = augment_radiometry(radiometry_key, batch["image"], changed, limits)
        if config.accumulate_steps == 1:
            total, count, gradients, batch_stats = gradients_of(
                state.params, state.batch_stats, batch, dropout_key
            )
        else:
            total, count, gradients, batch_stats = accumulated(state, batch, dropout_key)
        count = jnp.maximum(count, 1e-12)
        loss = total / count
        gradients = jax.tree.map(lambda g: g / count, gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norms = optax.tree.norm(updates) + optax.tree.norm(batch_stats)
        if moments := [x for x in jax.tree.leaves(opt_state) if x.ndim]:
            norms += optax.tree.norm(moments)
        facts = {
            "loss": loss,
            "grad_norm": optax.tree.norm(gradients),
            "finite": jnp.isfinite(loss + norms),
            "stop": stop,
        }
        ema = moving_average(state, {**params, **batch_stats})
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema), facts

    def accumulated(
        state: TrainState, batch: Batch, dropout_key: jax.Array
    ) -> tuple[jax.Array, jax.Array, Arrays, Arrays]:
        """As `gradients_of`, a part of the batch after the other.

        Part i has every accumulate_steps-th sample from i on: the same samples on any number of
        devices, and every device has its share of each part.
        """
        parts = config.accumulate_steps
        sharding = NamedSharding(mesh, PartitionSpec(None, DATA_AXIS))

        def cut(x: jax.Array) -> jax.Array:
            x = jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)
            return jax.lax.with_sharding_constraint(x, sharding)

        def add(sums: tuple, part: tuple[jax.Array, Batch]) -> tuple[tuple, None]:
            total, count, gradients, batch_stats = sums
            number, samples = part
            key = jax.random.fold_in(dropout_key, number)
            more = gradients_of(state.params, batch_stats, samples, key)
            gradients = jax.tree.map(jnp.add, gradients, more[2])
            return (total + more[0], count + more[1], gradients, more[3]), None

        zero = jnp.zeros((), jnp.float32)
        start = zero, zero, jax.tree.map(jnp.zeros_like, state.params), state.batch_stats
        # On a CPU, XLA's convolutions within a loop are many times slower than outside of one.
        unroll = mesh.devices.flat[0].platform == "cpu"
        numbered = jnp.arange(parts), jax.tree.map(cut, batch)
        return jax.lax.scan(add, start, numbered, unroll=unroll)[0]

    def moving_average(state: TrainState, new: Arrays) -> Arrays:
        """The EMA after a step; the decay is lower in the first steps."""
        if not config.ema_decay:
            return {}
        decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))
        return {k: decay * v + (1 - decay) * new[k] for k, v in state.ema.items()}

    return jax.jit(
        train_step,
        in_shardings=(replicated(mesh), batch_sharding(mesh)),
        out_shardings=(replicated(mesh), replicated(mesh)),
        donate_argnums=0,
    )
