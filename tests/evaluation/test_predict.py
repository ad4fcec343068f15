import dataclasses
import json
import os
import shutil
import zipfile

import numpy as np
import pytest
import rasterio
from etils import epath
from PIL import Image
from rasterio.transform import Affine

from flair_jax import config as configuration
from flair_jax.data.nomenclature import BASELINE, FULL, Nomenclature
from flair_jax.errors import UserError
from flair_jax.evaluation.predict import (
    overlay,
    overlay_count,
    overlay_folder,
    predict_checkpoint,
    predict_run,
    write_prediction,
)
from flair_jax.evaluation.submission import check_file, check_submittable, write_submission
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime.sharding import make_mesh
from flair_jax.viz import images

TRANSFORM = np.array([0.2, 0, 700_000, 0, -0.2, 6_600_000])
SPEC = ModelSpec.from_config(configuration.default(), (64, 64))


@pytest.fixture(scope="module")
def split(splits):
    return splits("test")


def predict(workdir, split, output, **options):
    return predict_checkpoint(workdir, split, make_mesh(), batch_size=2, output=output, **options)


@pytest.fixture(scope="module")
def predicted(workdir, split, tmp_path_factory):
    """Predictions of all test patches, with overlays of all, and the zip."""
    folder = tmp_path_factory.mktemp("predicted")
    zipped = folder / "submission.zip"
    assert predict(workdir, split, folder / "out", overlays=None, submission=zipped) == 5
    return folder


def read(path):
    with rasterio.open(path) as raster:
        return raster.read(1)


def test_submission_is_the_predictions_flat(predicted, split):
    numbers = sorted(record["id"].decode() for record in split.records)
    with zipfile.ZipFile(predicted / "submission.zip") as archive:
        assert archive.namelist() == [f"PRED_{number}.tif" for number in numbers]
        assert archive.testzip() is None
        for name in archive.namelist():
            assert archive.read(name) == (predicted / "out" / name).read_bytes()
    assert sorted(p.name for p in predicted.iterdir()) == [
        "out", "out.json", "out_overlays", "submission.zip",
    ]  # fmt: skip


def test_equal_predictions_give_an_equal_zip(predicted, tmp_path):
    write_submission(predicted / "out", tmp_path / "again.zip", 5, (64, 64))
    assert (tmp_path / "again.zip").read_bytes() == (predicted / "submission.zip").read_bytes()


def test_overlays_show_image_and_classes(predicted, split):
    folder = overlay_folder(predicted / "out")
    assert folder == predicted / "out_overlays"
    assert len(list(folder.iterdir())) == 5
    for record in split.records:
        number = record["id"].decode()
        image = np.asarray(Image.open(os.fspath(folder / f"OVERLAY_{number}.png")))
        classes = read(predicted / "out" / f"PRED_{number}.tif")
        colours = BASELINE.rgb[classes].astype(float)
        expected = np.rint(0.55 * record["image"][..., :3] + 0.45 * colours)
        np.testing.assert_array_equal(image[:64, :64], expected)
        names = images.legend(BASELINE, np.unique(classes).tolist())
        np.testing.assert_array_equal(image[: len(names), 64:], names)


@pytest.mark.parametrize(("number", "shown"), [(3, [0, 1, 3]), (9, range(5))])
def test_some_overlays_are_spread_over_the_split(number, shown, workdir, split, tmp_path):
    predict(workdir, split, tmp_path / "out", overlays=number)
    names = sorted(path.name for path in (tmp_path / "out_overlays").iterdir())
    records = [split.records[index]["id"].decode() for index in shown]
    assert names == sorted(f"OVERLAY_{number}.png" for number in records)


def test_overlays_of_earlier_predictions_go_with_them(workdir, split, tmp_path):
    predict(workdir, split, tmp_path / "out", overlays=1)
    assert (tmp_path / "out_overlays").exists()
    predict(workdir, split, tmp_path / "out")
    assert not (tmp_path / "out_overlays").exists()


def test_overlays_without_colour():
    image = np.full((4, 4, 5), 100, np.uint8)
    image[..., 3] = 200
    classes = np.zeros((4, 4), np.uint8)
    mixed = np.rint(0.45 * BASELINE.rgb[0])
    infrared = dataclasses.replace(SPEC, bands=("nir", "red", "green"))
    overlaid = overlay(image[..., [3, 0, 1]], classes, infrared)
    assert overlaid[0, 0].tolist() == np.rint(0.55 * np.array([200, 100, 100]) + mixed).tolist()
    height = dataclasses.replace(SPEC, bands=("height",))
    overlaid = overlay(image[..., 4:], classes, height)
    assert overlaid[0, 0].tolist() == np.rint(55 + mixed).tolist()


