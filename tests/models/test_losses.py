import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flair_jax.models.losses import cross_entropy, cross_entropy_sums
from flair_jax.models.ops import cpu, plain, tpu

LOGITS = jnp.log(jnp.asarray([[[[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]]]]))  # (1, 1, 2, 3)
WEIGHTS = jnp.asarray([2.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("labels", "pixels", "weights"),
    [
        ([0, 1], -(2 * np.log(0.5) + np.log(0.6)) / 2, -(2 * np.log(0.5) + np.log(0.6)) / 3),
        ([0, 2], -2 * np.log(0.5) / 2, -np.log(0.5)),  # weight 0 counts as a pixel only
        ([255, 1], -np.log(0.6), -np.log(0.6)),  # no class: counts nowhere
    ],
)
def test_both_normalisations(labels, pixels, weights):
    labels = jnp.asarray(labels, jnp.uint8).reshape(1, 1, 2)
    assert float(cross_entropy(LOGITS, labels, WEIGHTS, "pixels")) == pytest.approx(pixels)
    assert float(cross_entropy(LOGITS, labels, WEIGHTS, "weights")) == pytest.approx(weights)


def test_sums_are_kept_by_sample():
    logits = jnp.concatenate([LOGITS, LOGITS])
    labels = jnp.asarray([[[0, 1]], [[2, 255]]], jnp.uint8)
    total, count = cross_entropy_sums(logits, labels, WEIGHTS, "pixels")
    assert np.asarray(count).tolist() == [2, 1]
    assert np.asarray(total) == pytest.approx([-(2 * np.log(0.5) + np.log(0.6)), 0])


@pytest.mark.parametrize("normalization", ["pixels", "weights"])
@pytest.mark.parametrize("ops", [plain, cpu, tpu], ids=["plain", "cpu", "tpu"])
def test_the_gradient_is_the_chain_rules(normalization, ops):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(0, 3, (2, 4, 16, 3)), jnp.float32)
    labels = jnp.asarray(rng.choice([0, 1, 2, 255], (2, 4, 16)), jnp.uint8)

    def by_chain_rule(logits):
        one_hot = labels[..., None] == jnp.arange(3)
        weighted = jnp.where(one_hot, WEIGHTS, 0)
        count = jnp.sum(one_hot if normalization == "pixels" else weighted)
        return -jnp.sum(weighted * jax.nn.log_softmax(logits)) / count

    def loss_of(logits):
        return cross_entropy(ops.enter(logits), labels, WEIGHTS, normalization, ops)

    expected_loss, expected = jax.value_and_grad(by_chain_rule)(logits)
    loss, gradient = jax.jit(jax.value_and_grad(loss_of))(logits)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-6)
    np.testing.assert_allclose(gradient, expected, atol=1e-8)


def test_unknown_normalisation():
    with pytest.raises(ValueError, match="'mean' is none of"):
        cross_entropy(LOGITS, jnp.zeros((1, 1, 2), jnp.uint8), WEIGHTS, "mean")
