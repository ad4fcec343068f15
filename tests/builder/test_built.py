import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from tfds_builder.build import build
from tfds_builder.flair import flair_dataset_builder
from tfds_builder.flair import records as records_lib
from tfds_builder.flair.built import Records, open_built
from tfds_builder.flair.faults import BuildError

DUMMY_DATA = Path(flair_dataset_builder.__file__).parent / "dummy_data"
JSON_FILES = ("dataset_info.json", "features.json", "metadata.json", "fingerprint.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return build(DUMMY_DATA, tmp_path_factory.mktemp("built"), num_workers=1, progress=False)


@pytest.fixture
def folder(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def test_a_data_set(whole):
    built = open_built(whole)
    assert built.num_patches == {"train": 4, "val": 2, "test": 2}
    assert built.num_shards == 3
    assert [built.damage(split) for split in built.num_patches] == [[], [], []]
    records = Records(built, "train")
    assert len(records) == len(list(records)) == 4
    for index in (-1, 4):
        with pytest.raises(IndexError, match=f"record {index} of 4"):
            records[index]
    again = pickle.loads(pickle.dumps(records))
    np.testing.assert_array_equal(again[2]["image"], records[2]["image"])


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000])
def test_damaged_json(folder, name, content):
    (folder / name).write_bytes(content)
    if (name, content) == ("metadata.json", b"{}"):
        return
    with pytest.raises(BuildError, match="is damaged: ") as error:
        open_built(folder)
    assert str(error.value).startswith(f"{folder / name} is damaged: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", JSON_FILES)
def test_missing_json(folder, name):
    (folder / name).unlink()
    if name == "fingerprint.json":
        assert open_built(folder).fingerprint is None
        return
    with pytest.raises(BuildError) as error:
        open_built(folder)
    assert str(error.value) == f"{folder / name} is missing"


@pytest.mark.parametrize("name", JSON_FILES)
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_any_damage_of_json_is_one_error_or_none(whole, tmp_path_factory, name, data):
    content = bytearray((whole / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content) - 1))
        length = data.draw(st.sampled_from([0, 1, 1, 8, 200]))
        content[start : start + length] = data.draw(st.binary(max_size=3))
    folder = tmp_path_factory.mktemp("damaged")
    for path in whole.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / name).unlink()
    (folder / name).write_bytes(content)
    try:
        built = open_built(folder)
        for split in built.num_patches:
            built.damage(split)
            list(Records(built, split))
    except BuildError as error:
        assert str(folder) in str(error)  # noqa: PT017 - or there is none
    finally:
        shutil.rmtree(folder)


def test_numbers_of_json_that_do_not_fit_the_shards(folder):
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["5"]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (shard,) = folder.glob("flair-train*")
    assert open_built(folder).damage("train") == [f"{shard}: 4 records, where 5 were written"]


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_a_damaged_shard_is_one_error_that_names_it(whole, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    for path in whole.iterdir():
        (folder / path.name).symlink_to(path)
    shard = next(folder.glob("flair-train*"))
    content = bytearray(shard.read_bytes())
    shard.unlink()
    start = data.draw(st.integers(0, len(content) - 1))
    length = data.draw(st.sampled_from([1, 100, 70_000]))
    content[start : start + length] = data.draw(st.sampled_from([b"\0", b"\xff"])) * length
    shard.write_bytes(content[: (whole / shard.name).stat().st_size])
    try:
        built = open_built(folder)
        for message in built.damage("train"):
            assert message.startswith(f"{shard}: ")
        expected = list(Records(open_built(whole), "train"))
        for record, other in zip(Records(built, "train"), expected, strict=True):
            np.testing.assert_array_equal(record["image"], other["image"])
            np.testing.assert_array_equal(record["mask"], other["mask"])
    except BuildError as error:
        assert str(error).startswith(f"{shard} is damaged: record ")  # noqa: PT017
    finally:
        shutil.rmtree(folder)


def test_a_data_set_of_version_1_0_0(whole, tmp_path):
    """It has patches of any size, masks as plain tensors, and no fingerprint."""
    records = list(Records(open_built(whole), "train"))
    features = tfds.features.FeaturesDict(
        dict(records_lib.features((64, 64)))
        | {
            "image": tfds.features.Tensor(shape=(None, None, 5), dtype=np.uint8, encoding="bytes"),
            "mask": tfds.features.Tensor(shape=(None, None), dtype=np.uint8, encoding="bytes"),
        }
    )
    features.save_config(tmp_path)
    (tmp_path / "metadata.json").write_text("{}")
    split = {"name": "train", "shardLengths": ["4"], "numBytes": "1"}
    split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info = {"name": "flair", "version": "1.0.0", "fileFormat": "array_record", "splits": [split]}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    shard = tmp_path / "flair-train.array_record-00000-of-00001"
    serialize = ExampleSerializer(features.get_serialized_info()).serialize_example
    writer = ArrayRecordWriter(str(shard), "group_size:1")
    for record in records:
        writer.write(serialize(features.encode_example(record)))
    writer.close()
    built = open_built(tmp_path)
    assert (built.fingerprint, built.damage("train")) == (None, [])
    for old, new in zip(Records(built, "train"), records, strict=True):
        assert old.keys() == new.keys()
        for name, value in new.items():
            np.testing.assert_array_equal(old[name], value)
    shard.unlink()
    assert open_built(tmp_path).damage("train") == [f"{shard}: not found"]
