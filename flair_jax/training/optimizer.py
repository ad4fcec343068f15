"""The optimizer (Optax), and the learning rate in its state."""

from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
import optax


def make_optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Stochastic gradient descent, with gradients clipped first if `config.clip_norm` is set.

    The learning rate is in the optimizer's state and nowhere else: it is data, not code, so that
    the plateau schedule changes it without recompiling.
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()

    def clipped_sgd(learning_rate: float) -> optax.GradientTransformation:
        return optax.chain(clip, optax.sgd(learning_rate))

    inject = optax.inject_hyperparams(clipped_sgd, hyperparam_dtype=jnp.float32)
    return inject(learning_rate=config.learning_rate)


def learning_rate(opt_state: Any) -> float:
    """The rate that the next step will use: the shortest decimal of that float32."""
    return float(str(np.float32(opt_state.hyperparams["learning_rate"])))


def with_learning_rate(opt_state: Any, rate: float) -> Any:
    """The same optimizer state with another rate, with the sharding of the old one."""
    old = opt_state.hyperparams["learning_rate"]
    return opt_state._replace(
        hyperparams={**opt_state.hyperparams, "learning_rate": jnp.full_like(old, rate)}
    )
