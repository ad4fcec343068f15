import json
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx
from golden_arrays import golden_model, state_dict
from safetensors.numpy import load_file, save_file

import flair_jax
from flair_jax import config as configuration
from flair_jax.data import dataset
from flair_jax.errors import UserError
from flair_jax.evaluation.evaluate import evaluate_checkpoint
from flair_jax.inference.loading import find, save_model
from flair_jax.interop.export import export
from flair_jax.interop.import_torch import import_weights
from flair_jax.models.functional import split_model
from flair_jax.models.spec import ModelSpec
from flair_jax.models.unet import UNet
from flair_jax.runtime.sharding import make_mesh
from flair_jax.training.initialization import initial_weights

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
    export(str(run), str(tmp_path / "out.safetensors"), "torch")
    exported = load_file(tmp_path / "out.safetensors")
    original = state_dict(UNet(3, 19, rngs=nnx.Rngs(0)))
    assert len(exported) == len(original) + 46  # and the counters of batches
    for key, value in original.items():
        np.testing.assert_array_equal(exported[key], value)
    with pytest.raises(UserError, match=r"out.safetensors exists"):
        export(str(run), str(tmp_path / "out.safetensors"), "torch")
    with pytest.raises(UserError, match=r"=torch expects .safetensors or .pth or .pt"):
        export(str(run), str(tmp_path / "out.h5"), "torch")


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


HUB = "AERIAL_LABEL-COSIA"
# Of FLAIR-HUB's paper, by the value of its masks.
COSIA = (
    "building", "greenhouse", "swimming pool", "impervious surface", "pervious surface",
    "bare soil", "water", "snow", "herbaceous vegetation", "agricultural land", "plowed land",
    "vineyard", "deciduous", "coniferous", "brushwood", "clear cut", "ligneous", "mixed",
    "undefined",
)  # fmt: skip
FLAIR_VALUES = (1, 18, 13, 3, 2, 4, 5, 14, 10, 11, 12, 9, 7, 6, 8, 15, 17, 16, 19)


def hub_weights(channels=4, outputs=19, images="AERIAL_RGBI", labels=HUB, encoder=""):
    """Random weights of the U-Net that FLAIR-HUB's code trains, by its names."""
    weights = {
        "model.fusion_handler.conv_f.0.weight": np.ones((64, 64, 1, 1), np.float32),
        "model.fusion_handler.conv_f.0.bias": np.ones(64, np.float32),
        f"criterion.{labels}.weight": np.ones(19, np.float32),
    }
    for key, value in state_dict(UNet(channels, outputs, rngs=nnx.Rngs(0))).items():
        if key.startswith("encoder."):
            of_encoder = encoder + key.removeprefix("encoder.")
            weights[f"model.encoders.{images}.seg_model.{of_encoder}"] = value
        else:
            weights[f"model.main_decoders.{labels}.seg_model.{key}"] = value
    return weights


@pytest.mark.parametrize("encoder", ["", "encoder."])
def test_flair_hubs_unet_has_cosias_classes(tmp_path, encoder):
    save_file(hub_weights(encoder=encoder), tmp_path / "w.safetensors")
    run = tmp_path / "run"
    spec = import_weights(str(tmp_path / "w.safetensors"), str(run), normalization="custom")
    assert spec.bands == ("red", "green", "blue", "nir")
    assert spec.means == (105.66, 111.35, 102.18, 106.59)
    assert spec.stds == (52.23, 45.62, 44.30, 39.78)
    written = json.loads((run / "checkpoints/model.json").read_text())
    assert written["data_name"] == "FLAIR-HUB"
    classes = written["nomenclature"]["classes"]
    assert [c["name"] for c in classes] == list(COSIA)
    assert [c["values"] for c in classes] == [[value] for value in FLAIR_VALUES]
    assert [c["weight"] for c in classes] == [1] * 15 + [0] * 4
    model = flair_jax.load_model(run)
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 4), dtype=np.uint8)
    normalised = (image - np.float32(spec.means)) / np.float32(spec.stds)
    logits = np.asarray(golden_model(4, 19)(normalised))
    np.testing.assert_array_equal(model(image).argmax(-1), logits.argmax(-1))


