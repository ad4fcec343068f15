import dataclasses

import pytest

from flair_jax import config as configuration
from flair_jax.data.nomenclature import FULL
from flair_jax.errors import UserError
from flair_jax.models.spec import ModelCard


@pytest.fixture
def card():
    config = configuration.default()
    config.metadata.use = True
    return ModelCard.from_config(config, (512, 512))


def test_round_trip(card, tmp_path):
    card.save(tmp_path)
    assert ModelCard.load(tmp_path) == card
    assert card.takes_metadata


def test_model_of_a_card(card):
    model = card.abstract_model()
    assert (model.in_channels, model.num_classes, model.metadata_features) == (5, 13, 45)


def test_no_card(tmp_path):
    with pytest.raises(UserError, match=r"there is no model.json in .* not a checkpoint of ours"):
        ModelCard.load(tmp_path)


def test_damaged_card(tmp_path):
    (tmp_path / "model.json").write_text('{"bands": ["red"]}')
    with pytest.raises(UserError, match=r"model.json is not a model card: KeyError\('nomencl"):
        ModelCard.load(tmp_path)


def test_other_models_are_told_apart(card):
    card.check_same_model(card, "here")
    other = dataclasses.replace(card, nomenclature=FULL, metadata_encoding="", metadata_fusion="")
    with pytest.raises(UserError) as caught:
        card.check_same_model(other, "runs/old")
    message = str(caught.value)
    assert "the checkpoint in runs/old is of another model" in message
    assert "classes: 19 (full) in the checkpoint, 13 (baseline) asked for" in message
    assert "metadata encoding" in message
