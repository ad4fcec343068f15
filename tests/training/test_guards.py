"""Runs with a tiny model: what is best, divergence, scores of other data, profiles."""

import json
import platform
import shlex
import shutil
import sys

import numpy as np
import pytest
from damage import damage

from flair_jax import config as configuration
from flair_jax.data import synthetic
from flair_jax.data.dataset import dataset_directory, open_split
from flair_jax.errors import UserError
from flair_jax.evaluation import evaluate
from flair_jax.inference import loading
from flair_jax.runtime.sharding import make_mesh
from flair_jax.training import loop
from flair_jax.training.loop import train_and_evaluate
from tfds_builder.build import build

pytestmark = pytest.mark.usefixtures("tiny_model")


@pytest.fixture
def config(data_dir):
    return settings(data_dir)


def settings(data_dir):
    config = configuration.default()
    config.data_dir, config.batch_size, config.num_epochs = str(data_dir), 4, 3
    config.tensorboard_patches, config.log_every_steps = 0, 1
    return config


def changed(config, **changes):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    return config


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def epochs(workdir):
    return [line for line in lines(workdir) if "val_loss" in line]


def test_metrics_have_the_gradients_norm(config, tmp_path):
    train_and_evaluate(config, tmp_path)
    steps = [line for line in lines(tmp_path) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert all(0 < line["grad_norm"] < 100 for line in steps)


@pytest.mark.parametrize("monitor", ["val_loss", "val_miou", "val_loss_ema", "val_miou_ema"])
def test_the_best_is_that_of_the_monitored_value(config, tmp_path, monitor):
    config = changed(config, monitor=monitor, ema_decay=0.5, max_to_keep=3)
    metrics = train_and_evaluate(config, tmp_path)
    values = [epoch[monitor] for epoch in epochs(tmp_path)]
    best = (np.argmax if "miou" in monitor else np.argmin)(values)
    assert metrics["step"] == 4 * (best + 1) == loading.best_step(tmp_path / "checkpoints")
    weights = "ema" if monitor.endswith("_ema") else "raw"
    assert metrics["provenance"]["checkpoint"]["weights"] == weights
    assert loading.watches_ema(tmp_path) is (weights == "ema")
    _, default, _, _ = loading.load(tmp_path, make_mesh())
    _, chosen, _, _ = loading.load(tmp_path, make_mesh(), ema=weights == "ema")
    _, other, _, _ = loading.load(tmp_path, make_mesh(), ema=weights == "raw")
    np.testing.assert_array_equal(default["head.bias"], chosen["head.bias"])
    assert not np.array_equal(default["head.bias"], other["head.bias"])


def test_equal_losses_keep_score_and_log_the_first(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate.Evaluation, "miou", lambda self, nomenclature: 0.5)
    metrics = train_and_evaluate(changed(config, monitor="val_miou"), tmp_path)
    output = capsys.readouterr().out
    assert next(line for line in output.splitlines() if "(best)" in line).startswith("epoch 1/3")
    assert output.count("(best)") == 1
    assert metrics["step"] == 4


def test_a_run_that_diverges_resumes_at_a_lower_rate(config, tmp_path, monkeypatch, capsys):
    """The second epoch's rate is too high: nothing of it is saved."""
    real = loop.Loop._checked

    def checked(self, facts, step, state, progress):
        if step == 5:
            facts = facts | {"finite": np.False_, "grad_norm": np.float32(np.inf)}
        return real(self, facts, step, state, progress)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_checked", checked)
        with pytest.raises(UserError, match=r"at step 5 \(epoch 2\)") as caught:
            train_and_evaluate(config, tmp_path)
    assert f"Last good checkpoint: {tmp_path}/checkpoints/4" in str(caught.value)
    assert "add --config.learning_rate_limit=0.01 to the same command" in str(caught.value)
    assert loading.saved_steps(tmp_path / "checkpoints") == [4]
    train_and_evaluate(changed(config, learning_rate_limit=0.01), tmp_path)
    assert "the learning rate is 0.01 from here" in capsys.readouterr().out
    assert [epoch["learning_rate"] for epoch in epochs(tmp_path)] == [0.02, 0.01, 0.01]


def test_nothing_saved_is_ever_not_finite(config, tmp_path):
    with pytest.raises(UserError, match=r"became (inf|nan) at step"):
        train_and_evaluate(changed(config, learning_rate=1e30, checkpoint_every_steps=1), tmp_path)
    for step in loading.saved_steps(tmp_path / "checkpoints"):
        _, params, batch_stats, _ = loading.load(tmp_path, make_mesh(), step)
        for value in (*params.values(), *batch_stats.values()):
            assert np.isfinite(value).all()


@pytest.fixture
def other_data(tmp_path):
    synthetic.generate(tmp_path / "source", patch_size=64, train=16, val=4, test=5, seed=1)
    build(tmp_path / "source", data_dir=tmp_path / "other", num_workers=1, progress=False)
    return tmp_path / "other"


def test_scores_of_other_data_do_not_pass_as_the_runs(config, tmp_path, other_data, capsys):
    workdir = loop.epath.Path(tmp_path / "run")
    metrics = train_and_evaluate(config, workdir)
    assert train_and_evaluate(config, workdir) == metrics
    assert "is already scored" in capsys.readouterr().out
    other = evaluate.evaluate_run(changed(config, data_dir=str(other_data)), workdir, "test")
    assert other["confusion_matrix"] != metrics["confusion_matrix"]
    capsys.readouterr()
    again = train_and_evaluate(config, workdir)
    assert "is already scored" not in capsys.readouterr().out
    assert again["confusion_matrix"] == metrics["confusion_matrix"]
    elsewhere = shutil.copytree(config.data_dir, tmp_path / "elsewhere")
    train_and_evaluate(changed(config, data_dir=str(elsewhere)), workdir)
    assert "is already scored" in capsys.readouterr().out


@pytest.fixture(scope="module")
def scored(data_dir, tmp_path_factory, tiny_model):
    config = changed(settings(data_dir), num_epochs=1)
    return train_and_evaluate(config, tmp_path_factory.mktemp("scored"))


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p["checkpoint"].update(arrays_crc32=1),
        lambda p: p["checkpoint"].update(spec_crc32=1),
        lambda p: p["checkpoint"].update(step=1),
        lambda p: p["versions"].update(jax="0.1"),
        lambda p: p.update(git_commit="0" * 40),
        lambda p: p.update(loss_normalization="weights"),
        lambda p: p.pop("data"),
        lambda p: p["definitions"].update(main="another"),
    ],
)
def test_what_makes_a_result_another(scored, change):
    now = scored["provenance"]
    saved = json.loads(json.dumps(now))
    assert evaluate.provenance.is_current(saved, now)
    saved["command"] = saved["host"] = "another"
    assert evaluate.provenance.is_current(saved, now)
    change(saved)
    assert not evaluate.provenance.is_current(saved, now)


