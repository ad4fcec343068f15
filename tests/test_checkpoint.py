import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flair_jax import checkpoint
from flair_jax import config as configuration
from flair_jax.classes import FULL
from flair_jax.errors import UserError
from flair_jax.model_card import ModelCard
from flair_jax.optimizer import EarlyStop, Plateau, make_optimizer, with_learning_rate
from flair_jax.sharding import make_mesh, replicate
from flair_jax.train_state import create_train_state, split_model


@pytest.fixture(scope="module")
def card():
    return ModelCard.from_config(configuration.default(), (64, 64))


@pytest.fixture(scope="module")
def mesh():
    return make_mesh()


@pytest.fixture(scope="module")
def state(card, mesh):
    _, params, stats = split_model(card.build_model(3))
    return replicate(create_train_state(params, stats, make_optimizer(0.02)), mesh)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, card, state):
    """Checkpoints of six steps, of which the latest two and the best are kept."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    checkpoints = checkpoint.Checkpoints(folder, keep_latest=2)
    card.save(folder)
    for step, loss in ((1, 5.0), (2, 3.0), (3, 4.0), (4, None), (5, 6.0), (6, None)):
        progress = checkpoint.Progress(step // 2, 0.25 * step, Plateau(0.02), EarlyStop(30))
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
    checkpoints = checkpoint.Checkpoints(folder, read_only=True)
    assert (checkpoints.latest(), checkpoints.best()) == (6, 2)
    checkpoints.close()
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["2", "5", "6"]


def test_everything_comes_back(folder, state, mesh):
    checkpoints = checkpoint.Checkpoints(folder, read_only=True)
    restored, progress = checkpoints.restore(6, state, mesh)
    checkpoints.close()
    assert int(restored.step) == 6
    assert float(restored.opt_state.hyperparams["learning_rate"]) == np.float32(0.06)
    assert progress == checkpoint.Progress(3, 1.5, Plateau(0.02), EarlyStop(30))
    assert restored.params.keys() == state.params.keys()
    for name, value in state.params.items():
        np.testing.assert_array_equal(restored.params[name], value + 6)
    for name, value in state.stats.items():
        np.testing.assert_array_equal(restored.stats[name], value)


@pytest.mark.parametrize(("path", "step"), [("..", 2), (".", 2), ("5", 5), ("6", 6)])
def test_any_path_to_a_checkpoint_will_do(folder, state, card, mesh, path, step):
    loaded, params, _, found = checkpoint.load((folder / path).resolve(), mesh)
    assert (loaded, found) == (card, step)
    name = "segmentation_head.0.bias"
    np.testing.assert_array_equal(params[name], state.params[name] + step)


def test_no_checkpoint(tmp_path, mesh):
    with pytest.raises(UserError, match="there is no checkpoint at"):
        checkpoint.load(tmp_path, mesh)
    (tmp_path / "model.json").write_text("{}")
    assert checkpoint.find(tmp_path) == (tmp_path, None)


def test_checkpoint_of_another_class_count(folder, card, mesh):
    wrong = dataclasses.replace(card, nomenclature=FULL)
    checkpoints = checkpoint.Checkpoints(folder, read_only=True)
    with pytest.raises(UserError, match=r"checkpoints/2 cannot be restored"):
        checkpoints.restore_model(2, wrong, mesh)
    checkpoints.close()


def test_replicated_over_the_mesh(folder, card, mesh):
    _, params, _, _ = checkpoint.load(folder, mesh)
    assert all(p.sharding.mesh == mesh for p in params.values())
    assert len(jax.devices()) == mesh.size
