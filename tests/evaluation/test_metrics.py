import jax
import numpy as np
import pytest
from golden_arrays import golden

from flair_jax.data.nomenclature import BASELINE
from flair_jax.evaluation import metrics
from flair_jax.models.ops import cpu, plain, tpu


@pytest.mark.parametrize("number", [0, 1, 2])
def test_scores_are_the_references(number):
    arrays = golden("iou")
    confusion = arrays[f"cm{number}"]
    challenge = metrics.challenge_scores(confusion, BASELINE.weights)
    main = metrics.main_scores(confusion, BASELINE.weights)

    def expect(name, value):
        np.testing.assert_allclose(value, arrays[f"{name}{number}"], rtol=0, atol=1e-10)

    expect("challenge_iou", challenge["iou"][:12])
    assert challenge["miou"] == pytest.approx(float(arrays[f"challenge_miou{number}"]), abs=1e-12)
    expect("main_iou", 100 * main["iou"][:12])
    expect("main_miou", 100 * main["miou"])
    expect("main_oa", 100 * main["accuracy"])
    for name in ("precision", "recall", "fscore"):
        expect(f"main_{name}", 100 * main[name][:12])


def test_summary_has_every_class_by_name():
    summary = metrics.summary(golden("iou")["cm0"], BASELINE.names, BASELINE.weights)
    assert list(summary["challenge"]["iou"]) == BASELINE.names
    assert summary["main"]["iou"]["other"] is None  # deleted in this definition
    assert summary["challenge"]["miou"] == pytest.approx(float(golden("iou")["challenge_miou0"]))


def test_nothing_counted_is_not_a_score():
    assert np.isnan(metrics.challenge_scores(np.zeros((13, 13)), BASELINE.weights)["miou"])
    assert metrics.main_scores(np.zeros((13, 13)), BASELINE.weights)["miou"] == 0


@pytest.fixture
def counted():
    """Labels with some of no class, predictions, which images are valid, and the plain count."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 13, (3, 20, 30)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.1] = 255
    predictions = rng.integers(0, 13, labels.shape).astype(np.int32)
    valid = np.array([True, False, True])
    expected = np.zeros((3, 13, 13), int)
    for image in np.flatnonzero(valid):
        for truth, predicted in zip(labels[image].flat, predictions[image].flat, strict=True):
            if truth < 13:
                expected[image, truth, predicted] += 1
    return labels, predictions, valid, expected


@pytest.mark.parametrize("ops", [plain, cpu, tpu], ids=["plain", "cpu", "tpu"])
def test_confusion_matrices_count_every_valid_pixel_once(counted, ops):
    *arguments, expected = counted
    counts = jax.jit(metrics.confusion_matrices, static_argnums=(3, 4))(*arguments, 13, ops)
    assert counts.dtype == np.int32
    np.testing.assert_array_equal(counts, expected)
