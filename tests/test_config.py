import runpy
from pathlib import Path

import ml_collections
import pytest

from flair_jax import config as configuration
from flair_jax.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture
def config():
    return configuration.default()


@pytest.mark.parametrize("name", ["baseline", "metadata_augmentation", "toy"])
def test_shipped_configurations_are_valid_and_begin_with_their_command(name):
    path = CONFIGS / f"{name}.py"
    configuration.validate(runpy.run_path(str(path))["get_config"]())
    assert f"python -m flair_jax.main --config=configs/{name}.py" in path.read_text()[:300]


def test_baseline_is_the_published_recipe():
    config = runpy.run_path(str(CONFIGS / "baseline.py"))["get_config"]()
    assert (config.batch_size, config.learning_rate, config.num_epochs) == (10, 0.02, 200)
    assert (config.loss_normalization, config.normalization) == ("pixels", "scaling")
    assert (config.seed, config.early_stop_patience, config.augment) == (2022, 30, False)
    plateau = (config.plateau.factor, config.plateau.patience, config.plateau.cooldown)
    assert (*plateau, config.plateau.threshold, config.plateau.min_lr) == (0.5, 10, 4, 1e-4, 1e-7)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("nomenclature", "cosia", "unknown nomenclature 'cosia'"),
        ("normalization", "zscore", "config.normalization is 'zscore'; expected 'scaling' or"),
        ("loss_normalization", "mean", "expected 'pixels' or 'weights'"),
        ("dtype", "float16", "expected 'float32' or 'bfloat16'"),
        ("batch_size", 0, "config.batch_size is 0; expected at least 1"),
        ("crop_size", 100, "multiples of 32, not 100 x 100"),
        ("learning_rate", 0.0, "config.learning_rate is 0.0; expected more than 0"),
        ("plateau.factor", 1.0, "config.plateau.factor is 1.0"),
        ("augment_probability.rotation", 1.5, "expected a probability, 0 to 1"),
        ("metadata.encoding", "learned", "config.metadata.encoding is 'learned'"),
        (
            "bands",
            ("red", "swir"),
            "are not a choice from red, green, blue, nir, height: 'swir' is",
        ),
        ("bands", ("red", "red"), "'red' is unknown or given twice"),
        ("normalization_means", (1.0, 2.0, 3.0), "expected 5 numbers, one a band"),
    ],
)
def test_wrong_values_are_named(config, key, value, expected):
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=expected.replace("(", r"\(")):
        configuration.validate(config)


def test_misspelt_key_in_a_file(config):
    with config.unlocked():
        config.learning_rates = 0.1
    with pytest.raises(UserError, match=r"config.learning_rates in the .*; did you mean config.le"):
        configuration.validate(config)


def test_row_fusion_refuses_crops(config):
    config.metadata.use, config.crop_size = True, 256
    with pytest.raises(UserError, match=r"row fusion is defined for 512 x 512"):
        configuration.validate(config)
    config.metadata.fusion = "channels"
    configuration.validate(config)


def test_saved_configuration_comes_back(config, tmp_path):
    config.learning_rate, config.metadata.use = 0.5, True
    config.nomenclature = "mine"
    config.classes = (("a", "#000000", 1.0, (1, 2)), ("b", "#ffffff", 0.0, (3,)))
    configuration.save(config, tmp_path)
    loaded = configuration.load(tmp_path)
    assert isinstance(loaded, ml_collections.ConfigDict)
    assert loaded.to_dict() == config.to_dict()


def test_a_run_goes_on_with_its_own_settings_only(config, tmp_path):
    configuration.save(config, tmp_path)
    config.num_epochs = 300
    configuration.check_unchanged(config, tmp_path)
    config.seed = 1
    with pytest.raises(UserError, match=r"config.seed: 2022 then, 1 now"):
        configuration.check_unchanged(config, tmp_path)


def test_folder_that_is_no_workdir(tmp_path):
    with pytest.raises(UserError, match="is not the workdir of a run"):
        configuration.load(tmp_path)
