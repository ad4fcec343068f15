"""Reading of files of weights: golden/torch/ is of PyTorch 2.13; "legacy" as before PyTorch 1.6."""

import io
import json
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from damage import KINDS
from golden_arrays import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from flair_jax.errors import UserError
from flair_jax.weights.torch_files import read

FILES = GOLDEN / "torch"
GRID = np.arange(24, dtype=np.float32).reshape(4, 6).T
LIGHTNING = {
    "net.a.weight": GRID,
    "net.a.bias": np.arange(5, 9, dtype=np.float32),
    "net.b.half": np.array([1.5, -2], np.float16),
    "net.b.bfloat": np.array([1.5, -2], ml_dtypes.bfloat16),
    "net.b.double": np.array([1.5, -2]),
    "net.b.expanded": np.full(4, 3, np.float32),
    "net.b.parameter": np.array([[7]], np.float32),
    "net.b.empty": np.zeros((0, 3), np.float32),
    "net.b.num_batches_tracked": np.array(9),
}
BOTH = pytest.mark.parametrize("form", ["", "legacy_"])


@BOTH
def test_a_lightning_checkpoint_with_objects_of_any_class(form, tmp_path, monkeypatch):
    """A Namespace, a path, a class of another package, NumPy's numbers, a call of os.system."""
    monkeypatch.chdir(tmp_path)
    state_dict = read(str(FILES / f"{form}lightning.pth"))
    assert list(state_dict) == list(LIGHTNING)
    for name, expected in LIGHTNING.items():
        assert state_dict[name].dtype == expected.dtype
        np.testing.assert_array_equal(state_dict[name], expected)
    assert not os.listdir()  # nothing was called


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "module",
            "is a pickled object of torch.nn.modules.linear.Linear, whose code is not executed, "
            "and not a state dict",
        ),
        (
            "legacy_module",
            "holds no state dict, but model (torch.nn.modules.linear.Linear), epoch (int)",
        ),
        (
            "quantised",
            "has the tensor a.weight of type quantised; expected float32, float64, float16 or "
            "bfloat16",
        ),
        ("legacy_quantised", "has the tensor a.weight of type quantised; expected float32"),
        ("two", "holds 2 state dicts, ['state_dict'] and ['ema'], and which one is meant is not"),
        ("legacy_two", "holds 2 state dicts, ['state_dict'] and ['ema']"),
        ("torchscript", "is a TorchScript program and not a state dict"),
    ],
)
def test_what_is_no_state_dict(name, message):
    file = FILES / f"{name}.pth"
    with pytest.raises(UserError) as error:
        read(str(file))
    assert str(error.value).startswith(f"{file} {message}")
    assert "\n" not in str(error.value)


