import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flair_jax import main

ROOT = Path(__file__).parents[1]
HEAVY = {
    "PIL", "array_record", "flax", "grain", "jax", "jaxlib", "jinja2", "matplotlib", "numpy",
    "optax", "orbax", "rasterio", "tensorboardX", "tensorflow", "tensorflow_datasets",
}  # fmt: skip


def run(*flags, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "flair_jax.main", *flags], capture_output=True, text=True, cwd=cwd,
        check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--config=configs/baseline.py", "--config.learning_rat=1"],
            "unknown configuration key config.learning_rat on the command line; did you mean "
            "config.learning_rate?",
        ),
        (["--config=configs/baseline.py", "--config.batch_size=many"], "batch_size"),
        (["--config=configs/baseline.py", "--mode=test"], "--mode=test: value should be one of"),
        (["--config=configs/baseline.py", "--config.nomenclature=ocsge"], "unknown nomenclature"),
        (["--config=configs/none.py"], "there is no configuration file configs/none.py"),
        ([], "--config=FILE is needed"),
        (
            ["--config=configs/baseline.py", "--config.data_dir=/nowhere"],
            "--source=DOWNLOAD_FOLDER",
        ),
        (["--mode=eval", "--workdir=/nowhere"], "is not the workdir of a run"),
        (
            ["--config=configs/baseline.py", "--submission=a.zip"],
            "--submission and --overlays belong to --mode=predict",
        ),
    ],
)
def test_mistakes_end_with_a_message(flags, expected, tmp_path):
    done = run(*flags, *([] if "--mode=eval" in flags else [f"--workdir={tmp_path / 'run'}"]))
    assert done.returncode == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_workdir_that_cannot_be_written(data_dir, tmp_path):
    (tmp_path / "file").write_text("")
    done = run(
        "--config=configs/baseline.py", f"--config.data_dir={data_dir}", "--config.batch_size=2",
        f"--workdir={tmp_path / 'file' / 'run'}",
    )  # fmt: skip
    assert done.returncode == 1
    assert "cannot be written to" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("argv", "added"),
    [
        (["main", "--workdir=runs/a", "--mode=eval"], True),
        (["main", "--mode=predict", "--workdir=runs/a"], True),
        (["main", "--workdir=runs/a"], False),
        (["main", "--workdir=runs/a", "--mode=eval", "--config=configs/toy.py"], False),
    ],
)
def test_a_workdir_brings_its_configuration(argv, added, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "config.json").write_text("{}")
    changed = main.with_saved_config(argv)
    assert (len(changed) > len(argv)) == added
    if added:
        assert changed[1].startswith("--config=")
        assert changed[1].endswith("saved_config.py:runs/a")


@pytest.mark.parametrize("command", ["main", "detect", "train_compile"])
def test_help_imports_nothing_heavy(command):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"flair_jax.{command}", "--help"],
        capture_output=True, text=True, cwd=ROOT, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert command in done.stdout
    imported = set(re.findall(r"^import time:.*\| +([^.\s]+)", done.stderr, re.MULTILINE))
    assert "flair_jax" in imported  # it is the list of what was imported
    assert not imported & HEAVY
