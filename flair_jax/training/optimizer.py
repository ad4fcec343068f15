"""The optimizers and learning-rate schedules (Optax), and the learning rate in their state."""

from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from flair_jax.config import follows_validation


def make_optimizer(
    config: ml_collections.ConfigDict, num_steps: int
) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer`, with gradients clipped first if asked for.

    The learning rate is in the optimizer's state: it is data, not code, so that the plateau
    schedule changes it without recompiling. The other schedules multiply it by a factor.

    Args:
        config: see `config.default`.
        num_steps: of the whole training.
    """

    def transformation(learning_rate: float) -> optax.GradientTransformation:
        parts = [
            optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
        ]
        if config.optimizer == "adamw":
            parts.append(optax.adamw(learning_rate, weight_decay=config.weight_decay))
        else:
            if config.weight_decay:
                parts.append(optax.add_decayed_weights(config.weight_decay))
            parts.append(optax.sgd(learning_rate))
        if not follows_validation(config):
            parts.append(optax.scale_by_schedule(rate_factor(config, num_steps)))
        return optax.chain(*parts)

    inject = optax.inject_hyperparams(transformation, hyperparam_dtype=jnp.float32)
    return inject(learning_rate=config.learning_rate)


def rate_factor(config: ml_collections.ConfigDict, num_steps: int) -> optax.Schedule:
    """What the learning rate in the state is multiplied by: number of steps taken -> factor.

    - "plateau": 1;
    - "one_cycle": from 1/1000 up to 1 over the first `config.warmup` of the steps, then down to
      1e-7, both along a cosine; FLAIR-HUB's factors;
    - "warmup_cosine": from 0 up to 1 linearly, then down to 0 along a cosine.
    """
    warmup = int(config.warmup * num_steps)
    if config.schedule == "one_cycle" and not warmup:  # Optax 0.2.6 would divide by 0
        return optax.cosine_decay_schedule(1.0, num_steps, alpha=1e-7)
    if config.schedule == "one_cycle":
        return optax.cosine_onecycle_schedule(
            num_steps, 1.0, pct_start=config.warmup, div_factor=1e3, final_div_factor=1e4
        )
    if config.schedule == "warmup_cosine":
        return optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, num_steps)
    return optax.constant_schedule(1.0)


def learning_rate(opt_state: Any) -> float:
    """The learning rate in the state: the shortest decimal of that float32."""
    return float(str(np.float32(opt_state.hyperparams["learning_rate"])))


def with_learning_rate(opt_state: Any, rate: float) -> Any:
    """The same optimizer state with another rate, with the sharding of the old one."""
    old = opt_state.hyperparams["learning_rate"]
    return opt_state._replace(
        hyperparams={**opt_state.hyperparams, "learning_rate": jnp.full_like(old, rate)}
    )
