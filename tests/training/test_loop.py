import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from damage import halve, largest_file
from tensorboard_events import images

from flair_jax import config as configuration
from flair_jax.data import dataset
from flair_jax.data.nomenclature import BASELINE
from flair_jax.errors import UserError
from flair_jax.evaluation.evaluate import evaluate_checkpoint
from flair_jax.evaluation.predict import predict_checkpoint
from flair_jax.inference.loading import best_step, load, saved_steps
from flair_jax.report.page import update_report
from flair_jax.runtime.sharding import make_mesh
from flair_jax.training import loop

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "tiny"


@pytest.fixture(scope="module")
def config(data_dir):
    config = configuration.default()
    config.data_dir = str(data_dir)
    config.batch_size = 4
    config.num_epochs = 2
    config.log_every_steps = 1
    config.predict_after_training = True
    config.report_after_training = False  # seconds each time
    return config


@pytest.fixture(scope="module")
def metrics(config, workdir):
    return loop.train_and_evaluate(config, workdir)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
    return {line["step"]: line["loss"] for line in lines(workdir) if "loss" in line}


def scores(metrics):
    """Without what names the command and the folders."""
    return {key: value for key, value in metrics.items() if key != "provenance"}


def epochs(workdir):
    keys = ("step", "epoch", "train_loss", "val_loss", "val_miou", "learning_rate")
    return [{k: line[k] for k in keys} for line in lines(workdir) if "val_loss" in line]


def test_artifacts(config, workdir, metrics):
    assert configuration.load(workdir).to_dict() == config.to_dict()
    assert list(losses(workdir)) == list(range(1, 9))
    assert [e["epoch"] for e in epochs(workdir)] == [1, 2]
    shown = images(workdir / "tensorboard")
    assert len(shown) == 4 * (2 + 2) + 2  # of four patches image and truth, two epochs; matrices
    assert [step for step, name in shown if name == "confusion_matrix"] == [4, 8]
    assert json.loads((workdir / "evaluation/test/metrics.json").read_text()) == metrics
    assert (workdir / "evaluation/test/confusion_matrix.png").stat().st_size > 10_000
    assert (workdir / "checkpoints/model.json").exists()
    assert len(list((workdir / "predictions").glob("PRED_*.tif"))) == 5


def test_metrics_count_the_whole_test_split(metrics):
    confusion = np.array(metrics["confusion_matrix"])
    assert metrics["num_patches"] == 5
    assert confusion.shape == (13, 13)
    assert confusion.sum() == 5 * 64 * 64
    iou = metrics["challenge"]["iou"]
    scored = [iou[name] for name in metrics["classes"][:12] if iou[name] is not None]
    assert metrics["challenge"]["miou"] == pytest.approx(np.mean(scored))
    for kind in ("domain", "camera", "month"):
        assert sum(part["num_patches"] for part in metrics[f"by_{kind}"].values()) == 5
    assert metrics["definitions"].keys() == {"challenge", "main", "open_vocabulary"}


def test_predictions_agree_with_the_confusion_matrix(workdir, metrics, data_dir):
    """The predicted files, scored by hand against the masks, give the same matrix."""
    directory = dataset.dataset_directory(str(data_dir), "published")
    split = dataset.open_split(directory, "test")
    confusion = np.zeros((13, 13), int)
    for record in split.records:
        path = workdir / "predictions" / f"PRED_{record['id'].decode()}.tif"
        with rasterio.open(path) as raster:
            assert (raster.dtypes, raster.count) == (("uint8",), 1)
            assert raster.compression.name == "lzw"
            assert raster.crs.to_epsg() == 2154
            assert list(raster.transform)[:6] == record["transform"].tolist()
            predicted = raster.read(1)
        np.add.at(confusion, (BASELINE.labels[record["mask"]], predicted), 1)
    np.testing.assert_array_equal(confusion, metrics["confusion_matrix"])


def test_finished_run_is_reported(config, workdir, metrics, capsys):
    before = (workdir / "predictions").stat().st_mtime_ns
    assert loop.train_and_evaluate(config, workdir) == metrics
    output = capsys.readouterr().out
    assert "training is finished: 2 epochs, config.num_epochs=2" in output
    assert "is already scored" in output
    assert (workdir / "predictions").stat().st_mtime_ns == before