def archive(content, **entries):
    """A file of torch.save, with `content` as its pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        target.writestr("archive/data.pkl", content)
        for name, value in entries.items():
            target.writestr(f"archive/{name}", value)
    return file.getvalue()


def header(text):
    return struct.pack("<Q", len(text)) + text


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 97845213\n"
NPZ = io.BytesIO()
np.savez(NPZ, a=np.ones(3))


@pytest.mark.parametrize("suffix", ["pth", "ckpt", "safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: fetch it again"),
        (LFS, "is a pointer of Git LFS and not the weights: run git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "is a web page and not the weights"),
        (b'<html lang="en">', "is a web page and not the weights"),
        (b'{"error": "not found"}', "is JSON text and not the weights"),
        (b"\x1f\x8b\x08" + bytes(20), "is compressed with gzip"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "is an HDF5 file"),
    ],
)
def test_what_is_often_found_in_place_of_weights(tmp_path, suffix, content, message):
    file = tmp_path / f"w.{suffix}"
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        read(str(file))
    assert str(error.value).startswith(f"{file} {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no weights at all", "is not a file of PyTorch weights: it begins with b'no weights a'"),
        (pickle.dumps({"a.b": 1}), "is a pickle that torch.save has not written"),
        (NPZ.getvalue(), "is a .zip file without a PyTorch checkpoint in it"),
        (archive(pickle.dumps({})), "holds no state dict, but nothing"),
        (archive(pickle.dumps({"a": 1})), "holds no state dict, but a (int)"),
        (archive(pickle.dumps([1])), "holds no state dict, but list"),
        (archive(pickle.dumps(print)), "holds no state dict, but builtins.print"),
        (archive(b"cos\nsystem\n(S'touch called'\ntR."), "is a pickled object of os.system"),
        (archive(b"\x80\x02."), "is an incomplete or damaged file of PyTorch weights"),
        # Memo entry 2**31 of a list: the unpickler in C would ask for 32 GB.
        (archive(b"\x80\x02]r\xff\xff\xff\x7f."), "holds no state dict, but list"),
        (archive(b"\x80\x02", constants=b""), "is an incomplete or damaged file"),
        (header(b"{"), "is not a complete .safetensors file"),
        (header(b"{}"), "holds no tensors"),
        (header(b'{"a.b":{"dtype":"F9","shape":[1],"data_offsets":[0,4]}}') + bytes(4), "is not a"),
        (
            header(b'{"a.b":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}') + bytes(4),
            "is not a complete .safetensors file",
        ),
        (save({"a.b": np.ones(3)})[:-1], "is not a complete .safetensors file"),
    ],
)
def test_what_else_is_no_file_of_weights(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    Path("w.bin").write_bytes(content)
    with pytest.raises(UserError) as error:
        read("w.bin")
    assert str(error.value).startswith(f"w.bin {message}")
    assert os.listdir() == ["w.bin"]


def test_a_folder_and_nothing(tmp_path):
    with pytest.raises(UserError, match=r"is a folder; expected a file of weights"):
        read(str(tmp_path))
    with pytest.raises(UserError, match=r"there is no file of weights .*w\.pth"):
        read(str(tmp_path / "w.pth"))


def test_safetensors_of_bfloat16(tmp_path):
    values = np.array([[1.5], [-2]], ml_dtypes.bfloat16)
    entry = {"dtype": "BF16", "shape": [2, 1], "data_offsets": [0, 4]}
    text = json.dumps({"__metadata__": {"format": "pt"}, "a.weight": entry}).encode()
    (tmp_path / "w.pth").write_bytes(header(text) + values.tobytes())  # whatever its name is
    state_dict = read(str(tmp_path / "w.pth"))
    assert list(state_dict) == ["a.weight"]
    np.testing.assert_array_equal(state_dict["a.weight"], values)


def outcome(path):
    """What was read, or the end of the message; any other error fails the test."""
    try:
        return read(str(path))
    except UserError as error:
        message = str(error)
        assert message.startswith(str(path))
        assert "\n" not in message
        return message


@pytest.mark.parametrize("name", ["lightning.pth", "legacy_lightning.pth", "safetensors"])
def test_a_file_cut_anywhere_is_refused(tmp_path, name):
    whole = save(LIGHTNING_32) if name == "safetensors" else (FILES / name).read_bytes()
    file = tmp_path / "w"
    for end in range(0, len(whole), 1 + len(whole) // 400):
        file.write_bytes(whole[:end])
        assert isinstance(outcome(file), str), end


LIGHTNING_32 = {k: np.array(v, np.float32, order="C") for k, v in LIGHTNING.items()}


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["lightning.pth", "legacy_lightning.pth", "safetensors"]),
    st.sampled_from([kind for kind in KINDS if kind != "missing"]),
    st.integers(0, 2**32),
)
def test_damage_is_noticed_or_harmless(tmp_path_factory, name, kind, seed):
    """A .zip file has checksums; in the others damaged numbers cannot be told from numbers."""
    whole = save(LIGHTNING_32) if name == "safetensors" else (FILES / name).read_bytes()
    file = tmp_path_factory.getbasetemp() / "damaged"
    file.write_bytes(KINDS[kind](whole, random.Random(seed)))
    result = outcome(file)
    if name == "lightning.pth" and not isinstance(result, str):
        for key, expected in LIGHTNING.items():
            np.testing.assert_array_equal(result[key], expected)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_pickle_of_anything_does_nothing(tmp_path_factory, data):
    """Damage below the checksum, in the pickle itself: any instruction may come of it."""
    with zipfile.ZipFile(FILES / "lightning.pth") as source:
        (name,) = (n for n in source.namelist() if n.endswith("data.pkl"))
        pickled = bytearray(source.read(name))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(pickled) - 1))
        pickled[position] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "pickle"
    file.write_bytes(archive(bytes(pickled)))
    outcome(file)
