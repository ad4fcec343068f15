import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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


def test_the_old_flag_of_the_ema_is_named():
    done = run("--mode=eval", "--workdir=/nowhere", "--average")
    assert (done.returncode, done.stderr) == (1, "error: --average is now called --ema\n")


def test_keys_of_version_0_1_are_named():
    done = run("--config=configs/baseline.py", "--config.plateau.min_rate=1e-6")
    assert done.returncode == 1
    assert done.stderr == (
        "error: config.plateau.min_rate on the command line is now called config.plateau.min_lr\n"
    )
