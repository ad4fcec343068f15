import io

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from tensorboard_events import images

from flair_jax.config import default
from flair_jax.data.dataset import dataset_directory, open_split
from flair_jax.data.nomenclature import BASELINE
from flair_jax.inference.predictor import Model
from flair_jax.models.functional import split_model
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime.sharding import make_mesh
from flair_jax.training.image_summaries import ImageSummaries
from flair_jax.training.metric_writer import MetricWriter
from flair_jax.viz.images import paint


@pytest.fixture(scope="module")
def split(data_dir):
    return open_split(dataset_directory(str(data_dir), "published"), "train")


@pytest.fixture(scope="module")
def spec():
    config = default()
    config.bands = ("nir", "green")
    return ModelSpec.from_config(config, (64, 64))


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def test_patches_are_spread_over_the_split(split, spec):
    graphdef = nnx.split(spec.abstract_model())[0]
    indices = [ImageSummaries(split, n, graphdef, spec, make_mesh()).indices for n in (1, 4, 99)]
    assert len(split) == 16
    assert indices == [[8], [2, 6, 10, 14], list(range(16))]


def test_tensorboard_has_images_and_truth_once_and_predictions_at_each_epoch(split, spec, tmp_path):
    graphdef, params, batch_stats = split_model(spec.build_model())
    made = ImageSummaries(split, 2, graphdef, spec, make_mesh())
    writer = MetricWriter(tmp_path, 0)
    confusion = np.eye(13, dtype=np.int64)
    made.write(writer, 4, params, batch_stats, confusion, first=True)
    made.write(writer, 8, params, batch_stats, confusion, first=False)
    made.close()
    writer.close()
    found = images(tmp_path / "tensorboard")
    records = [split.records[index] for index in (4, 12)]
    names = [record["id"].decode() for record in records]
    assert sorted(found) == sorted(
        [(4, f"patches/{name}_{what}") for name in names for what in ("colour", "truth")]
        + [(step, f"patches/{name}_prediction") for name in names for step in (4, 8)]
        + [(step, "confusion_matrix") for step in (4, 8)]
    )
    model = Model("", make_mesh(), spec, params, batch_stats, 0)
    for name, record in zip(names, records, strict=True):
        colour = pixels(found[4, f"patches/{name}_colour"])
        np.testing.assert_array_equal(colour, record["image"][..., :3])
        truth = pixels(found[4, f"patches/{name}_truth"])
        np.testing.assert_array_equal(truth, paint(BASELINE.labels[record["mask"]], BASELINE))
        classes = np.argmax(model(record["image"][None][..., [3, 1]])[0], -1)
        predicted = pixels(found[8, f"patches/{name}_prediction"])
        assert (predicted == paint(classes, BASELINE)).all(-1).mean() > 0.99  # rounding may decide
    height, width, channels = pixels(found[8, "confusion_matrix"]).shape
    assert (min(height, width) > 500, channels) == (True, 3)
