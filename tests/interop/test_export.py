"""A model exported to ONNX and to StableHLO gives what it gives here."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from flair_jax import config as configuration
from flair_jax.errors import UserError
from flair_jax.inference.predictor import Model
from flair_jax.interop import export
from flair_jax.models.functional import split_model
from flair_jax.models.spec import ModelSpec
from flair_jax.models.unet import UNet
from flair_jax.runtime.sharding import make_mesh

CASES = {
    "5 bands": {},
    "rgb, custom": {"bands": ("red", "green", "blue"), "normalization": "custom"},
    "metadata by channels": {"metadata.use": True, "metadata.fusion": "channels"},
}


def made(changes, size=64):
    """A model with statistics other than 0 and 1, which would hide faults."""
    config = configuration.default()
    config.update_from_flattened_dict(changes)
    spec = dataclasses.replace(ModelSpec.from_config(config, (size, size)), pixel_size=0.2)
    model = UNet(
        len(spec.bands), len(spec.nomenclature), rngs=nnx.Rngs(0),
        metadata_features=45 if spec.takes_metadata else 0,
        **({"fusion": spec.metadata_fusion} if spec.takes_metadata else {}),
    )  # fmt: skip
    _, params, batch_stats = split_model(model)
    rng = np.random.default_rng(1)
    batch_stats = {
        name: rng.uniform(0.5, 1.5, x.shape).astype(np.float32) for name, x in batch_stats.items()
    }
    params = {
        name: x if name.endswith("kernel") else x + rng.normal(0, 0.2, x.shape).astype(np.float32)
        for name, x in params.items()
    }
    return Model("", make_mesh(), spec, params, batch_stats, 0)


def inputs(model, *shape):
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (*shape, len(model.spec.bands)), np.uint8)
    metadata = rng.normal(size=(shape[0], 45)).astype(np.float32)
    return (image, metadata) if model.spec.takes_metadata else (image,)


@pytest.fixture(scope="module", params=CASES)
def model(request):
    return made(CASES[request.param])


@pytest.fixture(scope="module")
def runtime():
    return pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


def in_onnx(runtime, path, image, *metadata):
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {"image": np.ascontiguousarray(image.transpose(0, 3, 1, 2))}
    if metadata:
        feed["metadata"] = metadata[0]
    (result,) = session.run(None, feed)
    return result.transpose(0, 2, 3, 1), session


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 32, 96)])
def test_onnx_has_the_same_probabilities_for_any_size(model, runtime, shape, tmp_path):
    path = tmp_path / "model.onnx"
    export.write_onnx(path, model.spec, model.params, model.batch_stats, result="probabilities")
    given = inputs(model, *shape)
    found, session = in_onnx(runtime, path, *given)
    expected = np.asarray(model(*given))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert (found.argmax(-1) == expected.argmax(-1)).mean() > 0.999
    values = session.get_modelmeta().custom_metadata_map
    assert json.loads(values["classes"]) == model.spec.nomenclature.names
    assert json.loads(values["bands"]) == list(model.spec.bands)


def test_onnx_of_normalised_images(runtime, tmp_path):
    model = made(CASES["rgb, custom"])
    path = tmp_path / "model.onnx"
    arrays = model.spec, model.params, model.batch_stats
    export.write_onnx(path, *arrays, input="float32")
    (image,) = inputs(model, 1, 32, 32)
    normalised = (image - np.float32(model.spec.means)) / np.float32(model.spec.stds)
    logits, _ = in_onnx(runtime, path, normalised.astype(np.float32))
    found = np.asarray(jax.nn.softmax(logits))
    np.testing.assert_allclose(found, np.asarray(model(image)), atol=2e-5)


def test_onnx_for_deepness(runtime, tmp_path):
    """The plug-in divides by 255, then normalises by what the file's metadata holds."""
    model = made(CASES["rgb, custom"])
    path = tmp_path / "model.onnx"
    export.write_onnx(path, model.spec, model.params, model.batch_stats, deepness=True)
    (image,) = inputs(model, 1, 64, 64)
    _, session = in_onnx(runtime, path, image.astype(np.float32))
    values = {
        key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()
    }
    scaled = image.astype(np.float32) / 255 - np.float32(values["standardization_mean"])
    scaled /= np.float32(values["standardization_std"])
    found, _ = in_onnx(runtime, path, scaled.astype(np.float32))
    np.testing.assert_allclose(found, np.asarray(model(image)), atol=2e-5)
    assert values["model_type"] == "Segmentor"
    assert values["resolution"] == 20
    assert values["tiles_size"] == 64
    assert values["class_names"]["0"] == model.spec.nomenclature.names[0]
    other = made(CASES["metadata by channels"])
    with pytest.raises(UserError, match="Deepness feeds no metadata"):
        export.write_onnx(path, other.spec, other.params, other.batch_stats, deepness=True)


SCRIPT = """
import sys
sys.modules["flair_jax"] = None  # an import of it would fail
import jax, numpy as np, safetensors.numpy
program = jax.export.deserialize(bytearray(open("program.stablehlo", "rb").read()))
weights = safetensors.numpy.load_file("weights.safetensors")
assert set(program.platforms) == {"cpu", "cuda", "tpu"}
given = dict(np.load("given.npz"))
np.save("found.npy", program.call(weights, given))
"""


def test_stablehlo_runs_without_this_package(model, tmp_path):
    folder = tmp_path / "program"
    export.write_stablehlo(folder, model.spec, model.params, model.batch_stats)
    given = inputs(model, 2, 32, 64)
    np.savez(folder / "given.npz", **dict(zip(("image", "metadata"), given, strict=False)))
    subprocess.run([sys.executable, "-c", SCRIPT], cwd=folder, check=True)
    found, expected = np.load(folder / "found.npy"), np.asarray(model(*given))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert ModelSpec.load(folder) == model.spec


@pytest.mark.parametrize(
    ("format", "output", "options", "message"),
    [
        (
            "torch",
            "a.pth",
            {"deepness": True},
            "--deepness are of --format=onnx, and not of --form",
        ),
        (
            "stablehlo",
            "a",
            {"input": "float32"},
            "are of --format=onnx, and not of --format=stable",
        ),
        ("hub", "a", {"result": "classes"}, "are of --format=onnx, and not of --format=hub"),
        ("onnx", "a.onnx", {"deepness": True, "result": "classes"}, "--deepness writes probabilit"),
        (
            "onnx",
            "a.onnx",
            {"license": "MIT"},
            "--license is of --format=hub, and not of --format=",
        ),
        ("onnx", "a.pth", {}, r"--output=.*a.pth: --format=onnx expects .onnx"),
        ("stablehlo", "a.mlir", {}, "expects no suffix, as of a folder"),
        ("onnx", "there.onnx", {}, r"there.onnx exists: give another --output, or remove it"),
    ],
)
def test_what_is_refused_before_the_weights_are_read(tmp_path, format, output, options, message):
    (tmp_path / "there.onnx").write_text("")
    with pytest.raises(UserError, match=message):
        export.export("no/checkpoint", str(tmp_path / output), format, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="no/checkpoint"):
        export.export("no/checkpoint", str(tmp_path / "a.onnx"), "onnx")
    assert list(tmp_path.iterdir()) == []