@pytest.mark.parametrize(
    ("weights", "choices", "expected"),
    [
        (
            hub_weights(),
            {},
            "is of FLAIR-HUB's code, so --normalization must be given: the weights have 4 input "
            "bands and 19 classes; the default of FLAIR-HUB's code is custom",
        ),
        (hub_weights(3), {}, "so --bands and --normalization must be given: the weights have 3"),
        (
            hub_weights(3),
            {"bands": ("red", "nir", "height"), "normalization": "custom"},
            "FLAIR-HUB's aerial images have no band height",
        ),
        (
            hub_weights(labels="ALL_LABEL-LPIS"),
            {"normalization": "custom", "nomenclature": "cosia"},
            "predicts FLAIR-HUB's ALL_LABEL-LPIS; only models of AERIAL_LABEL-COSIA can be loaded",
        ),
        (
            hub_weights(),  # FLAIR #1's classes are as many, in another order
            {"normalization": "custom", "nomenclature": "full"},
            "has the classes of AERIAL_LABEL-COSIA, as its tensors' names show, and not 'full': "
            "leave --nomenclature out",
        ),
        (
            hub_weights(outputs=13),
            {"normalization": "custom"},
            "so --nomenclature must be given: the weights have 4 input bands and 13 classes",
        ),
        (
            hub_weights(2, images="DEM_ELEV"),
            {},
            "takes FLAIR-HUB's DEM_ELEV; only models of AERIAL_RGBI can be loaded",
        ),
        (
            hub_weights() | hub_weights(2, images="DEM_ELEV"),
            {},
            r"with 2 modalities \(AERIAL_RGBI, DEM_ELEV\); one can be loaded",
        ),
        (
            hub_weights() | hub_weights(labels="ALL_LABEL-LPIS"),
            {},
            r"with 2 sets of labels \(AERIAL_LABEL-COSIA, ALL_LABEL-LPIS\)",
        ),
    ],
)
def test_what_flair_hubs_code_does_not_tell(tmp_path, weights, choices, expected):
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=expected):
        import_weights(str(tmp_path / "w.safetensors"), str(tmp_path / "run"), **choices)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["data", "Baseline"])
def test_a_nomenclature_that_is_no_known_one(tmp_path, name):
    path = write(tmp_path / "w.safetensors", 5, 19)
    with pytest.raises(
        UserError, match=f"--nomenclature={name} is unknown: baseline, cosia or full"
    ):
        import_weights(
            path,
            str(tmp_path / "run"),
            bands=tuple("abcde"),
            nomenclature=name,
            normalization="scaling",
        )


def damaged(weights):
    key = next(key for key in weights if key.endswith("layer2.0.bn1.running_var"))
    value = weights[key].copy()
    value[7] = np.nan
    return weights | {key: value}


def test_damaged_weights_come_in_by_no_door(tmp_path):
    spec = ModelSpec.from_config(configuration.default(), (64, 64))
    _, params, batch_stats = split_model(spec.build_model())
    weights = state_dict(UNet(5, 13, rngs=nnx.Rngs(0)))
    encoder = {
        key.removeprefix("encoder."): value
        for key, value in weights.items()
        if key.startswith("encoder.")
    }
    save_file(damaged(weights), tmp_path / "network.safetensors")
    save_file(damaged(encoder), tmp_path / "encoder.safetensors")
    save_file(damaged(hub_weights()), tmp_path / "hub.safetensors")
    name = "encoder.layer2.0.bn1.var"
    stats = batch_stats | {name: batch_stats[name].at[7].set(np.nan)}
    save_model(tmp_path / "run/checkpoints", spec, params, stats)

    def start(**sources):
        initial_weights(
            params, batch_stats, spec, mesh=make_mesh(),
            **{"init_from": "", "encoder_weights": ""} | sources,
        )  # fmt: skip

    network, out = str(tmp_path / "network.safetensors"), str(tmp_path / "imported")
    for door in (
        lambda: import_weights(network, out, normalization="scaling", **OTHER),
        lambda: import_weights(str(tmp_path / "hub.safetensors"), out, normalization="scaling"),
        lambda: start(init_from=network),
        lambda: start(encoder_weights=str(tmp_path / "encoder.safetensors")),
        lambda: start(init_from=str(tmp_path / "run")),
        lambda: flair_jax.load_model(tmp_path / "run"),
    ):
        with pytest.raises(UserError, match=r"not finite in 1 of 128 values") as error:
            door()
        assert "layer2.0.bn1" in str(error.value)
    assert not (tmp_path / "imported").exists()


def test_initial_weights_of_flair_hub_are_not_taken_for_flairs(tmp_path):
    """Its 19 outputs are in another order than FLAIR's 19 classes."""
    save_file(hub_weights(), tmp_path / "hub.safetensors")
    config = configuration.default()
    config.nomenclature, config.bands = "full", ("red", "green", "blue", "nir")
    spec = ModelSpec.from_config(config, (64, 64))
    _, params, batch_stats = split_model(spec.build_model())
    source = str(tmp_path / "hub.safetensors")
    with pytest.raises(UserError, match=r"make a checkpoint of it with flair-jax import-torch"):
        initial_weights(
            params, batch_stats, spec, init_from=source, encoder_weights="", mesh=make_mesh()
        )
    import_weights(source, str(tmp_path / "run"), normalization="scaling")
    mixed, _, lines = initial_weights(
        params, batch_stats, spec, init_from=str(tmp_path / "run"), encoder_weights="",
        mesh=make_mesh(),
    )  # fmt: skip
    bias = hub_weights()[f"model.main_decoders.{HUB}.seg_model.segmentation_head.0.bias"]
    for channel, value in enumerate(FLAIR_VALUES[:18]):
        assert mixed["segmentation_head.0.bias"][value - 1] == bias[channel]
    assert lines[2].endswith("greenhouse <- greenhouse, other randomly initialised")


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
    command = [sys.executable, "-m", "flair_jax", "export", "--format=torch"]
    done = subprocess.run(
        [*command, f"--checkpoint={out}", f"--output={tmp_path / 'o.safetensors'}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"written: {tmp_path / 'o.safetensors'}\n"


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
    directory = dataset.dataset_directory(str(data_dir), "published")
    split = dataset.open_split(directory, "test")
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
