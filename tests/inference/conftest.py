"""Fixtures: a network with random weights, and one detection with it."""

import jax.numpy as jnp
import numpy as np
import pytest
from detecting import detect, patches, random_spec, write

import flair_jax
from flair_jax.inference.loading import save_model
from flair_jax.models.functional import split_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights with perturbed statistics: many classes occur, with moderate confidence."""
    spec = random_spec()
    _, params, batch_stats = split_model(spec.build_model(0))
    rng = np.random.default_rng(0)
    for name, value in batch_stats.items():
        perturbed = (
            value + rng.normal(0, 0.3, value.shape)
            if name.endswith("mean")
            else value * rng.uniform(0.3, 1, value.shape)
        )
        batch_stats[name] = jnp.asarray(perturbed, jnp.float32)
    params["segmentation_head.0.kernel"] = params["segmentation_head.0.kernel"] * 0.001
    folder = tmp_path_factory.mktemp("random") / "checkpoints"
    save_model(folder, spec, params, batch_stats)
    return folder


@pytest.fixture(scope="module")
def model(checkpoint):
    return flair_jax.load_model(checkpoint)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """100 x 60 pixels of noise with NoData holes: path, pixels, validity."""
    pixels = patches(60, 100)
    valid = np.ones((60, 100), bool)
    valid[20:35, 40:70] = False
    valid[:, 98:] = False
    pixels[:, ~valid] = 0
    path = write(tmp_path_factory.mktemp("scene") / "scene.tif", pixels, nodata=0)
    return path, pixels, valid


@pytest.fixture(scope="module")
def detected(model, scene, tmp_path_factory):
    output = tmp_path_factory.mktemp("detected") / "map.tif"
    written = detect(model, scene[0], output, probabilities=True, confidence=True)
    return output, written
