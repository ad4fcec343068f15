"""Batch statistics re-estimated from the images of a domain."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from flair_jax import config as configuration
from flair_jax.data.dataset import as_text
from flair_jax.errors import UserError
from flair_jax.evaluation.adaptation import parts
from flair_jax.evaluation.evaluate import NoMasksError, evaluate_checkpoint, evaluate_run
from flair_jax.evaluation.predict import predict_checkpoint
from flair_jax.inference.adaptation import BATCH, adaptation_order, adapted_statistics
from flair_jax.inference.loading import load, save_model
from flair_jax.models.functional import split_model
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime.sharding import make_mesh

SPEC = ModelSpec.from_config(configuration.default(), (64, 64))


@pytest.fixture(scope="module")
def split(splits):
    return splits("train")


@pytest.fixture(scope="module")
def model(workdir):
    return load(workdir, make_mesh())[1:3]


def images(seed):
    return np.random.default_rng(seed).integers(0, 256, (BATCH, 64, 64, 5), dtype=np.uint8)


def test_every_patch_is_in_the_order_as_often_as_another():
    for count in (1, 5, 8, 9, 100):
        order = adaptation_order(count)
        times = np.bincount(order.ravel(), minlength=count)
        assert order.shape == (-(-count // BATCH), BATCH)
        assert times.max() - times.min() <= 1
        np.testing.assert_array_equal(order, adaptation_order(count))


def test_the_first_layer_by_hand(model):
    params, batch_stats = model
    batches = [{"image": images(seed)} for seed in range(3)]
    new = adapted_statistics(SPEC, params, batch_stats, batches, make_mesh())
    assert {k: (v.shape, v.dtype) for k, v in new.items()} == {
        k: (v.shape, v.dtype) for k, v in batch_stats.items()
    }
    means, variances = [], []
    for batch in batches:
        image = (batch["image"] / 255).astype(np.float32)
        maps = jax.lax.conv_general_dilated(
            image, params["encoder.conv1.kernel"], (2, 2), ((3, 3), (3, 3)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
        )  # fmt: skip
        pixels = np.asarray(maps, np.float64).reshape(-1, 64)
        means.append(pixels.mean(0))
        variances.append(pixels.var(0, ddof=1))
    np.testing.assert_allclose(new["encoder.bn1.mean"], np.mean(means, 0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(new["encoder.bn1.var"], np.mean(variances, 0), rtol=1e-4)
    again = adapted_statistics(SPEC, params, batch_stats, batches, make_mesh())
    for name, value in new.items():
        np.testing.assert_array_equal(value, again[name])


def test_metadata_is_used_and_nothing_is_dropped_out():
    config = configuration.default()
    config.metadata.update({"use": True, "fusion": "channels"})
    spec = ModelSpec.from_config(config, (64, 64))
    _, params, batch_stats = split_model(spec.build_model())
    metadata = np.random.default_rng(0).normal(size=(BATCH, 45)).astype(np.float32)
    first, again, other = (
        adapted_statistics(
            spec, params, batch_stats, [{"image": images(0), "metadata": numbers}], make_mesh()
        )
        for numbers in (metadata, metadata, 2 * metadata)
    )
    name = "decoder.blocks.0.conv1.1.mean"
    np.testing.assert_array_equal(first[name], again[name])
    assert np.abs(np.asarray(first[name]) - other[name]).max() > 1e-4
    # A batch without metadata's dropout: the mean over copies of one patch is that patch's own.
    one = {
        "image": np.repeat(images(0)[:1], BATCH, 0),
        "metadata": np.repeat(metadata[:1], BATCH, 0),
    }
    half = {key: value.copy() for key, value in one.items()}
    half["metadata"] = half["metadata"][::-1]
    a, b = (
        adapted_statistics(spec, params, batch_stats, [batch], make_mesh())[name]
        for batch in (one, half)
    )
    np.testing.assert_array_equal(a, b)


def test_domains_are_adapted_to_by_themselves(split, model):
    params, batch_stats = model
    found = list(parts(split, "domain", SPEC, params, batch_stats, make_mesh()))
    domains = [{record["domain"] for record in part.split.records} for part in found]
    assert len(found) == len(set.union(*domains)) > 1
    assert all(len(names) == 1 for names in domains)
    np.testing.assert_array_equal(
        np.sort(np.concatenate([part.indices for part in found])), np.arange(len(split))
    )
    for part in found:
        order = adaptation_order(len(part.split))
        data = [
            {"image": np.stack([part.split.records[i]["image"] for i in rows])} for rows in order
        ]
        expected = adapted_statistics(SPEC, params, batch_stats, data, make_mesh())
        for name, value in expected.items():
            np.testing.assert_array_equal(part.batch_stats[name], value)
    (whole,) = parts(split, "", SPEC, params, batch_stats, make_mesh())
    assert whole.split is split
    assert whole.batch_stats is batch_stats


def test_a_domain_of_few_patches_is_warned_of(split, model, capsys):
    domains = np.array([as_text(record["domain"]) for record in split.records])
    few = split.subset(np.flatnonzero(domains == domains[0])[:2])
    next(parts(few, "domain", SPEC, *model, make_mesh()))
    assert capsys.readouterr().out == (
        f"warning: {domains[0]} has only 2 of the 8 patches needed for reliable batch statistics\n"
    )


def test_scores_and_predictions_of_an_adapted_model(split, model, workdir, tmp_path):
    options = {"mesh": make_mesh(), "batch_size": 4}
    scoring = {**options, "loss_normalization": "pixels"}
    plain = evaluate_checkpoint(workdir, split, **scoring)
    adapted = evaluate_checkpoint(workdir, split, adapt="domain", **scoring)
    assert (plain["adapt"], adapted["adapt"]) == ("", "domain")
    assert adapted["confusion_matrix"] != plain["confusion_matrix"]
    assert np.sum(adapted["confusion_matrix"]) == np.sum(plain["confusion_matrix"])
    assert adapted["provenance"]["adapt"] == "domain"
    assert "adapt" not in plain["provenance"]
    # Each domain scores what it scores with a model of its statistics.
    params, batch_stats = model
    for part in parts(split, "domain", SPEC, params, batch_stats, make_mesh()):
        name = part.split.records[0]["domain"].decode()
        save_model(tmp_path / name / "checkpoints", SPEC, params, part.batch_stats)
        alone = evaluate_checkpoint(tmp_path / name, part.split, **scoring)
        group = adapted["by_domain"][name]
        assert group["num_patches"] == len(part.split)
        assert group["challenge"] == alone["challenge"]
    # The predicted files hold the same classes.
    output = tmp_path / "predictions"
    assert predict_checkpoint(workdir, split, output=output, adapt="domain", **options) == 16
    again = evaluate_checkpoint(workdir, split, adapt="domain", **scoring)
    assert again["confusion_matrix"] == adapted["confusion_matrix"]
    assert json.loads((tmp_path / "predictions.json").read_text())["adapt"] == "domain"
    assert len(list(output.glob("PRED_*.tif"))) == 16


def test_the_folders_of_adapted_results(data_dir, workdir, tmp_path):
    run = shutil.copytree(workdir, tmp_path / "run")
    config = configuration.default()
    config.data_dir, config.batch_size = str(data_dir), 4
    metrics = evaluate_run(config, run, "test", adapt="domain")
    written = json.loads((run / "evaluation/test_adapted/metrics.json").read_text())
    assert written == metrics
    assert not (run / "evaluation/test").exists()


def test_a_split_without_masks_is_refused(split, workdir):
    records = [{**record, "has_mask": False} for record in split.records]

    class Unlabelled:
        def __len__(self):
            return len(records)

        def __getitem__(self, index):
            return records[index]

    unlabelled = dataclasses.replace(split, records=Unlabelled())
    with pytest.raises(NoMasksError, match="no patch of this split has a mask"):
        evaluate_checkpoint(
            workdir, unlabelled, make_mesh(), batch_size=4, loss_normalization="pixels",
            adapt="domain",
        )  # fmt: skip
    assert issubclass(NoMasksError, UserError)
