import json
import re
import runpy
from pathlib import Path

import ml_collections
import pytest

from flair_jax import config as configuration
from flair_jax.config import BATCH_PER_DEVICE
from flair_jax.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture
def config():
    return configuration.default()


@pytest.mark.parametrize("name", ["baseline", "hub", "metadata_augmentation", "toy"])
def test_shipped_configurations_are_valid_and_begin_with_their_command(name):
    path = CONFIGS / f"{name}.py"
    configuration.validate(runpy.run_path(str(path))["get_config"]())
    assert f"flair-jax train --config={name}" in path.read_text()[:300]


def test_baseline_is_the_published_recipe():
    config = runpy.run_path(str(CONFIGS / "baseline.py"))["get_config"]()
    assert (config.batch_size, BATCH_PER_DEVICE) == (0, 10)
    assert (config.learning_rate, config.num_epochs) == (0.02, 200)
    assert (config.loss_normalization, config.normalization) == ("pixels", "scaling")
    assert (config.seed, config.early_stop_patience, config.augment) == (2022, 30, False)
    plateau = (config.plateau.factor, config.plateau.patience, config.plateau.cooldown)
    assert (*plateau, config.plateau.threshold, config.plateau.min_lr) == (0.5, 10, 4, 1e-4, 1e-7)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("nomenclature", "flair", "unknown nomenclature 'flair'"),
        ("normalization", "zscore", "config.normalization is 'zscore'; expected 'scaling' or"),
        ("loss_normalization", "mean", "expected 'pixels' or 'weights'"),
        ("dtype", "float16", "expected 'float32' or 'bfloat16'"),
        ("batch_size", -1, "config.batch_size is -1; expected 0 (10 for each device"),
        ("crop_size", 100, "multiples of 32, not 100 x 100"),
        ("learning_rate", 0.0, "config.learning_rate is 0.0; expected more than 0"),
        ("plateau.factor", 1.0, "config.plateau.factor is 1.0"),
        ("augment_probability.rotation", 1.5, "expected a probability, 0 to 1"),
        ("metadata.encoding", "learned", "config.metadata.encoding is 'learned'"),
        ("bands", ("red", "red"), "config.bands is ('red', 'red'); expected names of bands, each"),
        ("normalization_means", (1.0, 2.0, 3.0, 4.0, "5"), "expected numbers, one a band"),
        ("normalization_stds", (1.0, 2.0, 3.0, 4.0, 0.0), "expected numbers, one a band, above 0"),
        ("bands", ("",), "config.bands is ('',); expected names of bands"),
        ("profile", (1,), "config.profile is (1,); expected (first step, last step)"),
        ("profile", (3, 2), "config.profile is (3, 2); expected (first step, last step)"),
        ("batch_size", None, "config.batch_size is None; expected 0 (10 for each device"),
        ("batch_size", True, "config.batch_size is True; expected 0 (10 for each device"),
        ("augment", None, "config.augment is None; expected True or False"),
        ("data_dir", None, "config.data_dir is None; expected a string"),
        ("learning_rate", float("nan"), "config.learning_rate is nan; expected more than 0"),
        ("plateau.threshold", float("inf"), "config.plateau.threshold is inf; expected at least 0"),
        ("disabled_classes", (1,), "config.disabled_classes is (1,); expected a tuple of strings"),
        ("classes", (1, 2), "config.classes is (1, 2); expected ((name, '#rrggbb', weight, (mask"),
        (
            "classes",
            (("a", "#000000", 1.0, 1),),
            "expected ((name, '#rrggbb', weight, (mask values",
        ),
        ("max_to_keep", 1, "config.max_to_keep is 1; expected at least 2"),
        ("synthetic.patch_size", 100, "expected a multiple of 32, at least 64"),
    ],
)
def test_wrong_values_are_named(config, key, value, expected):
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=re.escape(expected)):
        configuration.validate(config)


def test_misspelt_key_in_a_file(config):
    with config.unlocked():
        config.learning_rates = 0.1
    with pytest.raises(
        UserError, match=r"config.learning_rates; did you mean config.learning_rate\?"
    ):
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


def test_a_run_resumes_with_its_own_settings_only(config, tmp_path):
    configuration.save(config, tmp_path)
    config.num_epochs = 300
    configuration.check_unchanged(config, tmp_path)
    config.seed = 1
    with pytest.raises(UserError, match=r"config.seed: 2022 in the run, 1 given"):
        configuration.check_unchanged(config, tmp_path)


def test_folder_that_is_no_workdir(tmp_path):
    with pytest.raises(UserError, match="is not the workdir of a run"):
        configuration.load(tmp_path)


