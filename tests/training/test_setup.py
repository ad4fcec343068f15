"""What is checked and made before the first step."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from flair_jax import config as configuration
from flair_jax.data import dataset, synthetic
from flair_jax.errors import UserError
from flair_jax.models.functional import split_model
from flair_jax.runtime.sharding import make_mesh
from flair_jax.training import setup
from flair_jax.training.checkpoints import Checkpoints
from flair_jax.training.initialization import random_weights
from flair_jax.training.optimizer import learning_rate, with_learning_rate
from flair_jax.training.schedules import Best, PlateauState, Progress
from flair_jax.training.setup import make_experiment
from tfds_builder.build import build


@pytest.fixture
def config(data_dir):
    config = configuration.default()
    config.data_dir, config.batch_size, config.num_epochs = str(data_dir), 4, 3
    return config


@pytest.fixture
def workdir(config, tmp_path):
    """A run that has been started, and not yet saved anything."""
    experiment = make_experiment(config, tmp_path / "run")
    setup.make_workdir(experiment)
    setup.save_settings(experiment)
    return tmp_path / "run"


def changed(config, **changes):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    return config


def test_what_an_experiment_is(config, tmp_path):
    experiment = make_experiment(config, tmp_path / "run")
    assert (experiment.steps_per_epoch, len(experiment.train), len(experiment.val)) == (4, 16, 4)
    described = setup.describe(experiment)
    assert described["data"].endswith("16 train and 4 val patches of 64 x 64 pixels")
    assert "24,444,381 parameters" in described["model"]
    assert described["devices"].endswith(
        "on 1 host; 4 steps an epoch, each of a batch of 4 patches"
    )
    assert not (tmp_path / "run").exists()  # nothing is written before all is checked


def test_the_first_state_is_that_of_the_seed(config, tmp_path):
    experiment = make_experiment(changed(config, ema_decay=0.9), tmp_path)
    state, lines = setup.first_state(experiment)
    _, params, batch_stats = split_model(experiment.spec.build_model(config.seed))
    assert lines == []
    assert int(state.step) == 0
    for name, value in params.items():
        # One compiled program: equal to the bit with JAX 0.12, to the last digit before.
        np.testing.assert_allclose(state.params[name], value, rtol=3e-7, atol=0)
        np.testing.assert_array_equal(state.ema[name], state.params[name])
    for name, value in batch_stats.items():
        np.testing.assert_array_equal(state.batch_stats[name], value)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(state))


def test_the_first_weights_are_drawn_by_one_program(config, tmp_path):
    """Drawn one by one they need a compilation for each shape and kind."""
    compiled = []

    def listen(event, *args, **options):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    experiment = make_experiment(config, tmp_path)
    jax.monitoring.register_event_duration_secs_listener(listen)
    random_weights(experiment.spec, 1234, experiment.mesh)
    assert len(compiled) == 1


def test_a_start_and_a_resume(config, workdir):
    experiment = make_experiment(config, workdir)
    checkpoints = Checkpoints(workdir / "checkpoints")
    state, progress, lines = setup.start(experiment, checkpoints)
    assert (int(state.step), progress, lines) == (0, Progress(), [])
    later = dataclasses.replace(state, step=np.int32(4))
    later.opt_state = with_learning_rate(later.opt_state, 0.01)
    saved = Progress(1, 0.0, PlateauState(1.0), Best(4, 1, 1.0))
    checkpoints.save(later, saved)
    checkpoints.wait()
    state, progress, lines = setup.start(experiment, checkpoints)
    assert (int(state.step), progress, learning_rate(state.opt_state)) == (4, saved, 0.01)
    assert lines == ["resuming from step 4 (1 epochs finished)"]
    limited = make_experiment(changed(config, learning_rate_limit=0.005), workdir)
    state, _, lines = setup.start(limited, checkpoints)
    assert learning_rate(state.opt_state) == 0.005
    assert lines[-1].startswith("the learning rate is 0.005 from here")
    rising = dataclasses.replace(limited, config=changed(limited.config, schedule="one_cycle"))
    assert setup.start(rising, checkpoints)[2][-1].startswith("the largest learning rate is 0.005")
    checkpoints.close()


@pytest.mark.parametrize(
    ("epoch", "best", "finished"),
    [(0, None, False), (2, 1, False), (3, 1, True), (2, None, True), (2, 0, True)],
)
def test_when_a_run_is_finished(config, tmp_path, epoch, best, finished):
    experiment = make_experiment(changed(config, early_stop_patience=2), tmp_path)
    found = None if best is None else Best(4, best, 1.0)
    progress = Progress(epoch, best=found)
    assert experiment.is_finished(progress) is finished


# --- Data ----------------------------------------------------------------------------------------


def test_the_same_data_elsewhere(config, workdir, data_dir, tmp_path):
    elsewhere = shutil.copytree(data_dir, tmp_path / "elsewhere")
    make_experiment(changed(config, data_dir=str(elsewhere)), workdir)


@pytest.mark.parametrize(
    ("counts", "seed", "expected"),
    [
        ({"train": 16, "val": 4}, 1, "train: the same number of patches, with other content"),
        ({"train": 12, "val": 4}, 0, "train: 16 patches then, 12 now"),
        ({"train": 24, "val": 4}, 0, "train: 16 patches then, 24 now"),
        ({"train": 16, "val": 6}, 0, "val: 4 patches then, 6 now"),
    ],
)
def test_other_data_is_refused(config, workdir, tmp_path, counts, seed, expected):
    synthetic.generate(tmp_path / "source", patch_size=64, test=5, seed=seed, **counts)
    build(tmp_path / "source", data_dir=tmp_path / "built", num_workers=1, progress=False)
    other = changed(config, data_dir=str(tmp_path / "built"))
    with pytest.raises(UserError, match="holds a run on another data set") as caught:
        make_experiment(other, workdir)
    assert expected in str(caught.value)
    assert str(tmp_path / "built") in str(caught.value)


def test_a_damaged_record(config, workdir):
    (workdir / "run.json").write_text('{"data": ')
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        make_experiment(config, workdir)


def test_processes_with_different_data(config, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "from_first", lambda values: [values[0] ^ 1])
    with pytest.raises(UserError, match="the processes do not read the same data set"):
        make_experiment(config, tmp_path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_masks_is_refused_at_once(config, tmp_path, monkeypatch, split):
    def open_split(directory, name):
        opened = real(directory, name)
        if name != split:
            return opened
        records = [{**record, "has_mask": False} for record in opened.records]
        return dataclasses.replace(opened, records=records)

    real = dataset.open_split
    monkeypatch.setattr(dataset, "open_split", open_split)
    with pytest.raises(UserError, match=f"no patch of the split '{split}' in .* has a mask"):
        make_experiment(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- Settings ------------------------------------------------------------------------------------


def test_statistics_of_each_device_need_as_many_devices(config, tmp_path):
    each = changed(config, batch_norm="per_device")
    experiment = make_experiment(each, tmp_path)
    setup.make_workdir(experiment)
    setup.save_settings(experiment)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["batch_norm_groups"] == 1
    (tmp_path / "run.json").write_text(json.dumps(record | {"batch_norm_groups": 4}))
    with pytest.raises(UserError, match=r"statistics of 4 devices each .* resume it on 4 devices"):
        make_experiment(each, tmp_path)


def test_profile_after_the_last_step(config, tmp_path):
    make_experiment(changed(config, profile=(10, 12)), tmp_path)
    expected = r"profile=\(10, 13\) ends after the run's last step, 12 \(3 epochs of 4 steps\)"
    with pytest.raises(UserError, match=expected):
        make_experiment(changed(config, profile=(10, 13)), tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_epochs": 0}, "config.num_epochs is 0; expected at least 1"),
        ({"early_stop_patience": 0}, "config.early_stop_patience is 0; expected at least 1"),
        ({"plateau.patience": -5}, "config.plateau.patience is -5; expected at least 0"),
        ({"clip_norm": -1.0}, "config.clip_norm is -1.0; expected 0 .none. or more"),
        ({"monitor": "val_acc"}, "config.monitor is 'val_acc'; expected 'val_loss' or 'val_miou'"),
        ({"monitor": "val_miou_ema"}, "there is none with config.ema_decay=0"),
    ],
)
def test_settings_that_end_oddly(config, tmp_path, changes, expected):
    with pytest.raises(UserError, match=expected):
        make_experiment(changed(config, **changes), tmp_path)


def test_batch_sizes(tmp_path):
    config = configuration.default()
    sizes = {n: configuration.with_batch_size(config, n, tmp_path).batch_size for n in (1, 4, 8)}
    assert sizes == {1: 10, 4: 40, 8: 80}
    assert configuration.with_batch_size(changed(config, batch_size=6), 4, tmp_path).batch_size == 6
    configuration.save(changed(config, batch_size=20), tmp_path)  # started on two devices
    assert configuration.with_batch_size(config, 4, tmp_path).batch_size == 20
    assert [configuration.eval_batch_size(config, n) for n in (1, 4)] == [10, 40]
    ten = changed(config, batch_size=10)
    assert [configuration.eval_batch_size(ten, n) for n in (1, 4, 8, 16)] == [10, 12, 16, 16]
    assert configuration.eval_batch_size(changed(config, eval_batch_size=3), 8) == 3


def test_the_default_batch_size_is_kept_by_the_run(config, tmp_path):
    default = changed(config, batch_size=0)
    experiment = make_experiment(default, tmp_path)
    assert experiment.config.batch_size == 10 * make_mesh().size
    setup.make_workdir(experiment)
    setup.save_settings(experiment)
    assert configuration.load(tmp_path).batch_size == 10 * make_mesh().size
    make_experiment(default, tmp_path)


def test_the_log_tells_which_bands_the_radiometry_changes(config, tmp_path, capsys):
    config = changed(config, augment_radiometry=True, bands=("red", "height"))
    setup.log_start(make_experiment(config, tmp_path), [])
    assert (
        "augment  radiometry of red; height unchanged (config.radiometry.keep)\n"
        in capsys.readouterr().out
    )
    with pytest.raises(UserError, match="changes none of the bands height: "):
        make_experiment(changed(config, bands=("height",)), tmp_path)
