"""Configurations of trained runs: what evaluate and predict may be given."""

import dataclasses

import own_images
import pytest

from flair_jax import config as configuration
from flair_jax.cli.commands import main
from flair_jax.cli.runs import _by_key
from flair_jax.cli.runs import configuration as configuration_of
from flair_jax.config_keys import KEYS
from flair_jax.errors import UserError
from flair_jax.models.spec import ModelSpec

OTHER = {
    "bands": "nir",
    "normalization": "custom",
    "normalization_means": "(1.0, 2.0, 3.0, 4.0, 5.0)",
    "normalization_stds": "(1.0, 2.0, 3.0, 4.0, 5.0)",
    "nomenclature": "full",
    "disabled_classes": "water",
    "unlisted_values": "ignore",
    "dtype": "bfloat16",
    "metadata.use": "True",
    "metadata.encoding": "corrected",
    "metadata.fusion": "channels",
}
CLASSES = [
    ("nomenclature", "mine"),
    ("classes", "(('a', '#000000', 1.0, (1,)), ('b', '#ffffff', 1.0, (2,)))"),
]


@pytest.fixture
def workdir(tmp_path):
    """The workdir of a run of the baseline, as far as its configuration and its model go."""
    config = configuration.default()
    config.data_dir = "/data/a"
    configuration.save(config, tmp_path)
    (tmp_path / "checkpoints").mkdir()
    ModelSpec.from_config(config, (64, 64)).save(tmp_path / "checkpoints")
    return tmp_path


def test_every_key_of_the_model_is_tried_here():
    of_model = {name for name, key in KEYS.items() if key.of_model}
    assert {*OTHER, "classes"} == of_model
    assert set(_by_key(ModelSpec.from_config(configuration.default(), (64, 64)))) == of_model


@pytest.mark.parametrize("key", OTHER)
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_key_that_contradicts_the_run_is_refused(workdir, key, command, capsys):
    assert main([command, f"--workdir={workdir}", f"--config.{key}={OTHER[key]}"]) == 1
    config = configuration.default()
    old = configuration.flat(config)[key]
    configuration.set_text(config, key, [OTHER[key]])
    new = configuration.flat(config)[key]
    assert capsys.readouterr().err == (
        f"error: {workdir} holds a model with other settings:\n"
        f"  config.{key}: {old!r} in the run, {new!r} given\n"
        "A trained model is evaluated with its own: leave these keys out, or give the --workdir "
        "of another run.\n"
    )


def test_a_file_that_contradicts_the_run_is_refused(workdir):
    with pytest.raises(UserError, match=r"metadata.use: False in the run, True given"):
        configuration_of("metadata_augmentation", [], str(workdir), trained=True)


def test_other_keys_may_differ_from_the_run(workdir):
    changes = [("data_dir", "/data/b"), ("eval_batch_size", "4"), ("num_workers", "2")]
    for name in (None, "baseline"):
        config, folder = configuration_of(name, changes, str(workdir), trained=True)
        assert (config.data_dir, config.eval_batch_size, config.num_workers) == ("/data/b", 4, 2)
        assert folder == workdir
    assert configuration_of(None, [], str(workdir), trained=True)[0].data_dir == "/data/a"
    config, _ = configuration_of("toy", [], str(workdir), trained=True)
    assert config.batch_size == 8
    # A training of its own kind goes by other rules: see config.check_unchanged.
    configuration_of("metadata_augmentation", [], str(workdir), trained=False)


@pytest.mark.parametrize("changes", [*([(key, OTHER[key])] for key in OTHER), CLASSES])
def test_keys_that_contradict_an_imported_model_are_refused(workdir, changes):
    (workdir / "config.json").unlink()
    key = changes[0][0]
    if key in ("metadata.encoding", "metadata.fusion"):
        spec = ModelSpec.load(workdir / "checkpoints")
        spec = dataclasses.replace(spec, metadata_encoding="reference", metadata_fusion="rows")
        spec.save(workdir / "checkpoints")
        changes = [("metadata.use", "True"), *changes]
    with pytest.raises(UserError, match=rf"config\.{key} contradicts the model in .*: .* given\."):
        configuration_of("baseline", changes, str(workdir), trained=True)


def test_an_imported_model_is_evaluated_with_any_configuration(workdir):
    (workdir / "config.json").unlink()
    changes = [("eval_batch_size", "4"), ("dtype", "float32")]
    config, _ = configuration_of("metadata_augmentation", changes, str(workdir), trained=True)
    assert config.eval_batch_size == 4


def test_the_workdir_is_named_after_the_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("toy", "folder/toy.py"):
        if "/" in name:
            (tmp_path / "folder").mkdir()
            (tmp_path / name).write_text(configuration.shipped()["toy"].read_text())
        assert str(configuration_of(name, [], None, trained=False)[1]) == "runs/toy"


def test_flairs_configurations_refuse_other_data(tmp_path, capsys):
    """By name of the classes, before anything is written; bands are not what it stumbles over."""
    folder = own_images.built(tmp_path / "data")
    flags = [
        "train", f"--config.data_dir={folder.parents[2]}", f"--workdir={tmp_path / 'run'}",
        "--config.data_config=mine", "--config.batch_size=2", "--config.compilation_cache=",
    ]  # fmt: skip
    for more, message in (
        (
            ["--config=baseline"],
            "are FLAIR's classes, and the data set 'mine' has its own: water, ",
        ),
        (["--config=own_data", "--config.bands=red,nir"], "'nir' is unknown or given twice"),
        (["--config=own_data", "--config.data_config=other"], "one that is there: mine"),
    ):
        assert main([*flags, *more]) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
