import json
import shutil

import pytest

from flair_jax.data import fingerprint as module
from flair_jax.data import synthetic
from flair_jax.data.dataset import dataset_directory
from flair_jax.data.fingerprint import differences, fingerprint
from flair_jax.errors import UserError
from tfds_builder.build import build


@pytest.fixture(scope="module")
def directory(data_dir):
    return dataset_directory(str(data_dir), "published")


@pytest.fixture
def copy(directory, tmp_path):
    return shutil.copytree(directory, tmp_path / "elsewhere" / "1.0.0")


def test_a_copy_elsewhere_is_the_same_data(directory, copy):
    one, other = fingerprint(directory), fingerprint(copy)
    assert json.loads(json.dumps(one)) == other
    assert {name: split["patches"] for name, split in one["splits"].items()} == {
        "train": 16, "val": 4, "test": 5,
    }  # fmt: skip
    assert differences(one, other) == []


def test_a_data_set_of_other_content_and_equal_sizes(directory, tmp_path):
    synthetic.generate(tmp_path / "source", patch_size=64, train=16, val=4, test=5, seed=1)
    build(tmp_path / "source", data_dir=tmp_path / "built", num_workers=1, progress=False)
    one, other = (
        fingerprint(directory),
        fingerprint(dataset_directory(str(tmp_path / "built"), "published")),
    )
    assert differences(one, other) == [
        f"{name}: the same number of patches, with other content"
        for name in ("test", "train", "val")
    ]


def test_one_changed_byte_of_a_small_data_set(directory, copy):
    shard = next(copy.glob("flair-val*"))
    content = bytearray(shard.read_bytes())
    content[100_000] ^= 1
    shard.write_bytes(content)
    (line,) = differences(fingerprint(directory), fingerprint(copy))
    assert line == "val: the same number of patches, with other content"


def test_blocks_are_spread_over_all_of_a_larger_split(directory, copy, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 1 << 12)
    monkeypatch.setattr(module, "BLOCKS", 8)
    before = fingerprint(directory)
    shard = next(copy.glob("flair-train*"))
    content = shard.read_bytes()
    for start in range(0, 6 << 16, 1 << 16):  # the rest of the file is padding
        other = bytearray(content)
        other[start : start + (1 << 17)] = bytes(1 << 17)
        shard.write_bytes(other)
        assert differences(before, fingerprint(copy)), start


def test_other_splits_and_other_numbers(directory):
    one = fingerprint(directory)
    other = json.loads(json.dumps(one))
    other["splits"]["train"]["patches"] = 12_000
    del other["splits"]["test"]
    assert differences(one, other) == [
        "test: a split then, and not now", "train: 16 patches then, 12,000 now",
    ]  # fmt: skip
    assert differences(other, one)[0] == "test: a split now, and not then"


def test_the_builders_hash_goes_before_how_the_patches_are_stored(copy):
    (copy / "fingerprint.json").unlink()
    older = fingerprint(copy)
    assert older["source"] is None
    (copy / "fingerprint.json").write_text('{"content": "abc"}')
    one = fingerprint(copy)
    other = json.loads(json.dumps(one))
    other["splits"]["train"].update(bytes=1, sample="other")
    other["features"] = "other"
    assert differences(one, other) == []
    other["source"] = "abd"
    assert differences(one, other) == ["train: 524,288 bytes then, 1 now"]
    assert differences(one, one | {"source": "abd"}) == ["single patches have other content"]
    assert differences(older, one) == []  # built before there was such a hash


def test_a_missing_shard(copy):
    next(copy.glob("flair-val*")).unlink()
    with pytest.raises(UserError, match=r"cannot be read .*flair-jax doctor"):
        fingerprint(copy)
