import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from flair_jax.data import dataset, input_pipeline, metadata, synthetic
from flair_jax.data.bands import BANDS
from flair_jax.data.input_pipeline import Reading, TrainOrder
from flair_jax.errors import UserError
from tfds_builder.build import build


@pytest.fixture(scope="module")
def directory(data_dir):
    return dataset.dataset_directory(str(data_dir), "published")


@pytest.fixture(scope="module")
def train(directory):
    return dataset.open_split(directory, "train")


def test_split(train):
    assert (len(train), train.patch_size, train.data.bands) == (16, (64, 64), BANDS)


def test_train_order_is_a_new_shuffle_every_epoch():
    first, second = (input_pipeline.train_order(10, 3, seed=7, epoch=e) for e in (0, 1))
    assert first.shape == (3, 3)
    assert len(set(first.ravel())) == 9
    assert first.tolist() != second.tolist()
    again = input_pipeline.train_order(10, 3, seed=7, epoch=0)
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("first", [0, 2, 3, 7])
def test_the_order_of_a_training_is_that_of_its_epochs(first):
    epochs = [input_pipeline.train_order(10, 3, seed=7, epoch=e) for e in range(3)]
    order = TrainOrder(10, 3, 7, epochs=3, first=first, columns=np.array([2, 0]))
    rows = np.concatenate(epochs)[first:, [2, 0]]
    assert len(order) == len(rows)
    np.testing.assert_array_equal([order[i] for i in range(len(order))], rows)


def test_batches_of_several_epochs(train):
    order = TrainOrder(16, 4, 0, epochs=2, first=3)
    whole = np.concatenate([input_pipeline.train_order(16, 4, 0, e) for e in (0, 1)])[3:]
    for made, expected in zip(
        input_pipeline.batches(train, order), input_pipeline.batches(train, whole), strict=True
    ):
        np.testing.assert_array_equal(made["image"], expected["image"])


def test_repeated_batches(train):
    order = input_pipeline.eval_order(5, 4)
    repeated = list(input_pipeline.batches(train, order, times=3))
    tiled = list(input_pipeline.batches(train, np.tile(order, (3, 1))))
    assert len(repeated) == len(tiled) == 6
    for made, expected in zip(repeated, tiled, strict=True):
        assert made.keys() == expected.keys()
        for name in made:
            np.testing.assert_array_equal(made[name], expected[name])


def test_nothing_is_left_of_a_training(train):
    assert not list(input_pipeline.batches(train, TrainOrder(16, 4, 0, epochs=1, first=4)))


def test_eval_order_has_every_sample_once_and_padding():
    order = input_pipeline.eval_order(5, 4)
    assert order.tolist() == [[0, 1, 2, 3], [4, -1, -1, -1]]


def test_batches_hold_the_records_as_they_are(train):
    order = np.array([[3, 1, 0, 7], [2, -1, -1, -1]])
    first, second = input_pipeline.batches(
        train, order, metadata_encoding="reference", keep=("id", "crs", "transform")
    )
    assert first["image"].shape == (4, 64, 64, 5)
    assert first["image"].dtype == first["mask"].dtype == np.uint8
    for i, index in enumerate(order[0]):
        record = train.records[int(index)]
        np.testing.assert_array_equal(first["image"][i], record["image"])
        np.testing.assert_array_equal(first["mask"][i], record["mask"])
        assert first["id"][i] == record["id"].decode()
        np.testing.assert_array_equal(first["transform"][i], record["transform"])
        expected = metadata.encode(
            "reference",
            record["centroid"],
            *(record[k].decode() for k in ("date", "time", "camera")),
        )
        np.testing.assert_allclose(first["metadata"][i], expected, rtol=1e-6)
    assert first["metadata"].dtype == np.float32
    assert first["crs"].tolist() == ["EPSG:2154"] * 4
    assert second["valid"].tolist() == second["sample"].tolist() == [True, False, False, False]


def test_bands_are_chosen_and_ordered(train):
    order = np.array([[3, 1]])
    (whole,), (chosen,) = (
        list(input_pipeline.batches(train, order, bands=bands)) for bands in (None, ("nir", "red"))
    )
    np.testing.assert_array_equal(chosen["image"], whole["image"][..., [3, 0]])


def test_processes_read_their_rows_of_each_global_batch(train):
    order = input_pipeline.train_order(16, 8, seed=0, epoch=0)
    whole = list(input_pipeline.batches(train, order))
    for rows in ([0, 1, 6, 7], [2, 3, 4, 5]):
        part = list(input_pipeline.batches(train, order[:, rows]))
        for step, batch in enumerate(whole):
            np.testing.assert_array_equal(part[step]["image"], batch["image"][rows])


def test_batches_do_not_depend_on_where_they_begin(train):
    order = input_pipeline.train_order(16, 4, seed=0, epoch=3)
    whole = list(input_pipeline.batches(train, order))
    rest = list(input_pipeline.batches(train, order[2:]))
    assert (len(whole), len(rest)) == (4, 2)
    np.testing.assert_array_equal(rest[0]["image"], whole[2]["image"])


def test_reader_processes_give_the_same_batches(train):
    order = input_pipeline.train_order(16, 4, seed=0, epoch=0)
    threads = list(input_pipeline.batches(train, order))
    processes = list(input_pipeline.batches(train, order, reading=Reading(workers=1)))
    assert len(processes) == 4
    for a, b in zip(threads, processes, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])


