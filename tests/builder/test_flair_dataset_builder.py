import json
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tfds_builder.flair import flair_dataset_builder
from tfds_builder.flair.faults import BuildError
from tfds_builder.flair.flair_dataset_builder import Flair

DUMMY_DATA = Path(flair_dataset_builder.__file__).parent / "dummy_data"
# The synthetic patches, in the order of the formula of their pixels.
NUMBERS = {
    "train": ["003388", "003389", "040112", "052001"],
    "val": ["000717", "047250"],
    "test": ["062613", "076311"],
}
NUMBERED = [number for numbers in NUMBERS.values() for number in numbers]


def build(source, data_dir, **options):
    builder = Flair(
        data_dir=data_dir, source=source, **{"num_workers": 1, "progress": False} | options
    )
    builder.download_and_prepare(download_dir=data_dir / "d", file_format="array_record")
    return Path(builder.data_dir)


def records(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*array_record*")}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(DUMMY_DATA, tmp_path_factory.mktemp("data"))


def test_every_value(built):
    builder = tfds.builder_from_directory(built)
    assert "tensorflow" not in sys.modules
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        "train": 4,
        "val": 2,
        "test": 2,
    }
    metadata = json.loads((DUMMY_DATA / "flair-1_metadata_aerial.json").read_text())
    rows, columns = np.mgrid[:64, :64]
    seen = set()
    for split, numbers in NUMBERS.items():
        examples = list(builder.as_data_source(split))
        assert [example["id"].decode() for example in examples] == numbers
        for example, number in zip(examples, numbers, strict=True):
            n, entry = NUMBERED.index(number), metadata[f"IMG_{number}"]
            image = np.stack(
                [(2 * rows + 3 * columns + 40 * b + 7 * n) % 256 for b in range(5)], -1
            )
            assert example["image"].dtype == np.uint8
            np.testing.assert_array_equal(example["image"], image)
            assert example["mask"].dtype == np.uint8
            mask = 1 + (8 * (rows // 8) + columns // 8 + n) % 19
            np.testing.assert_array_equal(example["mask"], mask)
            seen |= set(np.unique(mask).tolist())
            assert example["has_mask"]
            for field in ("domain", "zone", "date", "time", "camera"):
                assert example[field].decode() == entry[field]
            assert example["centroid"].dtype == np.float64
            assert example["centroid"].tolist() == [entry[f"patch_centroid_{a}"] for a in "xyz"]
            x, y = 700000.6 + 4096.4 * n - 6.4, 6300000.2 + 8192.8 * n + 6.4
            assert example["transform"].tolist() == [0.2, 0, x, 0, -0.2, y]
            assert example["crs"] == b"EPSG:2154"
    assert seen == set(range(1, 20))


def test_metadata_of_the_data_set(built):
    info = tfds.builder_from_directory(built).info
    assert info.metadata == {
        "source": str(DUMMY_DATA),
        "patch_size": [64, 64],
        "num_patches": {"train": 4, "val": 2, "test": 2},
        "num_faults_skipped": 0,
        "notes": [],
    }
    assert info.full_name == "flair/published/1.0.0"
    assert "Garioud" in info.citation
    assert not list(built.glob("*.lock"))


def test_zipped_as_downloaded(built, tmp_path):
    for folder in DUMMY_DATA.iterdir():
        name = tmp_path / "source" / f"{folder.stem}.zip"
        name.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in [folder, *sorted(folder.rglob("*"))]:
                archive.write(file, file.relative_to(DUMMY_DATA))
    assert len(list((tmp_path / "source").iterdir())) == 5
    zipped = build(tmp_path / "source", tmp_path)
    assert records(zipped) == records(built)


def test_other_validation_domains(tmp_path):
    folder = build(DUMMY_DATA, tmp_path, config="d077")
    assert folder == tmp_path / "flair/d077/1.0.0"
    source = tfds.builder_from_directory(folder).as_data_source()
    domains = {split: {example["domain"] for example in source[split]} for split in source}
    assert domains["val"] == {b"D004_2021", b"D077_2021"}
    assert domains["train"] == {b"D006_2020", b"D063_2019", b"D070_2020"}


def test_small_shards(built, tmp_path):
    folder = build(DUMMY_DATA, tmp_path, shard_mb=2 * 64 * 64 * 6 / 2**20)
    builder = tfds.builder_from_directory(folder)
    assert builder.info.splits["train"].shard_lengths == [2, 2]
    assert sorted(records(folder)) == [
        "flair-test.array_record-00000-of-00001",
        "flair-train.array_record-00000-of-00002",
        "flair-train.array_record-00001-of-00002",
        "flair-val.array_record-00000-of-00001",
    ]
    whole = tfds.builder_from_directory(built).as_data_source("train")
    for one, other in zip(builder.as_data_source("train"), whole, strict=True):
        assert one["id"] == other["id"]
        np.testing.assert_array_equal(one["image"], other["image"])


def test_skipped_shard_and_split(tmp_path):
    shutil.copytree(DUMMY_DATA, tmp_path / "source")
    images = {path.name[4:-4]: path for path in (tmp_path / "source").rglob("IMG_*.tif")}
    for number in ("003389", "000717", "047250"):
        images[number].write_bytes(b"")
    folder = build(
        tmp_path / "source", tmp_path, on_error="skip", shard_mb=64 * 64 * 6 / 2**20, num_workers=1
    )
    builder = tfds.builder_from_directory(folder)
    assert {name: split.shard_lengths for name, split in builder.info.splits.items()} == {
        "train": [1, 1, 1],
        "test": [1, 1],
    }
    assert len(records(folder)) == 5
    ids = [example["id"].decode() for example in builder.as_data_source("train")]
    assert ids == ["003388", "040112", "052001"]
    assert builder.info.metadata["num_patches"] == {"train": 3, "test": 2}
    assert builder.info.metadata["num_faults_skipped"] == 3
    lines = (folder / "skipped.csv").read_text().splitlines()
    assert lines[0] == "split,kind,file,detail"
    assert lines[1].startswith(f"train,image unreadable,{images['003389']},")
    assert [line.split(",")[0] for line in lines[2:]] == ["val", "val"]


def test_needs_a_source(tmp_path):
    with pytest.raises(BuildError, match="no source given"):
        build(None, tmp_path)
