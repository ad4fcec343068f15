import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import rasterio

from flair_jax import config as configuration
from flair_jax.data import synthetic
from flair_jax.errors import UserError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("made")
    assert synthetic.generate(out, patch_size=64, train=19, val=2, test=3) == 24
    return out


def digest(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()


def test_files_are_as_flairs(made):
    images, masks = (sorted(made.rglob(f"{kind}_*.tif")) for kind in ("IMG", "MSK"))
    assert (len(images), len(masks)) == (24, 24)
    metadata = json.loads((made / "flair-1_metadata_aerial.json").read_text())
    values = set()
    for image in images:
        with rasterio.open(image) as raster:
            assert (raster.count, raster.shape, raster.dtypes[0]) == (5, (64, 64), "uint8")
            assert raster.crs.to_epsg() == 2154
            entry = metadata[image.stem]
            x, y = raster.xy(31.5, 31.5)
        assert (x, y) == pytest.approx((entry["patch_centroid_x"], entry["patch_centroid_y"]))
        assert image.parts[-4:-2] == (entry["domain"], entry["zone"])
    for mask in masks:
        with rasterio.open(mask) as raster:
            values |= set(np.unique(raster.read(1)).tolist())
    assert values == set(range(1, 20))


def test_same_seed_same_files(made, tmp_path):
    synthetic.generate(tmp_path / "again", patch_size=64, train=19, val=2, test=3)
    synthetic.generate(tmp_path / "other", patch_size=64, train=19, val=2, test=3, seed=1)
    assert digest(tmp_path / "again") == digest(made)
    assert digest(tmp_path / "other") != digest(made)


def test_it_is_known_to_be_synthetic(made, tmp_path):
    assert json.loads((made / synthetic.METADATA_FILE).read_text())["synthetic"] is True
    synthetic.generate(str(tmp_path), patch_size=64, train=1, val=1, test=1)  # a path as text
    assert digest(tmp_path) != digest(made)
    with rasterio.open(next(tmp_path.rglob("IMG_*.tif"))) as raster:
        assert raster.tags()["SYNTHETIC"] == "YES"


def test_too_small():
    with pytest.raises(UserError, match="at least 64 pixels wide, not 32"):
        synthetic.generate("unused", patch_size=32)


def test_prepare_makes_the_data_set_once(tmp_path):
    config = configuration.default()
    config.data_dir = str(tmp_path)
    config.synthetic.update({"patch_size": 64, "train": 2, "val": 1, "test": 1})
    prepared = synthetic.prepare(config)
    info = next(tmp_path.glob("*/built/flair/published/1.1.0/dataset_info.json"))
    assert info.is_relative_to(prepared.data_dir)
    assert not list(tmp_path.glob("*/source*"))  # the GeoTIFFs are not kept
    written = info.stat().st_mtime_ns
    assert synthetic.prepare(config).data_dir == prepared.data_dir
    assert synthetic.prepare(prepared).data_dir == prepared.data_dir
    assert info.stat().st_mtime_ns == written


def test_command(tmp_path):
    flags = [f"--out={tmp_path}", "--patch_size=64"]
    command = [sys.executable, "-m", "flair_jax", "synthetic", *flags]
    done = subprocess.run(
        [*command, "--train=1", "--val=1", "--test=1"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("3 patches written")