def test_metrics_name_where_they_come_from(config, tmp_path, data_dir):
    of = train_and_evaluate(changed(config, num_epochs=1), tmp_path)["provenance"]
    assert of["checkpoint"]["step"] == 4
    assert of["data"]["directory"] == str(dataset_directory(str(data_dir), "published"))
    assert list(of["data"]["splits"]) == ["test"]
    assert set(of["versions"]) >= {"flair_jax", "jax", "flax", "python"}
    assert of["command"] == shlex.join(sys.orig_argv)
    written = json.loads((tmp_path / "evaluation/test/patches.json").read_text())
    assert written["provenance"] == of
    start = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    for key in ("command", "host", "versions", "git_commit"):
        assert start[key] == of[key]
    assert start["host"] == platform.node()


@pytest.fixture
def best_is_first(config, tmp_path, monkeypatch):
    """A finished run whose first epoch was the best, so that no checkpoint is older."""
    monkeypatch.setattr(loading, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(evaluate.Evaluation, "miou", lambda self, nomenclature: 0.5)
    config = changed(config, monitor="val_miou")
    train_and_evaluate(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "evaluation")
    assert loading.best_step(tmp_path / "run" / "checkpoints") == 4
    return config, tmp_path / "run"


@pytest.mark.parametrize("kind", ["all", "missing", "flipped_bit"])
def test_a_best_checkpoint_that_is_lost_is_told_and_no_other_scored(best_is_first, kind):
    config, run = best_is_first
    if kind == "all":
        shutil.rmtree(run / "checkpoints" / "4")
    else:
        damage(run / "checkpoints" / "4" / "progress" / "metadata", kind)
    expected = r"the best checkpoint, is missing(.|\n)*cannot be made again"
    for _ in range(2):
        with pytest.raises(UserError, match=expected):
            train_and_evaluate(config, run)
    assert not (run / "evaluation").exists()


def test_a_lost_best_checkpoint_is_made_again(config, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "WAITS", (0.0, 0.0))
    metrics = train_and_evaluate(config, tmp_path)
    assert metrics["step"] == 12
    shutil.rmtree(tmp_path / "checkpoints" / "12")
    shutil.rmtree(tmp_path / "evaluation")
    again = train_and_evaluate(config, tmp_path)
    for part in (metrics, again):
        del part["provenance"]
    assert again == metrics


def test_a_profile_is_closed_where_training_ends(config, tmp_path):
    train_and_evaluate(changed(config, profile=(2, 3), num_epochs=1), tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_evaluation_takes_any_number_of_devices(config, tmp_path):
    """A batch size of 10 is no error of an evaluation on 4 devices: see `eval_batch_size`."""
    train_and_evaluate(changed(config, num_epochs=1), tmp_path)
    split = open_split(dataset_directory(config.data_dir, "published"), "test")
    options = {"loss_normalization": "pixels"}
    found = [
        evaluate.evaluate_checkpoint(tmp_path, split, make_mesh(), batch_size=n, **options)
        for n in (2, 5, 8)
    ]
    assert found[0]["confusion_matrix"] == found[1]["confusion_matrix"]
    assert found[0]["confusion_matrix"] == found[2]["confusion_matrix"]
