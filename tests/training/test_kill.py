"""SIGKILL at any moment, also within a save: the run ends as if it had never been disturbed."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
KILLS = 12
SETTINGS = {
    "batch_size": 4, "num_epochs": 8, "log_every_steps": 1, "checkpoint_every_steps": 1,
    "augment": True, "predict_after_training": True, "tensorboard_patches": 0,
    "report_after_training": False,
}  # fmt: skip


def start(data_dir, workdir):
    settings = SETTINGS | {"data_dir": data_dir}
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "flair_jax.main", "--config=configs/baseline.py", *flags,
         f"--workdir={workdir}"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(data_dir, workdir):
    process = start(data_dir, workdir)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return output


def wait_within_a_save(checkpoints, process):
    """Waits for one whole save, then until the next is half done; whether that came."""
    before, whole = names(checkpoints), False
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        now = names(checkpoints)
        whole = whole or any(name.isdigit() for name in now - before)
        if whole and any("tmp" in name for name in now):
            return True
        time.sleep(0.001)
    return False


def names(folder):
    return set(os.listdir(folder)) if folder.exists() else set()


def everything(workdir):
    """Losses, scores and predictions: all that must not depend on the kills."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    kept = ("step", "loss", "train_loss", "val_loss", "val_miou", "learning_rate")
    numbers = [{key: line[key] for key in kept if key in line} for line in lines]
    return (
        [line for line in numbers if len(line) > 1],
        json.loads((workdir / "evaluation/test/metrics.json").read_text()),
        {path.name: path.read_bytes() for path in (workdir / "predictions").iterdir()},
    )


def wait_for_the_first_step(process):
    for line in process.stdout:
        if line.startswith("the training step was compiled"):
            return


def test_twelve_kills_change_nothing(data_dir, tmp_path):
    undisturbed, workdir = tmp_path / "undisturbed", tmp_path / "killed"
    finish(data_dir, undisturbed)
    moments = random.Random(0)
    within_a_save = 0
    for number in range(KILLS):
        process = start(data_dir, workdir)
        if number % 4 == 0:  # also while it starts and restores
            time.sleep(moments.uniform(1, 10))
        else:
            wait_for_the_first_step(process)
            if number % 4 == 1:
                time.sleep(moments.uniform(0, 3))
            else:
                within_a_save += wait_within_a_save(workdir / "checkpoints", process)
        assert process.poll() is None, "the run was over before it was killed often enough"
        process.kill()
        process.communicate()
    assert within_a_save >= 3
    assert "resuming from step" in finish(data_dir, workdir)
    assert everything(workdir) == everything(undisturbed)
