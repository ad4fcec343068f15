import builtins
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from golden_arrays import GOLDEN, state_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from flair_jax.errors import UserError
from flair_jax.models.functional import split_model
from flair_jax.models.unet import UNet
from flair_jax.weights import torch_files, torch_weights

MODEL = UNet(5, 13, rngs=nnx.Rngs(0))
WEIGHTS = state_dict(MODEL)
_, *BOTH = split_model(MODEL)
LIKE = BOTH[0] | BOTH[1]


@pytest.fixture
def model():
    return MODEL


@pytest.fixture
def weights():
    return dict(WEIGHTS)


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


WRAPPERS = ("module.", "net.", "_orig_mod.", "model.", "seg_model.", "network.")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(WRAPPERS), max_size=5), st.booleans())
def test_wrappers_in_any_combination_and_order(wrappers, inside):
    """`inside`: as torch.compile of a part of the network, `encoder._orig_mod.conv1.weight`."""
    prefix = "".join(wrappers)
    wrapped = {prefix + key: value for key, value in WEIGHTS.items()}
    if inside:
        wrapped = {k.replace("encoder.", "encoder._orig_mod."): v for k, v in wrapped.items()}
    wrapped["criterion.weight"] = np.ones(13)
    wrapped["n_averaged"] = np.array(7)
    wrapped[f"{prefix}encoder.bn1.num_batches_tracked"] = np.array(7)
    tensors = torch_weights.network_tensors(wrapped)
    assert list(tensors) == list(WEIGHTS)
    assert all(tensors[key] is WEIGHTS[key] for key in WEIGHTS)


def test_two_networks_in_one_state_dict(weights):
    both = {f"model.{k}": v for k, v in weights.items()} | {
        f"net.{k}": v for k, v in weights.items()
    }
    with pytest.raises(
        UserError, match=r"^w.pth has two tensors of the name decoder\S+, model\.deco"
    ):
        torch_weights.network_tensors(both, "w.pth")


def changed(**options):
    """A kind of damage: a change of an array."""

    def change(array):
        array = np.array(array)
        for how, value in options.items():
            if how == "dtype":
                array = array.astype(value)
            elif how == "cut":
                array = array[:-1]
            elif how == "one":
                array.reshape(-1)[array.size // 2] = value
            else:
                array = array.reshape((1, *array.shape))
        return array

    return change


NOT_FINITE = "not finite in 1 of {size:,} values: {key}"
DAMAGE = {
    "nan": (changed(one=np.nan), NOT_FINITE),
    "inf": (changed(one=-np.inf), NOT_FINITE),
    "too large": (changed(dtype=np.float64, one=1e300), NOT_FINITE),
    "cut": (changed(cut=True), "misshapen: {key} has shape {cut}, expected {shape}"),
    "dimension": (changed(more=True), "misshapen: {key} has shape {more}, expected {shape}"),
    "integers": (changed(dtype=np.int64), "not of floating-point numbers: {key} is of type int64"),
    "complex": (
        changed(dtype=np.complex64), "not of floating-point numbers: {key} is of type complex64"
    ),
    "8 bits": (
        changed(dtype=ml_dtypes.float8_e5m2),
        "not of floating-point numbers: {key} is of type float8_e5m2",
    ),
    "empty": (
        lambda array: np.zeros((0, *array.shape[1:])),
        "misshapen: {key} has shape {none}, expected {shape}",
    ),
    "missing": (None, "missing: {key}"),
    "surplus": (np.copy, "surplus: {key}_of_another {shape}"),
}  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(sorted(DAMAGE)))
def test_every_fault_of_a_tensor_is_named(data, kind):
    change, message = DAMAGE[kind]
    key = data.draw(st.sampled_from(sorted(WEIGHTS)))
    damaged = dict(WEIGHTS)
    value = damaged[key] if kind == "surplus" else damaged.pop(key)
    if change is not None:
        damaged[f"{key}_of_another" if kind == "surplus" else key] = change(value)
    shape = value.shape
    line = message.format(
        key=key, size=value.size, shape=shape, cut=(shape[0] - 1, *shape[1:]), more=(1, *shape),
        none=(0, *shape[1:]),
    )  # fmt: skip
    with pytest.raises(UserError) as error:
        torch_weights.match(damaged, LIKE, "w.pth")
    assert str(error.value) == (
        f"w.pth does not fit the model, or is damaged, in 1 tensor:\n  {line}"
    )


def test_variances_below_zero(weights):
    key = "encoder.layer3.5.bn2.running_var"
    damaged = weights | {key: weights[key] - 1.5}
    with pytest.raises(UserError, match=rf"variances below 0, down to -0\.69\d: {key}"):
        torch_weights.match(damaged, LIKE, "w.pth")
    torch_weights.match(weights | {key: weights[key] * 0}, LIKE, "w.pth")  # 0 is possible


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_precisions(weights, dtype):
    arrays = torch_weights.match({k: v.astype(dtype) for k, v in weights.items()}, LIKE, "w.pth")
    kernel = arrays["encoder.conv1.kernel"]
    assert kernel.dtype == np.float32
    expected = weights["encoder.conv1.weight"].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(kernel, expected.transpose(2, 3, 1, 0))


def test_nothing_is_half_loaded(model, weights):
    before = np.asarray(model.encoder.conv1.kernel[...])
    damaged = {k: v for k, v in weights.items() if k != "decoder.blocks.2.conv1.1.bias"}
    with pytest.raises(UserError, match="missing: decoder"):
        torch_weights.load_state_dict(model, damaged)
    np.testing.assert_array_equal(model.encoder.conv1.kernel[...], before)


def test_no_torch_is_needed(tmp_path):
    save_file(WEIGHTS, tmp_path / "w.safetensors")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from flair_jax.weights import torch_files\n"
        "for file in sys.argv[1:]: print(len(torch_files.read(file)))"
    )
    files = [tmp_path / "w.safetensors", GOLDEN / "torch/lightning.pth"]
    done = subprocess.run(
        [sys.executable, "-c", code, *files], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(len(WEIGHTS)), "9"]


def test_files_of_the_hub(monkeypatch):
    with pytest.raises(UserError, match="not of the form hf://organisation/repository/file"):
        torch_files.read("hf://IGNF/FLAIR-INC")

    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.split(".")[0] == "huggingface_hub":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"huggingface_hub: pip install 'flair-jax\[hub\]'"):
        torch_files.read("hf://IGNF/FLAIR-INC/w.pth")
