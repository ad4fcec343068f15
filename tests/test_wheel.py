"""The wheel: what is in it, and that it starts in an empty folder with nothing of the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import flair_jax
from flair_jax.cli.commands import COMMANDS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
SOURCES = ("flair_jax", "tfds_builder", "configs", "pyproject.toml", "README.md", "LICENSE")


def run(*command, cwd):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, check=False,
        capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, since setuptools leaves its folder `build` beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / "source" / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder]
    done = run(*command, folder / "source", cwd=folder)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def commands(wheel, tmp_path_factory):
    """The scripts of an environment with the wheel, which sees the libraries of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    command = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install"]
    done = run(*command, "--no-deps", "--no-index", wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    # A line of a .pth file adds a folder without the .pth files in it, so without the checkout.
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_every_file_is_in_it(wheel):
    expected = {
        str(path.relative_to(ROOT))
        for folder in ("flair_jax", "tfds_builder")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected |= {f"flair_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected


def test_the_commands_are_there(commands, tmp_path):
    done = run(commands / "flair-jax", "--version", cwd=tmp_path)
    assert done.stdout == f"flair-jax {flair_jax.__version__}\n"
    for name in COMMANDS:
        done = run(commands / "flair-jax", name, "--help", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    done = run(commands / "flair-jax", "train", "--config=baselin", cwd=tmp_path)
    assert (done.returncode, "did you mean baseline?" in done.stderr) == (2, True)
    old = [commands / "python", "-m", "flair_jax.main", "--config=baseline"]
    done = run(*old, f"--config.data_dir={tmp_path}", f"--workdir={tmp_path}/run", cwd=tmp_path)
    assert (done.returncode, "the data set is not built" in done.stderr) == (1, True)
