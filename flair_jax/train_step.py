"""One step of training: the jitted function from a state and a batch to the next state."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh

from flair_jax.losses import cross_entropy
from flair_jax.model_card import ModelCard
from flair_jax.preprocess import augment, normalise, random_crop, to_labels
from flair_jax.sharding import batch_sharding, replicated
from flair_jax.train_state import Arrays, TrainState, merge_model, model_stats

TrainStep = Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, jax.Array]]


def make_train_step(
    graphdef: nnx.GraphDef,
    card: ModelCard,
    config: ml_collections.ConfigDict,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> TrainStep:
    """A jitted function: state and global batch of uint8 -> next state (in place) and loss."""
    weights = card.nomenclature.weights
    probability = config.augment_probability.to_dict()

    def loss_fn(
        params: Arrays, stats: Arrays, batch: dict[str, jax.Array], dropout_key: jax.Array
    ) -> tuple[jax.Array, Arrays]:
        model = merge_model(graphdef, params, stats)
        image = normalise(batch["image"], card)
        metadata = batch["metadata"] if card.takes_metadata else None
        logits = model(image, metadata, train=True, dropout_key=dropout_key)
        labels = to_labels(batch["mask"], card.nomenclature)
        loss = cross_entropy(logits, labels, jnp.asarray(weights), config.loss_normalization)
        return loss, model_stats(model)

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, jax.Array]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        crop_key, augment_key, dropout_key = jax.random.split(key, 3)
        image, mask = batch["image"], batch["mask"]
        if config.crop_size:
            image, mask = random_crop(crop_key, image, mask, config.crop_size)
        if config.augment:
            image, mask = augment(augment_key, image, mask, probability)
        batch = {**batch, "image": image, "mask": mask}
        (loss, stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, state.stats, batch, dropout_key
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, stats, opt_state), loss

    return jax.jit(
        train_step,
        in_shardings=(replicated(mesh), batch_sharding(mesh)),
        out_shardings=(replicated(mesh), replicated(mesh)),
        donate_argnums=0,
    )
