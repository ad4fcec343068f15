import importlib.util
import json
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from flair_jax.data import synthetic
from tfds_builder.flair import flair_dataset_builder
from tfds_builder.flair.built import Records, open_built
from tfds_builder.flair.faults import BuildError
from tfds_builder.flair.flair_dataset_builder import Flair, FlairConfig
from tfds_builder.flair.shards import check_format

DUMMY_DATA = Path(flair_dataset_builder.__file__).parent / "dummy_data"
# The synthetic patches, in the order of the formula of their pixels.
NUMBERS = {
    "train": ["003388", "003389", "040112", "052001"],
    "val": ["000717", "047250"],
    "test": ["062613", "076311"],
}
NUMBERED = [number for numbers in NUMBERS.values() for number in numbers]


VERSION = str(Flair.VERSION)


def build(source, data_dir, file_format="array_record", **options):
    builder = Flair(
        data_dir=data_dir, source=source, **{"num_workers": 1, "progress": False} | options
    )
    builder.download_and_prepare(download_dir=data_dir / "d", file_format=file_format)
    return Path(builder.data_dir)


def records(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*array_record*")}


def ids(folder, split="train"):
    return [record["id"].decode() for record in Records(open_built(folder), split)]


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
            np.testing.assert_array_equal(example["mask"][..., 0], mask)
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
    assert info.metadata["bands"] == ["red", "green", "blue", "nir", "height"]
    assert info.metadata["classes"][0] == {"value": 1, "name": "building", "colour": "#db0e9a"}
    assert [c["value"] for c in info.metadata["classes"]] == list(range(1, 20))
    assert info.metadata["patch_size"] == [64, 64]
    assert info.metadata["num_patches"] == {"train": 4, "val": 2, "test": 2}
    assert info.metadata["num_faults_skipped"] == info.metadata["num_warnings"] == 0
    first, second = info.metadata["notes"]
    assert first == (
        "absent domains of FLAIR #1, 43 of 50: D007_2020, D008_2019, D009_2019, D013_2020,"
        " D014_2020 and 38 more"
    )
    assert second == (
        "incomplete domains of val and test, 4: D004_2021 (1 of 1,800 patches), D070_2020 (1 of"
        " 1,775 patches), D012_2019 (1 of 1,750 patches), D085_2019 (1 of 1,750 patches)"
    )
    assert info.full_name == f"flair/published/{VERSION}"
    assert "Garioud" in info.citation
    assert info.description.startswith("FLAIR #1")
    assert "--" not in info.description
    assert "Etalab" in (built / "LICENSE").read_text()
    assert info.features["image"].shape == (64, 64, 5)
    assert info.features["mask"].shape == (64, 64, 1)
    assert info.features["mask"].names[:2] == ["no mask", "building"]


def test_no_path_of_the_building_host_is_stored(tmp_path):
    shutil.copytree(DUMMY_DATA, tmp_path / "source")
    (tmp_path / "source/flair_aerial_train/IMG_1.tif").write_bytes(b"")
    next((tmp_path / "source").rglob("IMG_003388.tif")).write_bytes(b"")
    folder = build(tmp_path / "source", tmp_path, on_error="skip")
    notes = json.loads((folder / "metadata.json").read_text())["notes"]
    assert notes[0].endswith("the first: flair_aerial_train/IMG_1.tif")
    image = "flair_aerial_train/D006_2020/Z15_UU/img/IMG_003388.tif"
    assert f"train,image unreadable,{image},it is empty" in (folder / "skipped.csv").read_text()
    for path in folder.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()


def test_no_path_of_a_list_is_stored(tmp_path):
    path = tmp_path / "lists" / "train.csv"
    path.parent.mkdir()
    path.write_text("IMG_003388.tif\nIMG_003388.tif\nIMG_999999.tif\nIMG_003389.tif\n")
    config = FlairConfig(name="of_lists", lists={"train": str(path)}, description="x")
    folder = build(DUMMY_DATA, tmp_path, config=config, on_error="skip")
    assert (folder / "skipped.csv").read_text().splitlines()[1:] == [
        "train,listed but not found,IMG_999999.tif,line 3 of train.csv; not in .",
        "train,listed twice,flair_aerial_train/D006_2020/Z15_UU/img/IMG_003388.tif,"
        "line 1 of train.csv and line 2 of train.csv",
    ]


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
    assert folder == tmp_path / f"flair/d077/{VERSION}"
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
    assert ids(folder) == ids(built)


def test_shuffled(built, tmp_path):
    folder = build(DUMMY_DATA, tmp_path, shuffle=True)
    assert ids(built) == sorted(ids(built)) == sorted(ids(folder)) != ids(folder)
    again = build(DUMMY_DATA, tmp_path / "again", shuffle=True, num_workers=2)
    assert records(again) == records(folder)


def test_parquet(built, tmp_path):
    folder = build(DUMMY_DATA, tmp_path, "parquet")
    (file,) = folder.glob("*train*")
    assert pq.read_table(file).num_rows == 4
    source = tfds.builder_from_directory(folder).as_data_source("train")
    assert [record["id"].decode() for record in source] == ids(built)
    with pytest.raises(BuildError, match="is in parquet files, and only array_record is read here"):
        Records(open_built(folder), "train")


def test_parquet_with_many_records_in_a_shard(tmp_path):
    synthetic.generate(tmp_path / "source", patch_size=64, train=230, val=1, test=1)
    folder = build(tmp_path / "source", tmp_path, "parquet")
    source = tfds.builder_from_directory(folder).as_data_source("train")
    numbers = [int(record["id"]) for record in source]
    assert sorted(numbers) == list(range(1, 231))


def test_the_default_of_tfds_needs_tensorflow(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorflow" else find_spec(name)
    )
    message = (
        "file_format 'tfrecord' needs the package tensorflow, which is not installed; training"
        " reads array_record, which needs no other package"
    )
    with pytest.raises(BuildError, match=message):
        build(DUMMY_DATA, tmp_path, file_format=None)
    with pytest.raises(BuildError, match="no file format 'csv': there are array_record, tfre"):
        check_format("csv")
    assert list((tmp_path / "flair/published").iterdir()) == []


def test_the_manual_folder_of_tfds(built, tmp_path):
    builder = Flair(data_dir=tmp_path, num_workers=1, progress=False, file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=DUMMY_DATA)
    )
    assert records(Path(builder.data_dir)) == records(built)


