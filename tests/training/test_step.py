import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_arrays import (
    channels_first,
    golden,
    golden_model,
    images,
    integers,
    uniform,
)
from scipy.ndimage import uniform_filter

from flair_jax import config as configuration
from flair_jax.data.nomenclature import BASELINE
from flair_jax.models.functional import merge_model, model_batch_stats, split_model
from flair_jax.models.losses import cross_entropy
from flair_jax.models.ops import for_platform
from flair_jax.training.optimizer import make_optimizer
from flair_jax.training.state import create_train_state
from flair_jax.weights.torch_weights import torch_name

WEIGHTS = jnp.asarray(BASELINE.weights)


def loss_fn(graphdef, ops):
    def loss(params, batch_stats, x, labels):
        model = merge_model(graphdef, params, batch_stats, ops)
        logits = model(x, train=True)
        by_weights = cross_entropy(logits, labels, WEIGHTS, "weights", ops)
        by_pixels = cross_entropy(logits, labels, WEIGHTS, "pixels", ops)
        return by_pixels, (ops.leave(logits), model_batch_stats(model), by_weights)

    return loss


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_one_step_is_the_references(platform):
    """In the form of every platform, all of them computed here on the CPU."""
    graphdef, params, batch_stats = split_model(golden_model())
    expected = golden("unet_train_step")
    x, labels = images("c", (2, 5, 64, 64)), integers("c_labels", (2, 64, 64), 13)
    step = jax.jit(jax.value_and_grad(loss_fn(graphdef, for_platform(platform)), has_aux=True))
    (loss, (logits, new_stats, by_weights)), gradients = step(params, batch_stats, x, labels)

    assert float(loss) == pytest.approx(float(expected["loss_pixels"]), rel=1e-5)
    assert float(by_weights) == pytest.approx(float(expected["loss_weights"]), rel=1e-5)
    difference = np.abs(channels_first(logits) - expected["logits"]).max()
    assert difference <= 1e-4 * np.abs(expected["logits"]).max()
    norms = {torch_name(k): float(jnp.linalg.norm(v)) for k, v in gradients.items()}
    assert len(norms) == 140
    for key, norm in norms.items():
        assert norm == pytest.approx(float(expected[f"grad_norm/{key}"]), rel=3e-3), key
    running = {torch_name(k): np.asarray(v) for k, v in new_stats.items()}
    compared = [key for key in expected if key.startswith("stat/")]
    assert compared
    for key in compared:
        value = expected[key]
        np.testing.assert_allclose(
            running[key.removeprefix("stat/")], value, rtol=0, atol=1e-4 * np.abs(value).max()
        )


def test_ten_steps_are_the_references():
    graphdef, params, batch_stats = split_model(golden_model())
    expected = golden("sgd_run")
    ops = for_platform("cpu")
    loss_of = loss_fn(graphdef, ops)
    optimizer = make_optimizer(configuration.default(), num_steps=1)

    @jax.jit
    def step(state, x, labels):
        (loss, (_, batch_stats, _)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, state.batch_stats, x, labels
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        return type(state)(state.step + 1, params, batch_stats, opt_state), loss

    state, losses = create_train_state(params, batch_stats, optimizer), []
    for i in range(10):
        raw = uniform(f"run{i}", (4, 5, 128, 128))
        means = np.stack([uniform_filter(x[0], 9, mode="constant") for x in raw])
        labels = np.floor(means * 13).astype(np.uint8)
        state, loss = step(state, jnp.asarray(raw.transpose(0, 2, 3, 1)), labels)
        losses.append(float(loss))
    assert losses == pytest.approx(expected["losses"].tolist(), rel=2e-3)

    probe = images("probe", (1, 5, 128, 128))
    infer = jax.jit(lambda p, s, x: merge_model(graphdef, p, s, ops)(x))
    logits = channels_first(infer(state.params, state.batch_stats, probe))[:, :, ::4, ::4]
    same = logits.argmax(1) == expected["probe_logits_every_4th"].argmax(1)
    assert same.mean() >= 0.94
