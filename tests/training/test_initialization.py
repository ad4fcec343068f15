import dataclasses

import numpy as np
import pytest
from flax import nnx
from golden_arrays import state_dict
from safetensors.numpy import save_file

from flair_jax import config as configuration
from flair_jax.data.nomenclature import BASELINE, FULL, LandCover, Nomenclature
from flair_jax.errors import UserError
from flair_jax.inference.loading import save_model
from flair_jax.models.functional import split_model
from flair_jax.models.spec import ModelSpec
from flair_jax.models.unet import UNet
from flair_jax.runtime.sharding import make_mesh
from flair_jax.training.initialization import (
    HEAD,
    STEM,
    adapt_stem,
    initial_weights,
    match_classes,
)


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
    """12 of all 19 classes have the same mask values; "other" is another class there."""
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
    assert lines[1] == (
        "  bands    red <- red, green <- green, blue <- blue, nir <- nir, height <- height"
    )
    assert lines[2].startswith("  classes  building <- building, pervious surface <- pervious sur")
    assert lines[2].endswith("plowed land <- plowed land, other randomly initialised")
    assert "config.normalization='custom', this run uses 'scaling'" in lines[3]


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
    assert lines[1] == (
        "  bands    red <- red, green <- green, blue randomly initialised, nir <- nir, "
        "height randomly initialised"
    )
    assert "randomly" not in lines[2]


def own(name, *classes):
    """A nomenclature whose classes have the mask values 1, 2, ... as FLAIR's have."""
    return Nomenclature(
        name, tuple(LandCover(c, "#000000", 1.0, (i,)) for i, c in enumerate(classes, 1))
    )


@pytest.mark.parametrize(
    ("ours", "others", "matches"),
    [
        # The values collide: 1 is building there and water here.
        (own("dubai", "water", "building", "road"), BASELINE, [4, 0, None]),
        (own("dubai", "Water ", "crops"), BASELINE, [4, None]),
        (BASELINE, own("dubai", "land", "water"), [None] * 4 + [1] + [None] * 8),
        (own("a", "water", "road"), own("b", "road", "water", "land"), [1, 0]),
        (own("a", "land"), own("b", "water"), [None]),
        # Names that differ in case only: as they are written.
        (own("a", "road", "Road"), own("b", "Road", "ROAD"), [None, 0]),
        # FLAIR's own: by value, since "other" is two things.
        (BASELINE, FULL, [*range(12), None]),
        (FULL, BASELINE, [*range(12)] + [None] * 7),
        # The user's classes of FLAIR's values: by name, not by value.
        (Nomenclature("mine", (LandCover("built", "#000000", 1.0, (1,)),)), BASELINE, [None]),
    ],
)
def test_classes_are_matched_by_name(ours, others, matches):
    assert match_classes(ours, others) == matches


def test_from_flair_to_classes_of_the_same_values(initial, mesh, tmp_path):
    """Value 1 is building in FLAIR: its weights go to the class of that name, not of that value."""
    _, source_params, source_stats = split_model(SPEC.build_model(7))
    save_model(tmp_path / "checkpoints", SPEC, source_params, source_stats)
    spec = dataclasses.replace(
        SPEC, bands=("red", "nir"), nomenclature=own("dubai", "water", "land", "building")
    )
    _, params, batch_stats = split_model(spec.build_model(3))
    mixed, _, lines = initial_weights(
        params, batch_stats, spec, init_from=str(tmp_path), encoder_weights="", mesh=mesh
    )
    for name in HEAD:
        for index, match in ((0, 4), (2, 0)):
            np.testing.assert_array_equal(mixed[name][..., index], source_params[name][..., match])
        np.testing.assert_array_equal(mixed[name][..., 1], params[name][..., 1])
    assert lines[1:] == [
        "  bands    red <- red, nir <- nir",
        "  classes  water <- water, land randomly initialised, building <- building",
    ]


def test_no_classes_are_guessed_of_a_file_without_names(mesh, tmp_path):
    save_file(state_dict(UNet(3, 3, rngs=nnx.Rngs(0))), tmp_path / "w.safetensors")
    spec = dataclasses.replace(
        SPEC, bands=("red", "green", "blue"), nomenclature=own("dubai", "water", "land", "road")
    )
    _, params, batch_stats = split_model(spec.build_model(3))
    mixed, _, lines = initial_weights(
        params, batch_stats, spec, init_from=str(tmp_path / "w.safetensors"), encoder_weights="",
        mesh=mesh,
    )  # fmt: skip
    for name in (STEM, *HEAD):
        np.testing.assert_array_equal(mixed[name], params[name])
    assert "does not name its bands and classes: to copy the weights" in lines[-1]


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
    assert lines[1].endswith("blue <- blue, nir randomly initialised, height randomly initialised")


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