def test_mask_values_that_map_to_no_class(train):
    order = np.arange(16)[None]
    (batch,) = input_pipeline.batches(train, order)
    present = np.unique(batch["mask"]).tolist()
    absent = [value for value in range(1, 20) if value not in present]
    assert list(input_pipeline.batches(train, order, refused_values=(0, *absent)))
    with pytest.raises(UserError, match=rf"patch \d+ has the values \[{present[0]}\], which map"):
        list(input_pipeline.batches(train, order, refused_values=(present[0],)))


def test_damaged_records_are_one_error_that_names_the_shard(directory, tmp_path):
    copy = Path(shutil.copytree(directory, tmp_path / "copy"))
    (shard,) = copy.glob("flair-train*")
    content = bytearray(shard.read_bytes())
    content[300_000:300_100] = bytes(100)
    shard.write_bytes(content)
    split = dataset.open_split(copy, "train")
    for reading in (Reading(), Reading(workers=1)):
        with pytest.raises(UserError) as caught:
            list(input_pipeline.batches(split, np.arange(16)[None], reading=reading))
        assert f"{shard} is damaged: record 11 of its split cannot be read (" in str(caught.value)
        assert f"flair-jax doctor --data_dir={copy}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dataset_info.json", b"{", "is damaged: "),
        ("features.json", None, "is missing"),
        ("metadata.json", b"\xff", "is damaged: 'utf-8' codec can't decode"),
        ("fingerprint.json", b"{}", "is damaged: KeyError('options')"),
        ("flair-train.array_record-00000-of-00001", b"", ": 0 bytes, where 524,288 were written"),
        ("flair-train.array_record-00000-of-00001", None, ": No such file or directory"),
    ],
)
def test_damaged_files_are_found_when_a_split_is_opened(
    directory, tmp_path, name, content, message
):
    copy = Path(shutil.copytree(directory, tmp_path / "copy"))
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        dataset.open_split(copy, "train")
    first, *_, last = str(caught.value).splitlines()
    assert first.startswith(f"{copy / name}{'' if message[0] == ':' else ' '}{message}")
    assert last == f"  flair-jax doctor --data_dir={copy}"


def test_the_newest_version_is_taken(tmp_path):
    for version in ("1.9.0", "1.10.0", "1.2.11", ".1.11.0.incomplete", "1.10.0.old"):
        (tmp_path / "flair/published" / version).mkdir(parents=True)
    found = dataset.dataset_directory(str(tmp_path), "published")
    assert found.name == "1.10.0"
    with pytest.raises(UserError, match=r"1\.10\.0/dataset_info\.json is missing"):
        dataset.open_split(found, "train")


def test_other_file_formats_are_refused(tmp_path):
    synthetic.generate(tmp_path / "source", patch_size=64, train=1, val=1, test=1)
    folder = build(
        tmp_path / "source", tmp_path, file_format="parquet", num_workers=1, progress=False
    )
    with pytest.raises(UserError, match="is in parquet files, and only array_record is read here"):
        dataset.open_split(folder, "train")


@pytest.fixture
def limits():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_of_open_files_is_raised(limits):
    _, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    dataset.allow_open_files(40, "unused")
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, hard)
    dataset.allow_open_files(454, "unused")
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (454 + 256, hard)
    dataset.allow_open_files(10, "unused")
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (454 + 256, hard)


def test_more_shards_than_the_system_lets_open(directory, monkeypatch):
    def refuse(kind, values):
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 256))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    with pytest.raises(UserError) as caught:
        dataset.open_split(directory, "train")
    assert str(caught.value) == (
        f"the data set {directory} has 3 shards, which stay open while they are read, and this "
        "process may open 256 files: raise the limit (ulimit -n 259), or build the data set anew "
        "with a larger --shard_mb"
    )


@pytest.mark.parametrize(
    ("batch_mb", "prefetch_mb", "threads", "processes", "expected"),
    [
        (12.6, 256, 4, 1, 8),  # small batches: as many as ever
        (47, 256, 4, 1, 5),
        (47, 256, 4, 2, 2),
        (400, 256, 4, 1, 1),
        (0.001, 256, 16, 1, 16),
        (47, 0, 4, 1, 1),
    ],
)
def test_prefetching_is_bound_by_bytes(batch_mb, prefetch_mb, threads, processes, expected):
    batch_bytes = int(batch_mb * 2**20)
    count = input_pipeline.prefetch_batches(batch_bytes, prefetch_mb, threads, processes)
    assert count == expected


def test_a_data_set_that_is_not_built(tmp_path):
    with pytest.raises(UserError) as caught:
        dataset.dataset_directory(str(tmp_path), "d077")
    assert f"--source=DOWNLOAD_FOLDER --data_dir={tmp_path} --config=d077" in str(caught.value)
    assert "the data set is not built" in str(caught.value)


def test_version_directory_itself_will_do(directory):
    assert dataset.dataset_directory(str(directory), "any") == epath.Path(directory)


def test_split_that_is_not_there(directory):
    with pytest.raises(UserError, match="has no split 'toy'; it has train, val, test"):
        dataset.open_split(directory, "toy")


def test_batch_larger_than_the_split(train):
    assert input_pipeline.steps_per_epoch(train, 5) == 3
    with pytest.raises(UserError, match=r"config.batch_size=17 is more than the 16 patches"):
        input_pipeline.steps_per_epoch(train, 17)


@pytest.mark.parametrize(("builder", "there"), [("flair", "d077"), ("flair_hub", "hub")])
def test_the_data_sets_that_are_there_are_named(tmp_path, builder, there):
    (tmp_path / builder / there / "1.0.0").mkdir(parents=True)
    with pytest.raises(UserError, match=f"'published' in .* one that is there: {there}$"):
        dataset.dataset_directory(str(tmp_path), "published")