def test_reading_with_the_builder_itself(built):
    builder = Flair(data_dir=built.parents[2])
    assert builder.info.features["image"].shape == (64, 64, 5)
    assert len(builder.as_data_source("val")) == 2


def test_size_on_disk_is_known_before(tmp_path):
    synthetic.generate(tmp_path / "source", patch_size=128, train=20, val=2, test=2)
    builder = Flair(data_dir=tmp_path, source=tmp_path / "source", shard_mb=1)
    plan = builder.plan(tmp_path / "source")
    folder = build(tmp_path / "source", tmp_path, shard_mb=1)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size <= plan.nbytes() < 1.1 * size


def test_disk_without_space(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(BuildError, match=r"needs 0.\d+ GB, and the disk of data_dir has 1e-06 GB"):
        build(DUMMY_DATA, tmp_path)
    assert list((tmp_path / "flair/published").iterdir()) == []


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
    assert ids(folder) == ["003388", "040112", "052001"]
    assert builder.info.metadata["num_patches"] == {"train": 3, "test": 2}
    assert builder.info.metadata["num_faults_skipped"] == 3
    lines = (folder / "skipped.csv").read_text().splitlines()
    assert lines[0] == "split,kind,file,detail"
    name = images["003389"].relative_to(tmp_path / "source")
    assert lines[1] == f"train,image unreadable,{name},it is empty"
    assert [line.split(",")[0] for line in lines[2:]] == ["val", "val"]


def test_needs_a_source(tmp_path):
    with pytest.raises(AssertionError, match=r"Manual directory .*\n.*\n.*flair_aerial_train"):
        build(None, tmp_path)
