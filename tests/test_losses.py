import jax.numpy as jnp
import numpy as np
import pytest

from flair_jax.losses import cross_entropy, cross_entropy_sums

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


def test_unknown_normalisation():
    with pytest.raises(ValueError, match="'mean' is none of"):
        cross_entropy(LOGITS, jnp.zeros((1, 1, 2), jnp.uint8), WEIGHTS, "mean")
