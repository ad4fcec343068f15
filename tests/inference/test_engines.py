"""OpenVINO and ONNX Runtime give what JAX gives, with all that detection does around them."""

import subprocess
import sys

import jax
import numpy as np
import pytest
import rasterio
from detecting import detect, patches, read, write

from flair_jax.errors import UserError
from flair_jax.inference import engines, preparation
from flair_jax.inference.options import Options
from flair_jax.inference.preparation import _pixels_on_cpu
from flair_jax.runtime.preemption import Preempted
from flair_jax.runtime.sharding import make_mesh

INSTALLED = [name for name in engines.ENGINES[2:] if engines.is_installed(name)]
each_engine = pytest.mark.parametrize("engine", INSTALLED)
PRODUCTS = {
    "classes": {},
    "measures": {"probabilities": True, "confidence": True},
    "hann": {"blend": "hann", "probabilities": True},
    "tta": {"tta": True, "probabilities": True, "tile": 128, "margin": 16, "batch_size": 1},
    "chosen tiles": {"tile": 0, "margin": -1, "batch_size": 0},
}


@pytest.fixture(scope="module")
def by_jax(model, tmp_path_factory):
    """A raster, and a function: options -> the folder with JAX's results."""
    folder = tmp_path_factory.mktemp("jax")
    path = write(folder / "in.tif", patches(150, 140))

    def detected(name):
        if not (folder / f"{name}.tif").exists():
            detect(model, path, folder / f"{name}.tif", **PRODUCTS[name])
        return folder

    return path, detected


@each_engine
@pytest.mark.parametrize("name", PRODUCTS)
def test_an_engine_gives_the_classes_and_measures_of_jax(model, by_jax, tmp_path, engine, name):
    path, detected = by_jax
    options = PRODUCTS[name] | {"engine": engine}
    detect(model, path, tmp_path / f"{name}.tif", **options)
    expected = detected(name)
    with rasterio.open(tmp_path / f"{name}.tif") as raster:
        assert raster.tags()["ENGINE"].startswith(engine)
    classes, found = (read(folder / f"{name}.tif")[0] for folder in (expected, tmp_path))
    assert (classes == found).mean() > 0.999
    assert len(np.unique(classes)) > 2
    for product in ("probabilities", "confidence"):
        if options.get(product):
            of_both = [read(f / f"{name}_{product}.tif").astype(int) for f in (expected, tmp_path)]
            np.testing.assert_allclose(*of_both, atol=1)


@pytest.mark.skipif("openvino" not in INSTALLED, reason="openvino is not installed")
def test_bfloat16_differs_little(model, by_jax, tmp_path):
    path, detected = by_jax
    options = {"engine": "openvino", "precision": "bfloat16", "probabilities": True}
    detect(model, path, tmp_path / "map.tif", **options)
    expected, found = (
        read(p).astype(int)
        for p in (detected("measures") / "measures_probabilities.tif",
                  tmp_path / "map_probabilities.tif")
    )  # fmt: skip
    assert np.abs(expected - found).mean() < 1
    with rasterio.open(tmp_path / "map.tif") as raster:
        assert raster.tags()["ENGINE"].endswith(", bfloat16")


@each_engine
def test_an_interrupted_detection_resumes_to_the_same_bytes(
    model, by_jax, tmp_path, engine, monkeypatch
):
    path, _ = by_jax
    whole = detect(model, path, tmp_path / "whole.tif", engine=engine)[0]
    output = tmp_path / "map.tif"
    calls = []

    def stopping(name, *arguments):
        run = made(name, *arguments)

        def engine(image):
            calls.append(len(image))
            if len(calls) == 7:
                raise Preempted("stopped")
            return run(image)

        return engine

    made = preparation._engine
    monkeypatch.setattr(preparation, "_engine", stopping)
    with pytest.raises(Preempted, match="rows of tiles"):
        detect(model, path, output, engine=engine, batch_size=1)
    before = len(calls)
    detect(model, path, output, engine=engine, batch_size=1, resume=True)
    assert len(calls) - before == 12  # the finished row is not computed again
    np.testing.assert_array_equal(read(output), read(whole))


@pytest.mark.skipif("openvino" not in INSTALLED, reason="openvino is not installed")
def test_openvino_sends_no_telemetry():
    code = """
import multiprocessing, sys
multiprocessing.Process.start = None  # what it would call
from flair_jax.inference import engines
engines._openvino().Core()
assert not any("openvino_telemetry" in name for name in sys.modules)
"""
    subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-c", code], check=True)


def test_choice(monkeypatch):
    mesh = make_mesh(jax.devices("cpu")[:1])
    monkeypatch.setattr(engines, "is_installed", lambda name: name == "openvino")
    assert engines.choose("auto", mesh, "float32") == ("openvino", "")
    assert engines.choose("jax", mesh, "float32") == ("jax", "")
    with pytest.raises(UserError, match=r"--engine=onnxruntime is not installed: pip install"):
        engines.choose("onnxruntime", mesh, "float32")
    monkeypatch.setattr(engines, "is_installed", lambda name: False)
    name, note = engines.choose("auto", mesh, "float32")
    assert name == "jax"
    assert "pip install 'flair-jax[cpu]'" in note


def test_onnx_runtime_has_float32_only(model, by_jax, tmp_path):
    if "onnxruntime" not in INSTALLED:
        pytest.skip("onnxruntime is not installed")
    options = {"engine": "onnxruntime", "precision": "bfloat16"}
    with pytest.raises(UserError, match="float32 only, not in bfloat16: give --precision=float32"):
        detect(model, by_jax[0], tmp_path / "map.tif", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["jax", "openvino", "onnxruntime"])
def test_more_memory_gives_larger_tiles(name):
    pixels = [engines.pixels_within(gb, name, "float32", 0) for gb in (1.5, 2, 4)]
    assert pixels == sorted(pixels)
    assert pixels[1] > 1 << 20
    assert engines.pixels_within(0.5, name, "float32", 0) == 0
    assert engines.pixels_within(2, name, "float32", 208) < pixels[1]


def test_what_is_kept_of_wide_blended_rasters_counts():
    def pixels(width, **options):
        return _pixels_on_cpu("jax", "float32", Options(blend="hann", **options), 13, width)

    assert pixels(30_000) < pixels(3_000)
    assert pixels(150_000) == 512**2  # the smallest tile, though it takes more than the default
    assert pixels(150_000, memory=2.0) < 512**2  # an error, as the limit was asked for
    assert pixels(30_000, memory=2.0) == pixels(30_000)
