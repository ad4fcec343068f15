import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flair_jax import config as configuration
from flair_jax.data.nomenclature import BASELINE, FULL, LandCover, Nomenclature
from flair_jax.models import preprocess
from flair_jax.models.spec import ModelSpec


@pytest.mark.parametrize("nomenclature", [BASELINE, FULL])
def test_labels_of_every_mask_value(nomenclature):
    mask = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    labels = jax.jit(preprocess.to_labels, static_argnums=1)(mask, nomenclature)
    np.testing.assert_array_equal(np.asarray(labels).ravel(), nomenclature.labels)


@given(st.dictionaries(st.integers(0, 255), st.integers(0, 4), min_size=1, max_size=8))
@settings(max_examples=25, deadline=None)
def test_labels_of_any_values(label_of_value):
    classes = tuple(
        LandCover(str(label), "#000000", 1.0, values)
        for label in range(5)
        if (values := tuple(v for v, of in label_of_value.items() if of == label))
    )
    nomenclature = Nomenclature("mine", classes)
    mask = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    labels = preprocess.to_labels(mask, nomenclature)
    np.testing.assert_array_equal(np.asarray(labels).ravel(), nomenclature.labels)


def test_normalisation():
    spec = ModelSpec.from_config(configuration.default(), (64, 64))
    image = np.array([0, 51, 102, 204, 255], np.uint8).reshape(1, 1, 1, 5)
    scaled = preprocess.normalise(image, spec)
    assert np.asarray(scaled).ravel() == pytest.approx([0, 0.2, 0.4, 0.8, 1])
    custom = preprocess.normalise(image, dataclasses.replace(spec, normalization="custom"))
    expected = [-105.08 / 52.17, (51 - 110.87) / 45.38, (102 - 101.82) / 44, 97.62 / 39.69]
    assert np.asarray(custom).ravel()[:4] == pytest.approx(expected, rel=1e-5)
    half = preprocess.normalise(image, dataclasses.replace(spec, dtype="bfloat16"))
    assert half.dtype == jnp.bfloat16
