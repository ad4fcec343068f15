import builtins
import sys

import numpy as np
import pytest
from flax import nnx
from golden_arrays import state_dict
from safetensors.numpy import save_file

from flair_jax.errors import UserError
from flair_jax.interop import torch_files, torch_weights
from flair_jax.models.functional import split_model
from flair_jax.models.unet import UNet


@pytest.fixture(scope="module")
def model():
    return UNet(5, 13, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def weights(model):
    return state_dict(model)


def test_names_and_layouts():
    assert (
        torch_weights.torch_name("encoder.layer1.0.bn1.var") == "encoder.layer1.0.bn1.running_var"
    )
    assert torch_weights.torch_name("enc.enc_mlp.3.kernel") == "enc.enc_mlp.3.weight"
    kernel = np.arange(24).reshape(2, 3, 2, 2)
    ours = torch_weights.from_torch_layout("conv.kernel", kernel)
    assert ours.shape == (2, 2, 3, 2)
    np.testing.assert_array_equal(torch_weights.to_torch_layout("conv.kernel", ours), kernel)
    assert torch_weights.to_torch_shape("conv.kernel", ours.shape) == kernel.shape
    assert torch_weights.to_torch_shape("enc.kernel", (45, 64)) == (64, 45)


@pytest.mark.parametrize("metadata_features", [0, 45])
def test_out_and_in_again(metadata_features):
    model = UNet(5, 13, metadata_features=metadata_features, rngs=nnx.Rngs(3))
    _, params, batch_stats = split_model(model)
    exported = torch_weights.state_dict_of(params, batch_stats)
    conv = "encoder.conv1.weight"
    assert exported[f"seg_model.{conv}" if metadata_features else conv].shape == (64, 5, 7, 7)
    counters = [key for key in exported if key.endswith("num_batches_tracked")]
    assert len(counters) == 46
    other = UNet(5, 13, metadata_features=metadata_features, rngs=nnx.Rngs(4))
    torch_weights.load_state_dict(other, exported)
    _, again, again_stats = split_model(other)
    for name, value in {**params, **batch_stats}.items():
        np.testing.assert_array_equal({**again, **again_stats}[name], value)


@pytest.mark.parametrize("prefix", ["", "seg_model.", "model.seg_model.", "model."])
def test_prefixes_and_loss_weights_are_passed_over(weights, prefix):
    wrapped = {prefix + key: value for key, value in weights.items()}
    wrapped["criterion.weight"] = np.ones(13)
    tensors = torch_weights.network_tensors(wrapped)
    assert tensors.keys() == weights.keys()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda w: w.pop("decoder.blocks.2.conv1.1.bias"),
            "missing: decoder.blocks.2.conv1.1.bias",
        ),
        (lambda w: w.update({"encoder.fc.weight": np.ones((2, 3))}), r"surplus: encoder.fc.weight"),
        (
            lambda w: w.update({"segmentation_head.0.bias": np.ones(19)}),
            r"misshapen: segmentation_head.0.bias has shape \(19,\), expected \(13,\)",
        ),
        (
            lambda w: w.update({"encoder.conv1.weight": np.ones((64, 3, 7, 7))}),
            r"encoder.conv1.weight has shape \(64, 3, 7, 7\), expected \(64, 5, 7, 7\)",
        ),
    ],
)
def test_every_tensor_must_fit(model, weights, change, expected):
    before = np.asarray(model.encoder.conv1.kernel[...])
    changed = dict(weights)
    change(changed)
    with pytest.raises(UserError, match=expected):
        torch_weights.load_state_dict(model, changed)
    np.testing.assert_array_equal(model.encoder.conv1.kernel[...], before)  # nothing half loaded


def test_safetensors_need_no_torch(weights, tmp_path):
    save_file(weights, tmp_path / "w.safetensors")
    assert "torch" not in sys.modules
    read = torch_files.read(str(tmp_path / "w.safetensors"))
    assert read.keys() == weights.keys()
    np.testing.assert_array_equal(read["encoder.conv1.weight"], weights["encoder.conv1.weight"])
    assert "torch" not in sys.modules


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="there is no file of weights"):
        torch_files.read(str(tmp_path / "none.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\x00")
    with pytest.raises(UserError, match=r"cut.safetensors is not a complete .safetensors file"):
        torch_files.read(str(tmp_path / "cut.safetensors"))
    with pytest.raises(UserError, match="not of the form hf://organisation/repository/file"):
        torch_files.read("hf://IGNF/FLAIR-INC")

    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.split(".")[0] in ("torch", "huggingface_hub"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"huggingface_hub: pip install 'flair-jax\[hub\]'"):
        torch_files.read("hf://IGNF/FLAIR-INC/w.pth")
