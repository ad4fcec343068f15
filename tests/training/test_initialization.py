import dataclasses

import numpy as np
import pytest
from flax import nnx
from golden_arrays import state_dict
from safetensors.numpy import save_file

from flair_jax import config as configuration
from flair_jax.data.nomenclature import FULL
from flair_jax.errors import UserError
from flair_jax.inference.loading import save_model
from flair_jax.models.functional import split_model
from flair_jax.models.spec import ModelSpec
from flair_jax.models.unet import UNet
from flair_jax.runtime.sharding import make_mesh
from flair_jax.training.initialization import adapt_stem, initial_weights


@pytest.fixture(scope="module")
def initial():
    _, params, batch_stats = split_model(UNet(5, 13, rngs=nnx.Rngs(0)))
    return params, batch_stats


@pytest.fixture(scope="module")
def mesh():
    return make_mesh()


SPEC = ModelSpec.from_config(configuration.default(), (64, 64))


def start(initial, mesh, init_from="", encoder_weights=""):
    return initial_weights(
        *initial, SPEC, init_from=str(init_from), encoder_weights=str(encoder_weights), mesh=mesh
    )


def test_nothing_asked_nothing_changed(initial, mesh):
    assert start(initial, mesh) == (*initial, [])


def test_from_a_checkpoint_of_other_classes(initial, mesh, tmp_path):
    """12 of all 19 classes gather the same mask values; "other" is another class there."""
    spec = dataclasses.replace(SPEC, nomenclature=FULL, normalization="custom")
    _, source_params, source_stats = split_model(spec.build_model(7))
    save_model(tmp_path / "checkpoints", spec, source_params, source_stats)
    params, batch_stats, lines = start(initial, mesh, init_from=tmp_path)
    for name, value in params.items():
        if name.startswith("segmentation_head."):
            np.testing.assert_array_equal(value[..., :12], source_params[name][..., :12])
            np.testing.assert_array_equal(value[..., 12], initial[0][name][..., 12])
        else:
            np.testing.assert_array_equal(value, source_params[name])
    for name, value in batch_stats.items():
        np.testing.assert_array_equal(value, source_stats[name])
    assert lines[0].endswith("tensors from " + str(tmp_path) + ", 0 randomly initialised")
    assert lines[1].startswith(
        "  segmentation_head.0.kernel, segmentation_head.0.bias: classes buil"
    )
    assert lines[1].endswith("plowed land copied; other randomly initialised")
    assert "config.normalization='custom', this run uses 'scaling'" in lines[2]


def test_bands_are_copied_by_name(initial, mesh, tmp_path):
    spec = dataclasses.replace(SPEC, bands=("nir", "red", "green"), means=(), stds=())
    _, source_params, source_stats = split_model(spec.build_model(7))
    save_model(tmp_path / "checkpoints", spec, source_params, source_stats)
    params, _, lines = start(initial, mesh, init_from=tmp_path)
    stem, given = params["encoder.conv1.kernel"], source_params["encoder.conv1.kernel"]
    for band, index in ((0, 1), (1, 2), (3, 0)):
        np.testing.assert_array_equal(stem[:, :, band], given[:, :, index])
    for band in (2, 4):
        np.testing.assert_array_equal(
            stem[:, :, band], initial[0]["encoder.conv1.kernel"][:, :, band]
        )
    assert lines[1:] == [
        "  encoder.conv1.kernel: bands red, green, nir copied; blue, height randomly initialised"
    ]


def test_from_a_pytorch_file_of_other_bands(initial, mesh, tmp_path):
    weights = state_dict(UNet(3, 13, rngs=nnx.Rngs(0)))
    save_file(weights, tmp_path / "w.safetensors")
    params, _, lines = start(initial, mesh, init_from=tmp_path / "w.safetensors")
    np.testing.assert_array_equal(
        params["encoder.conv1.kernel"], initial[0]["encoder.conv1.kernel"]
    )
    np.testing.assert_array_equal(params["encoder.bn1.scale"], weights["encoder.bn1.weight"])
    assert lines[1] == "  randomly initialised: encoder.conv1.kernel (7, 7, 5, 64)"
    assert "does not name its bands and classes" in lines[2]
    del weights["decoder.blocks.0.conv1.0.weight"]
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"missing: decoder.blocks.0.conv1.0.weight"):
        start(initial, mesh, init_from=tmp_path / "w.safetensors")


def test_flair_inc_file_says_its_bands_and_classes(initial, mesh, tmp_path):
    weights = state_dict(UNet(3, 19, rngs=nnx.Rngs(0)))
    weights = {f"model.seg_model.{key}": value for key, value in weights.items()}
    weights["criterion.weight"] = np.array([1.0] * 12 + [0.0] * 7, np.float32)
    file = tmp_path / "FLAIR-INC_rgb_12cl_resnet34-unet_weights.safetensors"
    save_file(weights, file)
    params, _, lines = start(initial, mesh, init_from=file)
    stem = weights["model.seg_model.encoder.conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["encoder.conv1.kernel"][:, :, :3], stem)
    bias = weights["model.seg_model.segmentation_head.0.bias"]
    np.testing.assert_array_equal(params["segmentation_head.0.bias"][:12], bias[:12])
    assert "bands red, green, blue copied; nir, height randomly initialised" in lines[1]


def test_bare_resnet_for_the_encoder(initial, mesh, tmp_path):
    weights = {
        key.removeprefix("encoder."): value
        for key, value in state_dict(UNet(3, 13, rngs=nnx.Rngs(0))).items()
        if key.startswith("encoder.")
    } | {"fc.weight": np.ones((1000, 512), np.float32), "fc.bias": np.ones(1000, np.float32)}
    save_file(weights, tmp_path / "resnet34.safetensors")
    params, batch_stats, lines = start(
        initial, mesh, encoder_weights=tmp_path / "resnet34.safetensors"
    )
    stem = np.asarray(params["encoder.conv1.kernel"])
    for band in range(5):
        expected = weights["conv1.weight"][:, band % 3].transpose(1, 2, 0) * (3 / 5)
        np.testing.assert_allclose(stem[:, :, band], expected, rtol=1e-6)
    np.testing.assert_array_equal(
        batch_stats["encoder.layer4.2.bn2.mean"], weights["layer4.2.bn2.running_mean"]
    )
    name = "decoder.blocks.0.conv1.0.kernel"
    np.testing.assert_array_equal(params[name], initial[0][name])
    assert lines[0].startswith("weights  180 tensors from ")


def test_stem_for_the_same_bands_is_left_alone():
    kernel = np.random.default_rng(0).normal(size=(64, 3, 7, 7))
    assert adapt_stem(kernel, 3) is kernel
    np.testing.assert_allclose(adapt_stem(kernel, 6).sum(1), kernel.sum(1))


def test_both_sources_at_once(initial, mesh):
    with pytest.raises(UserError, match=r"set config.encoder_weights=''"):
        start(initial, mesh, init_from="runs/a", encoder_weights="imagenet")


def test_source_that_is_not_there(initial, mesh, tmp_path):
    with pytest.raises(UserError, match="there is no checkpoint at"):
        start(initial, mesh, init_from=tmp_path / "none")
    with pytest.raises(UserError, match="there is no file of weights"):
        start(initial, mesh, encoder_weights=tmp_path / "none.pth")
