import dataclasses

import pytest

from flair_jax import config as configuration
from flair_jax.data.nomenclature import FULL
from flair_jax.errors import UserError
from flair_jax.models.spec import ModelSpec


@pytest.fixture
def spec():
    config = configuration.default()
    config.metadata.use = True
    return ModelSpec.from_config(config, (512, 512))


def test_round_trip(spec, tmp_path):
    spec.save(tmp_path)
    assert ModelSpec.load(tmp_path) == spec
    assert spec.takes_metadata


def test_model_of_a_card(spec):
    model = spec.abstract_model()
    assert (model.in_channels, model.num_classes, model.metadata_features) == (5, 13, 45)


def test_no_card(tmp_path):
    with pytest.raises(
        UserError, match=r"there is no model.json in .* it is not a folder of checkpoints"
    ):
        ModelSpec.load(tmp_path)


def test_damaged_card(tmp_path):
    (tmp_path / "model.json").write_text('{"bands": ["red"]}')
    with pytest.raises(UserError, match=r"model.json is not a model spec: KeyError\('nomencl"):
        ModelSpec.load(tmp_path)


def test_other_models_are_told_apart(spec):
    spec.check_same_model(spec, "here")
    other = dataclasses.replace(spec, nomenclature=FULL, metadata_encoding="", metadata_fusion="")
    with pytest.raises(UserError) as caught:
        spec.check_same_model(other, "runs/old")
    message = str(caught.value)
    assert "the checkpoint in runs/old is of a different model" in message
    assert "classes: 19 (full) in the checkpoint, 13 (baseline) in the configuration" in message
    assert "metadata encoding" in message
