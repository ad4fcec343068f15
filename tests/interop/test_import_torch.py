import subprocess
import sys

import numpy as np
import pytest
from flax import nnx
from golden_arrays import golden_model, state_dict
from safetensors.numpy import load_file, save_file

import flair_jax
from flair_jax.data import input_pipeline
from flair_jax.errors import UserError
from flair_jax.evaluation.evaluate import evaluate_checkpoint
from flair_jax.inference.loading import find
from flair_jax.interop.export_torch import export_weights
from flair_jax.interop.import_torch import import_weights
from flair_jax.models.unet import UNet
from flair_jax.runtime.sharding import make_mesh

OTHER = {"bands": ("red", "green", "blue", "nir", "height"), "nomenclature": "baseline"}


def write(path, channels, outputs, *, prefix="", **more):
    """Random weights of the reference's form as a .safetensors file."""
    weights = state_dict(UNet(channels, outputs, rngs=nnx.Rngs(0)))
    weights = {prefix + key: value for key, value in weights.items()} | more
    save_file(weights, path)
    return str(path)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The golden 3-band, 19-class model, under the name and keys of a FLAIR-INC file."""
    folder = tmp_path_factory.mktemp("weights")
    disabled = {"criterion.weight": np.array([1.0] * 15 + [0.0] * 4, np.float32)}
    path = folder / "FLAIR-INC_rgb_15cl_resnet34-unet_weights.safetensors"
    write(path, 3, 19, prefix="model.seg_model.", **disabled)
    return import_weights(str(path), str(folder / "run")), folder / "run"


def test_flair_inc_card_comes_from_name_and_file(imported):
    spec, _ = imported
    assert spec.bands == ("red", "green", "blue")
    assert spec.normalization == "custom"
    assert spec.means == (105.08, 110.87, 101.82)
    assert spec.nomenclature.weights.tolist() == [1] * 15 + [0] * 4
    assert spec.nomenclature.labels[1:20].tolist() == list(range(19))
    assert not spec.takes_metadata


def test_loaded_model_normalises_and_gives_probabilities(imported):
    spec, run = imported
    model = flair_jax.load_model(run)
    assert (model.spec, model.step) == (spec, 0)
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    probabilities = np.asarray(model(image))
    assert probabilities.shape == (1, 64, 64, 19)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)

    normalised = (image - np.float32(spec.means)) / np.float32(spec.stds)
    logits = np.asarray(golden_model(3, 19)(normalised))
    expected = np.exp(logits - logits.max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-3)  # logits reach 100


def test_wrong_calls_are_refused(imported):
    model = flair_jax.load_model(imported[1])
    with pytest.raises(UserError, match=r"\(N, H, W, 3\) of uint8 .* found .* of float32"):
        model(np.zeros((1, 64, 64, 3), np.float32))
    with pytest.raises(UserError, match=r"bands red, green, blue; found \(1, 64, 64, 5\) of uint8"):
        model(np.zeros((1, 64, 64, 5), np.uint8))
    with pytest.raises(UserError, match="this model takes no metadata"):
        model(np.zeros((1, 64, 64, 3), np.uint8), np.zeros((1, 45)))


def test_export_gives_the_same_tensors_back(imported, tmp_path):
    _, run = imported
    count = export_weights(str(run), str(tmp_path / "out.safetensors"))
    exported = load_file(tmp_path / "out.safetensors")
    original = state_dict(UNet(3, 19, rngs=nnx.Rngs(0)))
    assert count == len(exported) == len(original) + 46  # and the counters of batches
    for key, value in original.items():
        np.testing.assert_array_equal(exported[key], value)
    with pytest.raises(UserError, match=r"out.safetensors exists"):
        export_weights(str(run), str(tmp_path / "out.safetensors"))
    with pytest.raises(UserError, match=r"expected a name that ends in .safetensors, .pth or .pt"):
        export_weights(str(run), str(tmp_path / "out.h5"))


@pytest.mark.parametrize(
    ("name", "choices", "expected"),
    [
        ("w", {}, r"so --bands and --normalization and --nomenclature must be given: .* 5 input"),
        (
            "w",
            {"normalization": "scaling", **OTHER, "bands": ("red",)},
            "weights have 5",
        ),
        ("w", {"normalization": "scaling", **OTHER, "nomenclature": "full"}, "has 19 classes, but"),
        ("FLAIR-INC_rgbie_15cl_x", {}, "13 outputs and no criterion.weight for 19 classes"),
        ("FLAIR-INC_rgb_12cl_x", {"nomenclature": "baseline"}, "but the weights have 5"),
    ],
)
def test_nothing_is_guessed(tmp_path, name, choices, expected):
    path = write(tmp_path / f"{name}.safetensors", 5, 13)
    with pytest.raises(UserError, match=expected):
        import_weights(path, str(tmp_path / "run"), **choices)
    assert not (tmp_path / "run").exists()


def test_file_of_something_else(tmp_path):
    save_file({"a": np.ones(3)}, tmp_path / "w.safetensors")
    with pytest.raises(
        UserError, match=r"is an unknown network, with the tensors a\. What can be loaded: a U-Net"
    ):
        import_weights(str(tmp_path / "w.safetensors"), str(tmp_path / "run"))


def test_commands(tmp_path):
    path = write(tmp_path / "w.safetensors", 5, 13)
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "flair_jax", "import-torch", f"--weights={path}", f"--out={out}",
        "--bands=red,green,blue,nir,height", "--nomenclature=baseline",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert "--normalization must be given" in done.stderr
    command.append("--normalization=scaling")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "classes        13 outputs, 12 enabled" in done.stdout
    assert find(out)[0] == out / "checkpoints"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "checkpoints exists: give another --out" in done.stderr
    command = [sys.executable, "-m", "flair_jax", "export-torch", f"--checkpoint={out}"]
    done = subprocess.run(
        [*command, f"--out={tmp_path / 'o.safetensors'}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("278 tensors in ")


def test_a_bare_resnet_is_no_model(tmp_path):
    weights = state_dict(UNet(3, 13, rngs=nnx.Rngs(0)))
    weights = {
        key.removeprefix("encoder."): value
        for key, value in weights.items()
        if key.startswith("encoder.")
    }
    save_file(weights, tmp_path / "resnet34.safetensors")
    with pytest.raises(UserError, match=r"bare ResNet.*--config.encoder_weights="):
        import_weights(str(tmp_path / "resnet34.safetensors"), str(tmp_path / "run"), **OTHER)


def test_a_model_of_three_bands_scores_patches_of_five(imported, data_dir):
    _, run = imported
    directory = input_pipeline.dataset_directory(str(data_dir), "published")
    split = input_pipeline.open_split(directory, "test")
    metrics = evaluate_checkpoint(
        run, split, make_mesh(), batch_size=5, loss_normalization="pixels"
    )
    model = flair_jax.load_model(run)
    patches = [split.records[i] for i in range(5)]
    classes = model(np.stack([p["image"][..., :3] for p in patches])).argmax(-1)
    labels = np.stack([p["mask"] for p in patches]) - 1
    assert metrics["num_patches"] == 5
    expected = np.zeros((19, 19), int)
    np.add.at(expected, (labels, classes), 1)
    np.testing.assert_array_equal(metrics["confusion_matrix"], expected)
