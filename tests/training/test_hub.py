"""FLAIR-HUB's recipe and FLAIR #2's test split: from the build to scores, page and doctor."""

import dataclasses
import json

import hub_data
import numpy as np
import pytest
import tiny_model

from flair_jax import config as configuration
from flair_jax.data import dataset, synthetic
from flair_jax.data.description import FLAIR_DATA
from flair_jax.data.nomenclature import COSIA, HUB, Nomenclature
from flair_jax.doctor import examine
from flair_jax.errors import UserError
from flair_jax.evaluation import summarize
from flair_jax.evaluation.evaluate import evaluate_checkpoint
from flair_jax.inference.loading import save_model
from flair_jax.models.functional import split_model
from flair_jax.models.spec import ModelSpec
from flair_jax.report.page import write_report
from flair_jax.runtime.sharding import make_mesh
from flair_jax.training import loop
from tfds_builder.build import build


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    return hub_data.make(root / "hub", root / "flair")


@pytest.fixture(scope="module")
def data_dir(hub, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("data")
    build(hub.root, data_dir, "hub", num_workers=1, progress=False)
    return data_dir


@pytest.fixture(scope="module")
def small_network():
    """Training is the recipe's; the network compiles in seconds."""
    with tiny_model.installed():
        yield


@pytest.fixture(scope="module")
def run(data_dir, small_network, tmp_path_factory):
    """A workdir after an epoch of configs/hub.py, and its scores."""
    workdir = tmp_path_factory.mktemp("runs") / "hub"
    config = configuration.read("hub").copy_and_resolve_references()
    config.data_dir, config.num_epochs, config.tensorboard_patches = str(data_dir), 1, 0
    config.log_every_steps = 1
    return workdir, loop.train_and_evaluate(config, workdir)


def test_an_epoch_of_the_recipe(run):
    workdir, metrics = run
    spec = ModelSpec.load(workdir / "checkpoints")
    assert spec.bands == ("red", "green", "blue", "nir", "height")
    assert spec.nomenclature.names == COSIA.names
    assert spec.nomenclature.weights.tolist() == [1] * 15 + [0] * 4
    assert spec.mask_values == HUB.names_of_values
    assert (spec.data_name, spec.synthetic, spec.is_flairs) == ("FLAIR-HUB", True, False)
    assert spec.means[0] == 105.66
    assert (metrics["data"], metrics["num_patches"]) == ("FLAIR-HUB", 4)
    assert metrics["classes"] == COSIA.names
    assert set(metrics["by_domain"]) == {"D012-2019", "D022-2021", "D026-2020"}
    assert "by_month" in metrics
    assert "by_camera" not in metrics
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 2  # batches of 5
    assert np.isfinite(losses).all()


def test_the_report_names_no_published_score(run):
    workdir, _ = run
    words = write_report([workdir]).read_text().split("<main>")[1]
    words = words.split("What differs from the defaults")[0]
    assert "greenhouse" in words
    assert "ublished" not in words
    summary = summarize.summarize([workdir])
    assert "FLAIR #1" not in summary
    assert "0.5443" not in summary


def test_the_doctor_speaks_of_cosias_classes(data_dir):
    scan, findings = examine.doctor(data_dir=str(data_dir), data_config="hub")
    assert not [finding for finding in findings if finding.severity == "fault"]
    text = examine.as_text(scan, findings)
    assert "'FLAIR-HUB', patches: train 12, val 4, test 4" in text
    assert "undefined" in text
    # Neither occurs in train: one is scored, the other has weight 0.
    warnings = [finding.message for finding in findings if finding.severity == "warning"]
    assert warnings == []
    assert "FLAIR #1" not in text


def test_a_model_is_scored_by_the_masks_of_both(hub, data_dir, small_network, tmp_path):
    """By FLAIR #1's and FLAIR-HUB's masks of the same patches the scores are the same."""
    flair = build(hub.flair, tmp_path / "flair", num_workers=1, progress=False)
    splits = [
        dataset.open_split(folder, "test") for folder in (flair, data_dir / "flair_hub/hub/1.0.0")
    ]
    config = configuration.default()
    for name in ("baseline", "full", "cosia"):
        config.nomenclature = name
        specs = [ModelSpec.from_config(config, (64, 64), 0.2, split.data) for split in splits]
        assert specs[1].mask_values == HUB.names_of_values
        assert specs[1].for_masks_of(splits[0].data).nomenclature == specs[0].nomenclature
        for trained_on, spec in enumerate(specs):
            workdir = tmp_path / f"{name}{trained_on}"
            _, params, batch_stats = split_model(spec.build_model())
            save_model(workdir / "checkpoints", spec, params, batch_stats)
            flairs, hubs = (
                evaluate_checkpoint(
                    workdir, split, make_mesh(), batch_size=4, loss_normalization="pixels"
                )
                for split in splits
            )
            assert (flairs["data"], hubs["data"]) == ("FLAIR #1", "FLAIR-HUB")
            # The patches are in another order.
            assert flairs["confusion_matrix"] == hubs["confusion_matrix"]
            assert flairs["classes"] == hubs["classes"]


def test_masks_of_others_are_refused(data_dir):
    cosia = dataset.open_split(data_dir / "flair_hub/hub/1.0.0", "test").data
    config = configuration.default()
    config.nomenclature = "data"
    spec = ModelSpec.from_config(config, (64, 64), 0.2, cosia)
    assert spec.nomenclature.classes == HUB.classes
    mine = dataclasses.replace(FLAIR_DATA, name="mine", nomenclature=Nomenclature("mine", ()))
    with pytest.raises(UserError, match="was trained on 'FLAIR-HUB', whose mask values stand for"):
        spec.for_masks_of(mine).check_data(mine, "here", scored=True)


def test_a_data_set_that_is_not_built(tmp_path):
    with pytest.raises(UserError, match=r"(?s)flair_hub/hub/\*/.*--config=hub"):
        dataset.dataset_directory(str(tmp_path), "hub")


@pytest.fixture(scope="module")
def flair_2(tmp_path_factory):
    """The folder of FLAIR #1's stand-in whose test patches lie in FLAIR #2's folder."""
    root = tmp_path_factory.mktemp("mirror")
    synthetic.generate(root, patch_size=64, train=12, val=4, test=4)
    for kind, folder in (("aerial", "flair_1_aerial_test"), ("labels", "flair_1_labels_test")):
        (root / "flair#2-test").mkdir(exist_ok=True)
        (root / folder).rename(root / "flair#2-test" / kind)
    return root


def test_scores_on_flair_2_are_compared_with_its_own(flair_2, small_network, tmp_path, capsys):
    data_dir = tmp_path / "data"
    folder = build(flair_2, data_dir, "flair2", num_workers=1)
    out = capsys.readouterr().out
    assert "absent domains of FLAIR #2's train and val, 32 of 40" in out
    assert f"--config=baseline --config.data_dir={data_dir} --config.data_config=flair2" in out
    assert folder == data_dir / "flair/flair2/1.1.0"
    scan, findings = examine.doctor(data_dir=str(data_dir), data_config="flair2")
    text = examine.as_text(scan, findings)
    assert "8 of FLAIR #2's 40 domains of train and val" in text
    assert "test 4 of 16,050" in text
    assert "test: " not in text  # no frequencies of classes to compare with
    config = configuration.read("baseline").copy_and_resolve_references()
    config.data_dir, config.data_config = str(data_dir), "flair2"
    config.batch_size, config.num_epochs, config.tensorboard_patches = 6, 1, 0
    metrics = loop.train_and_evaluate(config, tmp_path / "run")
    assert (metrics["data"], metrics["num_patches"]) == ("FLAIR #2", 4)
    summary = summarize.summarize([tmp_path / "run"])
    assert "0.5470" in summary
    assert "0.5443" not in summary
    assert "The published scores are of FLAIR #2's 16,050 test patches" in summary

    def words():
        page = write_report([tmp_path / "run"], gallery=0).read_text()
        return " ".join(page.split("<main>")[1].split("What differs from the defaults")[0].split())

    assert "Published scores are of FLAIR #2's 16,050 test patches" in words().replace("&#39;", "'")
    path = tmp_path / "run/evaluation/test/metrics.json"
    path.write_text(json.dumps(metrics | {"num_patches": 16_050, "synthetic": False}))
    page = words().replace("&#39;", "'")
    assert (
        "The published baseline has a mIoU of 0.5470 on these patches, FLAIR #2's test split "
        "(challenge definition; PyTorch); with metadata and augmentation 0.5593."
    ) in page
    assert "0.5443" not in page
    assert "published for the baseline beside" not in page  # its recall is not published
