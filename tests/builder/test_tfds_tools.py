"""The builder used as TFDS documents it; needs TensorFlow."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
pytest.importorskip("pandas")
pytest.importorskip("dill")

import matplotlib as mpl
import tensorflow_datasets as tfds

from tfds_builder.build import build
from tfds_builder.flair.built import Records, open_built
from tfds_builder.flair.flair_dataset_builder import Flair
from tfds_builder.flair.reference import CLASSES

FLAIR = Path(sys.modules[Flair.__module__].__file__).parent
DUMMY_DATA = FLAIR / "dummy_data"


class FlairTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = Flair
    SPLITS = {"train": 4, "val": 2, "test": 2}  # noqa: RUF012
    # The dummy data has no test split of FLAIR #2; training/test_hub.py builds one.
    BUILDER_CONFIG_NAMES_TO_TEST = ["published", "d077"]  # noqa: RUF012


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Those of a build for training."""
    folder = build(DUMMY_DATA, tmp_path_factory.mktemp("records"), num_workers=1, progress=False)
    return list(Records(open_built(folder), "train"))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfrecord")
    build(DUMMY_DATA, folder, num_workers=1, file_format="tfrecord", progress=False)
    return folder


def assert_equal(examples, records):
    for example, record in zip(examples, records, strict=True):
        assert example.keys() == record.keys()
        for name, value in record.items():
            np.testing.assert_array_equal(np.squeeze(example[name]), value)


def test_load(data_dir, records):
    data, info = tfds.load("flair", split="train", data_dir=data_dir, with_info=True)
    assert info.features["mask"].names == ["no mask", *(name for name, _ in CLASSES.values())]
    assert data.element_spec["image"].shape == (64, 64, 5)
    assert_equal(tfds.as_numpy(data), records)
    image, mask = next(iter(tfds.load("flair", split="val", data_dir=data_dir, as_supervised=True)))
    assert (image.shape, mask.shape, mask.dtype) == ((64, 64, 5), (64, 64, 1), tf.uint8)


def test_read_config_and_parts_of_splits(data_dir, records):
    builder = tfds.builder_from_directory(data_dir / "flair/published" / str(Flair.VERSION))
    config = tfds.ReadConfig(add_tfds_id=True, interleave_cycle_length=1)
    data = builder.as_dataset(split="train[25%:75%]", read_config=config)
    examples = list(tfds.as_numpy(data))
    assert [example.pop("tfds_id")[-1:] for example in examples] == [b"1", b"2"]
    assert_equal(examples, records[1:3])
    mask_only = tfds.decode.PartialDecoding({"mask": True})
    (example, *_) = builder.as_dataset(split="test", decoders=mask_only)
    assert example.keys() == {"mask"}


def test_as_dataframe(data_dir, records):
    data, info = tfds.load("flair", split="train", data_dir=data_dir, with_info=True)
    frame = tfds.as_dataframe(data, info)
    assert [number.decode() for number in frame["id"]] == [r["id"].decode() for r in records]
    assert frame._repr_html_().count('alt="Img"') == len(records)  # thumbnails of masks


def test_show_examples(data_dir):
    mpl.use("agg")
    data, info = tfds.load("flair", split="train", data_dir=data_dir, with_info=True)
    figure = tfds.show_examples(data, info, rows=2, cols=2)
    shown = [axes.images[0].get_array().shape for axes in figure.axes]
    assert shown == [(64, 64)] * 4


@pytest.mark.parametrize("file_format", [None, "array_record"])
def test_tfds_build(tmp_path, records, file_format):
    options = [f"--manual_dir={DUMMY_DATA}", f"--data_dir={tmp_path}", "--config=published"]
    options += [f"--file_format={file_format}"] if file_format else []
    command = [sys.executable, "-m", "tensorflow_datasets.scripts.cli.main", "build", *options]
    environment = os.environ | {"PYTHONPATH": str(FLAIR.parents[1])}
    done = subprocess.run(
        command, cwd=FLAIR, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "flair/published" / str(Flair.VERSION)
    built = open_built(folder)
    assert built.builder.info.file_format.value == (file_format or "tfrecord")
    assert [built.damage(split) for split in built.num_patches] == [[], [], []]
    if file_format:
        assert_equal(built.builder.as_data_source("train"), records)
    else:
        assert_equal(tfds.as_numpy(built.builder.as_dataset(split="train")), records)