def test_other_settings_are_refused(config, workdir, metrics):
    changed = config.copy_and_resolve_references()
    changed.learning_rate = 0.5
    with pytest.raises(UserError, match=r"config.learning_rate: 0.02 in the run, 0.5 given"):
        loop.train_and_evaluate(changed, workdir)


def test_new_process_predicts_the_same_bytes_from_the_workdir_alone(workdir, metrics):
    before = {p.name: p.read_bytes() for p in (workdir / "predictions").iterdir()}
    for mode in ("predict", "eval"):
        done = subprocess.run(
            [sys.executable, "-m", "flair_jax.main", f"--workdir={workdir}", f"--mode={mode}"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert {p.name: p.read_bytes() for p in (workdir / "predictions").iterdir()} == before
    again = json.loads((workdir / "evaluation/test/metrics.json").read_text())
    assert scores(again) == scores(metrics)


def test_killed_run_resumes_exactly(config, workdir, metrics, tmp_path):
    flags = [
        "--config=configs/baseline.py", f"--workdir={tmp_path}",
        "--config.checkpoint_every_steps=1",
    ]  # fmt: skip
    for key in ("data_dir", "batch_size", "num_epochs", "log_every_steps", "report_after_training"):
        flags.append(f"--config.{key}={config[key]}")
    command = [sys.executable, "-m", "flair_jax.main", *flags, "--config.predict_after_training"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not (tmp_path / "checkpoints" / "6").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "evaluation").exists()

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resuming from step" in done.stdout
    assert saved_steps(tmp_path / "checkpoints")[-1] == 8
    assert best_step(tmp_path / "checkpoints") == metrics["step"]
    assert losses(tmp_path) == losses(workdir)
    assert epochs(tmp_path) == epochs(workdir)
    again = json.loads((tmp_path / "evaluation/test/metrics.json").read_text())
    assert scores(again) == scores(metrics)
    for path in (workdir / "predictions").iterdir():
        assert (tmp_path / "predictions" / path.name).read_bytes() == path.read_bytes()


def test_sigterm_saves_and_exits_with_0(config, workdir, metrics, tmp_path):
    keys = ("data_dir", "batch_size", "num_epochs", "report_after_training")
    flags = [f"--config.{key}={config[key]}" for key in keys]
    command = [
        sys.executable, "-m", "flair_jax.main", "--config=configs/baseline.py", *flags,
        f"--workdir={tmp_path}", "--config.log_every_steps=1",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("  step 2:"):
            process.terminate()
            break
    rest = process.stdout.read()
    assert process.wait() == 0
    assert "stopped by SIGTERM: step" in rest
    assert "the same command resumes from there" in rest
    loop.train_and_evaluate(config, tmp_path)
    assert losses(tmp_path) == losses(workdir)
    assert epochs(tmp_path) == epochs(workdir)


def test_a_damaged_latest_checkpoint_costs_an_epoch_and_nothing_else(
    config, workdir, metrics, tmp_path, capsys
):
    run = shutil.copytree(workdir, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    halve(largest_file(run / "checkpoints" / "8"))
    assert scores(loop.train_and_evaluate(config, run)) == scores(metrics)
    output = capsys.readouterr().out
    assert "checkpoints/8 is damaged: OUT_OF_RANGE" in output
    assert (run / "damaged_checkpoints" / "8").is_dir()
    assert "resuming from step 4 (1 epochs finished)" in output
    assert losses(run) == losses(workdir)


def test_ema_timings_a_profile_and_a_report(config, tmp_path):
    more = config.copy_and_resolve_references()
    more.ema_decay, more.profile, more.predict_after_training = 0.9, (2, 3), False
    more.num_epochs, more.accumulate_steps = 1, 2
    loop.train_and_evaluate(more, tmp_path)
    update_report(tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    written = lines(tmp_path)
    validated = next(line for line in written if "val_loss" in line)
    assert validated["val_loss_ema"] != validated["val_loss"]
    assert 0 <= validated["val_miou_ema"] <= 1
    timed = [line for line in written if "step_seconds" in line]
    assert len(timed) == 4
    assert all(0 <= line["data_wait_seconds"] <= line["step_seconds"] for line in timed)
    assert sum("compile_seconds" in line for line in written) == 1
    assert sum("save_seconds" in line for line in written) == 1
    scores = json.loads((tmp_path / "evaluation/test_ema/metrics.json").read_text())
    assert scores["num_patches"] == 5
    page = (tmp_path / "index.html").read_text()
    assert f"{scores['challenge']['miou']:.4f} by the averaged (EMA) weights of step 4" in page
    assert page.count("<img ") == 3 * 5
    described = {"step", "started", "data", "model", "devices"}
    assert written[0].keys() == {*described, "command", "host", "versions", "git_commit"}
    assert validated["epoch_seconds"] > 0


def test_an_update_that_is_not_finite_ends_the_run_before_it_is_saved(config, tmp_path):
    wild = config.copy_and_resolve_references()
    wild.learning_rate = 1e38
    with pytest.raises(UserError) as caught:
        loop.train_and_evaluate(wild, tmp_path)
    message = str(caught.value)
    assert "at step 1 (epoch 1)" in message  # the update is tested, not the next step's loss
    assert "Last good checkpoint: none yet" in message
    assert "add --config.learning_rate_limit=5e+37 to the same command" in message


def test_fine_tuning_begins_with_the_given_weights(config, workdir, metrics, tmp_path, capsys):
    """An epoch of next to no learning leaves the loaded network as good as it was."""
    tuned = config.copy_and_resolve_references()
    tuned.init_from, tuned.learning_rate = str(workdir), 1e-9
    tuned.num_epochs, tuned.predict_after_training = 1, False
    loop.train_and_evaluate(tuned, tmp_path)
    assert "weights  232 tensors from" in capsys.readouterr().out
    assert saved_steps(tmp_path / "checkpoints") == [4]
    _, before, _, _ = load(workdir, make_mesh())
    _, after, _, _ = load(tmp_path, make_mesh())
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, atol=1e-6)


def test_crop_larger_than_the_patches(config, tmp_path):
    large = config.copy_and_resolve_references()
    large.crop_size = 96
    with pytest.raises(UserError, match="crop_size=96 is more than the patches' 64 x 64"):
        loop.train_and_evaluate(large, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_checkpoint_of_another_class_count(config, workdir, metrics, tmp_path):
    """A workdir whose configuration is gone still refuses a model that does not fit."""
    shutil.copytree(workdir / "checkpoints", tmp_path / "checkpoints")
    other = config.copy_and_resolve_references()
    other.nomenclature = "full"
    with pytest.raises(UserError, match=r"classes: 13 \(baseline\) in the checkpoint, 19 \(full\)"):
        loop.train_and_evaluate(other, tmp_path)


def test_test_split_without_masks_is_predicted_but_not_scored(
    config, workdir, metrics, data_dir, tmp_path
):
    directory = dataset.dataset_directory(str(data_dir), "published")
    split = dataset.open_split(directory, "test")
    records = [{**record, "has_mask": False} for record in split.records]
    unlabelled = dataclasses.replace(split, records=records)
    options = {"mesh": make_mesh(), "batch_size": 4}
    with pytest.raises(UserError, match="no patch of this split has a mask"):
        evaluate_checkpoint(workdir, unlabelled, loss_normalization="pixels", **options)
    output = tmp_path / "predictions"
    assert predict_checkpoint(workdir, unlabelled, output=output, **options) == 5
    for path in (workdir / "predictions").iterdir():
        assert (output / path.name).read_bytes() == path.read_bytes()


def test_two_patches_of_one_number_are_not_predicted_into_one_file(
    config, workdir, metrics, data_dir, tmp_path
):
    directory = dataset.dataset_directory(str(data_dir), "published")
    split = dataset.open_split(directory, "test")
    doubled = dataclasses.replace(split, records=[split.records[0]] * 2)
    with pytest.raises(UserError, match="two patches of the split 'test' have the number"):
        predict_checkpoint(workdir, doubled, make_mesh(), batch_size=4, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
