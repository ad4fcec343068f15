"""A network with random weights, and the splits of the synthetic data set."""

import pytest

from flair_jax import config as configuration
from flair_jax.data import dataset
from flair_jax.inference.loading import save_model
from flair_jax.models.functional import split_model
from flair_jax.models.spec import ModelSpec


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A checkpoint of a model with random weights."""
    folder = tmp_path_factory.mktemp("random")
    spec = ModelSpec.from_config(configuration.default(), (64, 64))
    _, params, batch_stats = split_model(spec.build_model())
    save_model(folder / "checkpoints", spec, params, batch_stats)
    return folder


@pytest.fixture(scope="module")
def splits(data_dir):
    """Opens a split by its name."""
    directory = dataset.dataset_directory(str(data_dir), "published")
    return lambda name: dataset.open_split(directory, name)