def test_how_many_overlays():
    assert [overlay_count(text) for text in ("0", "20", "all")] == [0, 20, None]
    for text in ("-1", "some", ""):
        with pytest.raises(UserError, match=f"--overlays={text}: expected a number of patches"):
            overlay_count(text)


def test_what_the_challenge_does_not_take(workdir, tmp_path):
    check_submittable(tmp_path / "a.zip", "test", BASELINE)
    weighted = Nomenclature(
        "custom", tuple(dataclasses.replace(c, weight=0.5) for c in BASELINE.classes)
    )
    check_submittable(tmp_path / "a.zip", "test", weighted)
    for path, name, nomenclature, message in (
        (tmp_path / "a.zip", "val", BASELINE, "of the test split, not of 'val'"),
        (tmp_path / "a.zip", "test", FULL, "has the 13 classes .* has the 19 of 'full'"),
        (
            tmp_path / "a.zip", "test", Nomenclature("custom", BASELINE.classes[::-1]),
            "has the 13 of 'custom'",
        ),
        (tmp_path / "a.tar", "test", BASELINE, r"a\.tar: expected a \.zip file"),
        (tmp_path / "none" / "a.zip", "test", BASELINE, "in a folder that exists"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            check_submittable(path, name, nomenclature)


def test_a_refusal_predicts_nothing(workdir, split, tmp_path):
    val = dataclasses.replace(split, name="val")
    with pytest.raises(UserError, match="--submission is of the test split"):
        predict(workdir, val, tmp_path / "out", submission=tmp_path / "a.zip")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def predictions(predicted, tmp_path):
    return shutil.copytree(predicted / "out", tmp_path / "out")


def refused(predictions, message, count=5):
    path = predictions.parent / "a.zip"
    path.write_text("of before")
    with pytest.raises(UserError, match=message):
        write_submission(predictions, path, count, (64, 64))
    assert path.read_text() == "of before"
    assert sorted(p.name for p in predictions.parent.iterdir()) == ["a.zip", "out"]


def test_count_and_names_are_checked(predictions):
    refused(predictions, "has 5 files for the split's 6 patches", count=6)
    next(predictions.iterdir()).rename(predictions / "PRED_x.tif")
    refused(predictions, "5 files for the split's 5 patches, and one is PRED_x.tif, not PRED_<num")


def test_the_form_is_checked(predictions):
    path = sorted(predictions.iterdir())[3]
    kept = path.read_bytes()
    classes = read(path)

    def write(values, **changes):
        bands = values if values.ndim == 3 else values[None]
        profile = {"driver": "GTiff", "compress": "lzw", "dtype": bands.dtype} | changes
        profile["transform"] = Affine(*TRANSFORM)
        count, height, width = bands.shape
        with rasterio.open(path, "w", count=count, height=height, width=width, **profile) as file:
            file.write(bands)

    for values, changes, message in (
        (classes[:32], {}, r"size \(32, 64\), not \(64, 64\)"),
        (classes.astype(np.int16), {}, "type int16, not uint8"),
        (np.stack([classes] * 2), {}, "bands 2, not 1"),
        (classes, {"compress": "deflate"}, "compression deflate, not lzw"),
        (classes, {"compress": None}, "compression none, not lzw"),
        (np.full_like(classes, 13), {}, "class 13, where the highest is 12"),
    ):
        write(values, **changes)
        refused(predictions, f"{path.name} has .*{message}")
    Image.fromarray(classes).save(path, "PNG")
    refused(predictions, f"{path.name} has driver PNG, not GTiff")
    path.write_bytes(kept[: len(kept) // 2])
    refused(predictions, f"{path.name} cannot be read")
    write_prediction(path, classes, TRANSFORM, "EPSG:2154")
    check_file(path, (64, 64))


def test_a_run_predicts_from_its_workdir(workdir, data_dir, tmp_path, capsys):
    config = configuration.default()
    config.data_dir, config.batch_size = str(data_dir), 2
    copy = epath.Path(shutil.copytree(workdir, tmp_path / "run"))
    zipped = tmp_path / "mine.zip"
    assert predict_run(config, copy, "test", overlays=1, submission=zipped) == 5
    output = capsys.readouterr().out
    assert f"5 predictions of 'test' in {copy}/predictions\n" in output
    assert f"overlays of them in {copy}/predictions_overlays\n" in output
    assert f"submission in {zipped}: 5 files, checked\n" in output
    assert "FLAIR #1's test split has 15,700 patches, this one 5" in output
    note = json.loads((copy / "predictions.json").read_text())
    assert (note["split"], note["first_class"]) == ("test", 0)
