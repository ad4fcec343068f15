import os
import shutil
import tempfile
from pathlib import Path

# Several tests and their subprocesses compile the same network: once is enough.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    os.path.join(tempfile.gettempdir(), f"flair_jax_tests_{os.getuid()}"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # the small ones too
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest
import tiny_model as tiny
from download import make

from flair_jax.data import synthetic
from tfds_builder.build import build


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A built synthetic data set: 16 train, 4 val and 5 test patches of 64 x 64."""
    root = tmp_path_factory.mktemp("data")
    synthetic.generate(root / "source", patch_size=64, train=16, val=4, test=5)
    build(root / "source", data_dir=root / "built", num_workers=1, progress=False)
    return root / "built"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A synthetic download: 12 train, 4 val and 4 test patches of 64 x 64."""
    return make(tmp_path_factory.mktemp("doctor") / "source")


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.fixture(scope="module")
def tiny_model():
    """Has every spec build a network of two convolutions in place of the U-Net."""
    with tiny.installed():
        yield
