"""SIGKILL at any moment, and damage after it: the run ends as if it had never been disturbed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from damage import KINDS, damage, files

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
    metrics = json.loads((workdir / "evaluation/test/metrics.json").read_text())
    del metrics["provenance"]  # it names the command and the folder
    return (
        [line for line in numbers if len(line) > 1],
        metrics,
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


# --- Kills and damage ----------------------------------------------------------------------------

# Trains a tiny model for every line of its input, in a forked process: to import everything takes
# several times longer than to train.
SERVER = """
import json, os, sys, traceback
import tiny_model
from flair_jax import config as configuration
from flair_jax.errors import UserError
from flair_jax.training.loop import train_and_evaluate

def train(settings, workdir):
    tiny_model.install()
    config = configuration.default()
    config.update_from_flattened_dict(settings)
    try:
        train_and_evaluate(config, workdir)
    except UserError as error:
        print(f"error: {error}", flush=True)
        return 1
    except BaseException:
        traceback.print_exc()
        return 2
    return 0

for line in sys.stdin:
    settings, workdir, log = json.loads(line)
    child = os.fork()
    if child == 0:
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        status = train(settings, workdir)
        sys.stdout.flush()
        os._exit(status)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""
CHEAP = {
    "batch_size": 4, "num_epochs": 4, "log_every_steps": 1, "checkpoint_every_steps": 2,
    "augment": True, "predict_after_training": True, "tensorboard_patches": 0,
    "monitor": "val_miou", "learning_rate": 0.2,
}  # fmt: skip


class Server:
    """Runs trainings one after the other, each in a process that may be killed."""

    def __init__(self, data_dir):
        self._settings = CHEAP | {"data_dir": str(data_dir)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER], cwd=ROOT, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        )  # fmt: skip

    def train(self, workdir, kill_when=None):
        """Trains; returns the exit status, -9 after a kill, and the output."""
        log = workdir.with_suffix(".log")
        self._process.stdin.write(json.dumps([self._settings, str(workdir), str(log)]) + "\n")
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        if kill_when is not None:
            kill_when(child)
            os.kill(child, signal.SIGKILL)
        status = int(self._process.stdout.readline())
        return os.waitstatus_to_exitcode(status), log.read_text() if log.exists() else ""

    def close(self):
        self._process.communicate()


@pytest.fixture(scope="module")
def server(data_dir):
    server = Server(data_dir)
    yield server
    server.close()


@pytest.fixture(scope="module")
def undisturbed(server, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    status, output = server.train(workdir)
    assert status == 0, output
    return workdir


def saved(checkpoints):
    if not checkpoints.exists():
        return []
    return sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())


@pytest.mark.parametrize("seed", range(20))
def test_a_kill_and_damage_change_nothing_or_are_reported(server, undisturbed, tmp_path, seed):
    rng, workdir = random.Random(seed), tmp_path / "run"
    checkpoints = workdir / "checkpoints"
    step, delay = rng.choice(range(2, 16, 2)), rng.uniform(0, 0.2)

    def wait(child):
        deadline = time.monotonic() + 120
        while max(saved(checkpoints), default=0) < step and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(delay)

    status, output = server.train(workdir, wait)
    assert status == -signal.SIGKILL, output
    steps = saved(checkpoints)
    damaged = rng.choice([*steps, max(steps)])
    found = files(checkpoints / str(damaged))  # none if it was about to be deleted
    for path in rng.sample(found, min(len(found), rng.choice([1, 2, 4, len(found)]))):
        damage(path, rng.choice(list(KINDS)), seed)

    status, output = server.train(workdir)
    if status == 0:
        assert everything(workdir) == everything(undisturbed)
        return
    assert status == 1, output
    assert not (workdir / "evaluation").exists()
    error = output[output.index("error: ") :]
    if steps == [damaged]:
        assert "No checkpoint of this run can be restored" in error
    else:
        assert damaged == min(steps)
        assert f"checkpoints/{damaged}" in error
        assert "cannot be made again" in error
