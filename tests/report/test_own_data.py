"""A model of a user's own images: scores, predictions, report and map speak of its classes."""

import json

import numpy as np
import own_images
import pytest
import rasterio

import flair_jax
from flair_jax import config as configuration
from flair_jax.data.dataset import open_split
from flair_jax.evaluation import summarize, tables
from flair_jax.evaluation.evaluate import evaluate_checkpoint
from flair_jax.evaluation.predict import predict_checkpoint
from flair_jax.inference.loading import save_model
from flair_jax.models.functional import split_model
from flair_jax.models.spec import ModelSpec
from flair_jax.report.page import write_report
from flair_jax.runtime.sharding import make_mesh


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a run that has learned nothing, scored."""
    root = tmp_path_factory.mktemp("own")
    folder = own_images.built(root)
    config = configuration.read("own_data").copy_and_resolve_references()
    config.data_dir, config.data_config = str(folder.parents[2]), "mine"
    test = open_split(folder, "test")
    spec = ModelSpec.from_config(config, (64, 64), 0.0, test.data)
    workdir = root / "run"
    workdir.mkdir()
    configuration.save(config, workdir)
    _, params, batch_stats = split_model(spec.build_model())
    save_model(workdir / "checkpoints", spec, params, batch_stats)
    metrics = evaluate_checkpoint(
        workdir, test, make_mesh(), batch_size=2, loss_normalization="pixels",
        output=workdir / "evaluation/test",
    )  # fmt: skip
    return workdir, metrics, test


def test_scores_are_of_its_classes_and_groups(run):
    _, metrics, test = run
    assert metrics["classes"] == ["water", "land"]
    assert (metrics["data"], metrics["synthetic"]) == ("mine", False)
    assert [key for key in metrics if key.startswith("by_")] == ["by_group"]
    assert list(metrics["by_group"]) == ["c"]
    # What is padded counts nowhere.
    labelled = sum((record["mask"] != 255).sum() for record in test.records)
    assert np.sum(metrics["confusion_matrix"]) == labelled == 64 * 100
    text = tables.all_tables(metrics)
    assert "\ngroup " in text
    assert not {"domain", "camera", "month"} & set(text.split())


def test_the_page_does_not_speak_of_flair(run, monkeypatch):
    workdir, _, _ = run
    page = write_report([workdir]).read_text()
    words = page.split("<main>")[1].split("What differs from the defaults")[0]
    for text in ("FLAIR", "published", "Infrared", "camera", "month", "pervious", "synthetic"):
        assert text not in words
    assert "c, 1</span>" in words
    # Every class is scored and occurs: the definitions do not differ, and are not shown apart.
    assert "Same IoU here: “main” definition, open-vocabulary definition." in words
    assert "definition: mIoU" not in words
    assert "the share of all 6,400 labelled pixels that are right" in words
    assert "no interval: all patches are of one zone" in words
    assert "not labelled</li>" in words
    assert '<th scope="col">group</th>' in words
    assert "FLAIR land cover" not in page
    assert "IGN" not in page.split("<main>")[1]
    summary = summarize.summarize([workdir])
    assert "Published" not in summary
    assert "published scores are" not in summary


def test_predictions_and_map(run, tmp_path, capsys):
    workdir, _, test = run
    output = tmp_path / "predictions"
    predict_checkpoint(workdir, test, make_mesh(), batch_size=2, output=output)
    assert {path.name for path in output.iterdir()} == {"PRED_c_1_0_0.tif", "PRED_c_1_0_64.tif"}
    assert json.loads((tmp_path / "predictions.json").read_text())["classes"] == ["water", "land"]
    with rasterio.open(output / "PRED_c_1_0_0.tif") as raster:
        assert raster.crs is None
        assert raster.transform.is_identity
    image = workdir.parent / "source/c/images/1.png"
    flair_jax.detect_raster(workdir, image, tmp_path / "map.tif", tile=64, margin=16, batch_size=2)
    out = capsys.readouterr().out
    assert "synthetic" not in out
    with rasterio.open(tmp_path / "map.tif") as raster:
        assert raster.tags()["CLASS_NAMES"] == "1 water; 2 land"
        assert raster.tags()["MODEL_TRAINED_ON"] == "mine"