FILE = "from flair_jax.config import default\n\ndef get_config(size='4'):\n    config = default()\n"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("config.keep_latest = 3", "config.keep_latest in {path}, line 5 is now called config.max"),
        (
            "config.plateau.min_rate = 0.1",
            "config.plateau.min_rate in {path}, line 5 is now called config.plateau.min_lr",
        ),
        (
            "config.normalization_deviations = (1.0,)",
            "config.normalization_deviations in {path}, line 5 is now called config.n",
        ),
        (
            "config.batch_sice = 3",
            "unknown configuration key config.batch_sice in {path}, line 5; did you mean "
            "config.batch_size?",
        ),
        (
            "config.plateau.patiense = 3",
            "unknown configuration key config.patiense in {path}, line 5; did you mean "
            "config.plateau.patience?",
        ),
        ("config.batch_size = 'many'", "in {path}, line 5: TypeError: Could not override field"),
        ("config.batch_size = 1 / 0", "in {path}, line 5: ZeroDivisionError: division by zero"),
        ("config.seed = = 1", "in {path}: SyntaxError: invalid syntax"),
        ("config = None", "get_config() in {path} returns a NoneType, not a ConfigDict"),
        (
            "config.unlock(); config.seeds = 1",
            "unknown configuration key config.seeds in {path}; did you mean config.seed?",
        ),
        ("config.unlock(); del config.seed", "config.seed in {path} is missing: start from"),
    ],
)
def test_faulty_configuration_files_are_one_message(lines, expected, tmp_path):
    path = tmp_path / "a.py"
    path.write_text(f"{FILE}    {lines}\n    return config\n")
    with pytest.raises(UserError) as caught:
        configuration.read(str(path))
    assert str(caught.value).startswith(expected.format(path=path))


def test_a_file_without_get_config(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    with pytest.raises(UserError, match=r"in .*a.py: AttributeError: .*get_config"):
        configuration.read(str(tmp_path / "a.py"))


def test_a_file_with_a_dataclass(tmp_path):
    head = "from __future__ import annotations\nimport dataclasses\n"
    head += "@dataclasses.dataclass\nclass Size:\n    side: dataclasses.InitVar[int] = 4\n"
    (tmp_path / "a.py").write_text(f"{head}{FILE}    config.batch_size = 4\n    return config\n")
    assert configuration.read(str(tmp_path / "a.py")).batch_size == 4


def test_a_file_whose_get_config_takes_a_text(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(f"{FILE}    config.batch_size = int(size)\n    return config\n")
    assert configuration.read(str(path)).batch_size == 4
    assert configuration.read(f"{path}:8").batch_size == 8


def test_configurations_are_found_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert list(configuration.shipped()) == sorted(path.stem for path in CONFIGS.glob("*.py"))
    named, by_path = configuration.read("toy"), configuration.read(str(CONFIGS / "toy.py"))
    assert named.to_dict() == by_path.to_dict()
    assert named.is_locked
    (tmp_path / "toy").write_text(f"{FILE}    config.seed = 7\n    return config\n")
    assert configuration.read("toy").seed == 7  # a file of that name goes first


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ('{"keep_latest": 2}', "config.keep_latest in {path} is now called config.max_to_keep"),
        (
            '{"plateau": {"min_rate": 1e-7}}',
            "config.plateau.min_rate in {path} is now called config.plateau.min_lr",
        ),
        ('{"batch_size": -1}', "config.batch_size in {path} is -1; expected 0 (10 for each"),
        ('{"batch_size": "8"}', "{path} is not a saved configuration: "),
        ('{"batch_size": 8', "{path} is not a saved configuration: "),
        ("[]", "{path} is not a saved configuration: "),
    ],
)
def test_saved_configurations_of_another_kind(saved, expected, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(saved)
    with pytest.raises(UserError) as caught:
        configuration.load(tmp_path)
    assert str(caught.value).startswith(expected.format(path=path))


def test_keys_that_an_older_run_has_not_saved_are_the_defaults(config, tmp_path):
    saved = config.to_dict()
    del saved["ema_decay"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert configuration.load(tmp_path).to_dict() == config.to_dict()


def test_lists_and_tuples_of_classes_are_the_same_run(config, tmp_path):
    config.nomenclature = "mine"
    config.classes = (["a", "#000000", 1.0, [1, 2]], ["b", "#ffffff", 0.0, [3]])
    configuration.validate(config)
    configuration.save(config, tmp_path)
    configuration.check_unchanged(config, tmp_path)
    configuration.check_same_model(config, tmp_path)
