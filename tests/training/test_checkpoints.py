import dataclasses
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flair_jax import config as configuration
from flair_jax.data.nomenclature import FULL
from flair_jax.errors import UserError
from flair_jax.inference import loading
from flair_jax.models.functional import split_model
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime.sharding import make_mesh, replicate
from flair_jax.training.checkpoints import Checkpoints, Progress
from flair_jax.training.optimizer import EarlyStop, Plateau, make_optimizer, with_learning_rate
from flair_jax.training.state import create_train_state


@pytest.fixture(scope="module")
def spec():
    return ModelSpec.from_config(configuration.default(), (64, 64))


@pytest.fixture(scope="module")
def mesh():
    return make_mesh()


@pytest.fixture(scope="module")
def state(spec, mesh):
    _, params, batch_stats = split_model(spec.build_model(3))
    return replicate(create_train_state(params, batch_stats, make_optimizer(0.02)), mesh)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, spec, state):
    """Checkpoints of six steps, of which the latest two and the best are kept."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    checkpoints = Checkpoints(folder, max_to_keep=2)
    spec.save(folder)
    for step, loss in ((1, 5.0), (2, 3.0), (3, 4.0), (4, None), (5, 6.0), (6, None)):
        progress = Progress(step // 2, 0.25 * step, Plateau(0.02), EarlyStop(30))
        saved = dataclasses.replace(
            state,
            step=jnp.int32(step),
            params={k: v + step for k, v in state.params.items()},
            opt_state=with_learning_rate(state.opt_state, step / 100),
        )
        checkpoints.save(saved, progress, None if loss is None else {"val_loss": loss})
    checkpoints.close()
    return folder


def test_latest_and_best_are_kept(folder):
    checkpoints = Checkpoints(folder, read_only=True)
    assert (checkpoints.latest(), checkpoints.best()) == (6, 2)
    checkpoints.close()
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["2", "5", "6"]


def test_everything_comes_back(folder, state, mesh):
    checkpoints = Checkpoints(folder, read_only=True)
    restored, progress = checkpoints.restore(6, state, mesh)
    checkpoints.close()
    assert int(restored.step) == 6
    assert float(restored.opt_state.hyperparams["learning_rate"]) == np.float32(0.06)
    assert progress == Progress(3, 1.5, Plateau(0.02), EarlyStop(30))
    assert restored.params.keys() == state.params.keys()
    for name, value in state.params.items():
        np.testing.assert_array_equal(restored.params[name], value + 6)
    for name, value in state.batch_stats.items():
        np.testing.assert_array_equal(restored.batch_stats[name], value)


@pytest.mark.parametrize(("path", "step"), [("..", 2), (".", 2), ("5", 5), ("6", 6)])
def test_any_path_to_a_checkpoint_will_do(folder, state, spec, mesh, path, step):
    loaded, params, _, found = loading.load((folder / path).resolve(), mesh)
    assert (loaded, found) == (spec, step)
    name = "segmentation_head.0.bias"
    np.testing.assert_array_equal(params[name], state.params[name] + step)


def test_no_checkpoint(tmp_path, mesh):
    with pytest.raises(UserError, match="there is no checkpoint at"):
        loading.load(tmp_path, mesh)
    (tmp_path / "model.json").write_text("{}")
    assert loading.find(tmp_path) == (tmp_path, None)


def test_checkpoint_of_another_class_count(folder, spec, mesh, tmp_path):
    wrong = dataclasses.replace(spec, nomenclature=FULL)
    copied = shutil.copytree(folder, tmp_path / "checkpoints")
    wrong.save(copied)
    with pytest.raises(UserError, match=r"checkpoints/2 cannot be restored"):
        loading.load(copied, mesh)


def test_replicated_over_the_mesh(folder, spec, mesh):
    _, params, _, _ = loading.load(folder, mesh)
    assert all(p.sharding.mesh == mesh for p in params.values())
    assert len(jax.devices()) == mesh.size


@pytest.fixture
def copied(folder, tmp_path):
    """A run of its own with the six steps' checkpoints."""
    shutil.copytree(folder, tmp_path / "run" / "checkpoints")
    return tmp_path / "run" / "checkpoints"


