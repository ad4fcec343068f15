import numpy as np
import pytest
from etils import epath

from flair_jax.data import input_pipeline, metadata
from flair_jax.errors import UserError


@pytest.fixture(scope="module")
def directory(data_dir):
    return input_pipeline.dataset_directory(str(data_dir), "published")


@pytest.fixture(scope="module")
def train(directory):
    return input_pipeline.open_split(directory, "train")


def test_split(train):
    assert (len(train), train.patch_size, train.bands) == (16, (64, 64), 5)


def test_train_order_is_a_new_shuffle_every_epoch():
    first, second = (input_pipeline.train_order(10, 3, seed=7, epoch=e) for e in (0, 1))
    assert first.shape == (3, 3)
    assert len(set(first.ravel())) == 9
    assert first.tolist() != second.tolist()
    again = input_pipeline.train_order(10, 3, seed=7, epoch=0)
    np.testing.assert_array_equal(first, again)


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
        list(input_pipeline.batches(train, order, bands=bands)) for bands in (None, (3, 0))
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
    processes = list(input_pipeline.batches(train, order, num_workers=1))
    assert len(processes) == 4
    for a, b in zip(threads, processes, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])


def test_mask_values_that_map_to_no_class(train):
    order = np.arange(16)[None]
    (batch,) = input_pipeline.batches(train, order)
    present = np.unique(batch["mask"]).tolist()
    absent = [value for value in range(1, 20) if value not in present]
    assert list(input_pipeline.batches(train, order, refused_values=(0, *absent)))
    with pytest.raises(UserError, match=rf"MSK_\d+.tif has the values \[{present[0]}\], which map"):
        list(input_pipeline.batches(train, order, refused_values=(present[0],)))


def test_a_data_set_that_is_not_built(tmp_path):
    with pytest.raises(UserError) as caught:
        input_pipeline.dataset_directory(str(tmp_path), "d077")
    assert f"--source=DOWNLOAD_FOLDER --data_dir={tmp_path} --config=d077" in str(caught.value)
    assert "the data set is not built" in str(caught.value)


def test_version_directory_itself_will_do(directory):
    assert input_pipeline.dataset_directory(str(directory), "any") == epath.Path(directory)


def test_split_that_is_not_there(directory):
    with pytest.raises(UserError, match="has no split 'toy'; it has train, val, test"):
        input_pipeline.open_split(directory, "toy")


def test_batch_larger_than_the_split(train):
    assert input_pipeline.steps_per_epoch(train, 5) == 3
    with pytest.raises(UserError, match=r"config.batch_size=17 is more than the 16 patches"):
        input_pipeline.steps_per_epoch(train, 17)
