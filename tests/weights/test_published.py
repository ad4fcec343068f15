"""Published weights: folders and files, what is known of their models, and errors."""

import json
import subprocess
import sys

import hugging_face_server
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import flair_jax
from flair_jax import config as configuration
from flair_jax.data.bands import BANDS
from flair_jax.errors import UserError
from flair_jax.models.functional import split_model
from flair_jax.models.spec import ModelSpec
from flair_jax.models.unet import UNet
from flair_jax.runtime import checksums
from flair_jax.weights import published, torch_weights

INC = "FLAIR-INC_rgbi_15cl_resnet34-unet_weights.safetensors"


def tensors(bands, outputs):
    _, *arrays = split_model(UNet(bands, outputs, rngs=nnx.Rngs(0)))
    return torch_weights.state_dict_of(*arrays)


@pytest.fixture(scope="module")
def flair_inc(tmp_path_factory):
    """A folder with a FLAIR-INC file, as its repository on the hub has it."""
    folder = tmp_path_factory.mktemp("FLAIR-INC")
    named = {f"model.seg_model.{k}": v for k, v in tensors(4, 19).items()}
    weights = np.array([1.0] * 12 + [0, 0, 1, 0, 0, 1, 0], np.float32)
    save_file(named | {"criterion.weight": weights}, folder / INC)
    (folder / "README.md").write_text("a card")
    return folder


def test_a_flair_inc_file_and_the_folder_of_it(flair_inc):
    for path in (flair_inc, flair_inc / INC):
        model = flair_jax.load_model(path)
        assert model.spec.bands == BANDS[:4]
        assert model.spec.normalization == "custom"
        assert [c.weight for c in model.spec.nomenclature.classes][-5:] == [1, 0, 0, 1, 0]
        assert model.step == 0
        np.testing.assert_array_equal(
            model.params["segmentation_head.0.bias"],
            tensors(4, 19)["segmentation_head.0.bias"],
        )


def test_what_is_not_known_is_not_guessed(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(tensors(4, 7), path)
    for given in (path, tmp_path):
        with pytest.raises(
            UserError,
            match=f"normalisation of {path}, which has 4 input bands and 7 classes: "
            f"make a checkpoint of it with flair-jax import-torch --weights={path} --out=DIR "
            "--bands=NAMES --nomenclature=NAME --normalization=NAME",
        ):
            flair_jax.load_model(given)


def test_classes_that_a_name_promises_and_the_file_has_not(tmp_path):
    save_file(tensors(4, 15), tmp_path / INC)
    with pytest.raises(UserError, match=r"15 outputs .* give flair-jax import-torch their --nomen"):
        flair_jax.load_model(tmp_path)


def test_folders_that_have_not_one_file(tmp_path):
    (tmp_path / "a.pth").touch()
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match=r"2 files of weights: give one of .*/a\.pth, .*/model\.s"):
        flair_jax.load_model(tmp_path)
    with pytest.raises(UserError, match=r"a\.pth is empty"):
        flair_jax.load_model(tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"there is no checkpoint at .* or a published model: hf"):
        flair_jax.load_model(tmp_path / "missing")
    (tmp_path / "note.txt").write_text("no weights")
    with pytest.raises(UserError, match="is not a file of PyTorch weights"):
        flair_jax.load_model(tmp_path / "note.txt")


def test_other_networks_are_named(tmp_path):
    encoder = {k: v for k, v in tensors(3, 13).items() if k.startswith("encoder.")}
    save_file(encoder, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="is a bare ResNet34, which predicts no land cover"):
        flair_jax.load_model(tmp_path)


def test_weights_of_another_spec_are_refused(tmp_path):
    ModelSpec.from_config(configuration.default(), (64, 64)).save(tmp_path)
    save_file(tensors(4, 13), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="misshapen: encoder"):
        flair_jax.load_model(tmp_path)
    (tmp_path / "model.json").write_text('{"model_type": "unet"}')
    with pytest.raises(UserError, match=r"model\.json is not a model spec"):
        flair_jax.load_model(tmp_path)


def test_checkpoints_are_told_from_published_weights(tmp_path):
    assert published.is_published("hf://organisation/name")
    assert not published.is_published("gs://bucket/run")
    assert not published.is_published(tmp_path / "missing")
    run = tmp_path / "run"
    (run / "checkpoints" / "12").mkdir(parents=True)
    (run / "checkpoints" / "model.json").touch()
    for folder in (run, run / "checkpoints", run / "checkpoints" / "12"):
        (folder / "model.safetensors").touch()  # somebody's export into it
    assert not published.is_published(run)
    assert not published.is_published(run / "checkpoints")


# Prints what the models of its arguments are, or why they cannot be had.
DESCRIBE = """
import json, sys
import flair_jax
from flair_jax.errors import UserError
from flair_jax.runtime import checksums
for path in sys.argv[1:]:
    try:
        model = flair_jax.load_model(path)
        arrays = {**model.params, **model.batch_stats}
        bands, count = model.spec.bands, len(model.spec.nomenclature)
        print(json.dumps([bands, count, model.spec.normalization, checksums.of_arrays(arrays)]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def test_models_of_the_hub(flair_inc, tmp_path):
    pytest.importorskip("huggingface_hub")
    weights = (flair_inc / INC).read_bytes()
    ModelSpec.from_config(configuration.default(), (64, 64)).save(tmp_path)
    ours = {"model.json": (tmp_path / "model.json").read_bytes(), "model.safetensors": weights}
    repositories = {
        "IGNF/a": {"README.md": b"", INC: weights},
        "IGNF/FLAIR-INC_rgbi_15cl_resnet34-unet": {"model.safetensors": weights},
        "o/unknown": {"model.safetensors": weights},
        "o/two": {"a.pth": b"", "b.safetensors": b""},
        "o/misfit": ours,
    }
    with hugging_face_server.serve(repositories) as (endpoint, requests):
        done = subprocess.run(
            [sys.executable, "-c", DESCRIBE, *(f"hf://{name}" for name in repositories)],
            env=hugging_face_server.environment(endpoint, tmp_path / "cache"),
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines()]
    model = flair_jax.load_model(flair_inc)
    crc = checksums.of_arrays({**model.params, **model.batch_stats})
    assert found[:2] == [[["red", "green", "blue", "nir"], 19, "custom", crc]] * 2
    assert "flair-jax import-torch --weights=hf://o/unknown/model.safetensors --out=D" in found[2]
    assert "2 files of weights: give one of hf://o/two/a.pth, hf://o/two/b.saf" in found[3]
    assert "hf://o/misfit/model.safetensors does not fit the model" in found[4]
    assert not [r for r in requests if "a.pth" in r]