def damage(step_folder):
    """Cuts every file of the model's arrays short, as a crash of the machine may."""
    for path in (step_folder / "model").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:500])


def test_a_damaged_checkpoint_is_quarantined_for_the_one_before(copied, state, mesh):
    damage(copied / "6")
    checkpoints = Checkpoints(copied)
    restored, progress, messages = checkpoints.restore_newest(state, mesh)
    assert (int(restored.step), progress.epoch) == (5, 2)
    assert len(messages) == 1
    assert "checkpoints/6 cannot be restored" in messages[0]
    checkpoints.quarantine(after=5)
    assert checkpoints.latest() == 5
    assert (copied.parent / "damaged_checkpoints" / "6").is_dir()
    again = dataclasses.replace(state, step=jnp.int32(6))
    checkpoints.save(again, progress, None)
    checkpoints.close()
    assert sorted(p.name for p in copied.iterdir() if p.is_dir()) == ["2", "5", "6"]


def test_nothing_whole_is_not_a_fresh_start(copied, state, mesh):
    for step in ("2", "5", "6"):
        damage(copied / step)
    checkpoints = Checkpoints(copied)
    with pytest.raises(UserError, match="No checkpoint of this run can be restored") as caught:
        checkpoints.restore_newest(state, mesh)
    checkpoints.close()
    assert str(caught.value).count("cannot be restored") == 3


def test_a_step_that_is_saved_again_is_replaced(copied, state, mesh):
    checkpoints = Checkpoints(copied)
    progress = Progress(3, 0.0, Plateau(0.02), EarlyStop(30))
    again = dataclasses.replace(state, step=jnp.int32(6))
    checkpoints.save(again, progress, {"val_loss": 1.0})
    checkpoints.wait()
    assert (checkpoints.latest(), checkpoints.best()) == (6, 6)
    restored, _ = checkpoints.restore(6, state, mesh)
    checkpoints.close()
    name = "segmentation_head.0.bias"
    np.testing.assert_array_equal(restored.params[name], state.params[name])


def test_averages_are_kept_and_loaded(tmp_path, spec, state, mesh):
    ema = dataclasses.replace(
        state, ema={k: v + 1 for k, v in {**state.params, **state.batch_stats}.items()}
    )
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    spec.save(tmp_path / "checkpoints")
    progress = Progress(1, 0.0, Plateau(0.02), EarlyStop(30))
    checkpoints.save(ema, progress, {"val_loss": 1.0})
    restored, _, _ = checkpoints.restore_newest(ema, mesh)
    checkpoints.close()
    name = "encoder.bn1.var"
    np.testing.assert_array_equal(restored.ema[name], state.batch_stats[name] + 1)
    _, _, batch_stats, _ = loading.load(tmp_path, mesh, ema=True)
    np.testing.assert_array_equal(batch_stats[name], state.batch_stats[name] + 1)


def test_no_average_was_kept(folder, mesh):
    with pytest.raises(UserError, match="has no moving average of the weights"):
        loading.load(folder, mesh, ema=True)


def test_a_full_disk_leaves_the_earlier_checkpoints_whole(copied, state, mesh):
    """A limit on the size of files stands in for the disk: both refuse a write."""
    checkpoints = Checkpoints(copied)
    progress = Progress(4, 0.0, Plateau(0.02), EarlyStop(30))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        checkpoints.save(dataclasses.replace(state, step=jnp.int32(7)), progress, None)
        with pytest.raises(UserError, match="could not be written") as caught:
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "Complete checkpoints there: 2, 6." in str(caught.value)
    reader = Checkpoints(copied, read_only=True)
    restored, _ = reader.restore(6, state, mesh)
    assert int(restored.step) == 6
    reader.close()
