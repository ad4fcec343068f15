import jax
import numpy as np
import pytest
from golden_arrays import golden
from hypothesis import given, settings
from hypothesis import strategies as st

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


# Two scored classes and one of weight 0; rows are the truth.
SMALL = np.array([[4, 1, 3], [2, 6, 0], [5, 7, 9]])


def test_precision_and_recall_are_of_every_row_and_column():
    precision, recall = metrics.precision_and_recall(SMALL)
    np.testing.assert_array_equal(precision, [4 / 11, 6 / 14, 9 / 12])
    np.testing.assert_array_equal(recall, [4 / 8, 6 / 8, 9 / 21])
    np.testing.assert_allclose(
        metrics.intersection_over_union(SMALL), 1 / (1 / precision + 1 / recall - 1), rtol=1e-12
    )
    never = metrics.precision_and_recall(np.array([[3, 0], [0, 0]]))
    np.testing.assert_array_equal(never, [[1, np.nan], [1, np.nan]])


def test_pixels_of_a_class_of_weight_0_are_ignored():
    scores = metrics.open_vocabulary_scores(SMALL, np.array([1.0, 1.0, 0.0]))
    # Class 0: 4 right, 1 + 3 missed (3 of them as the ignored class), 2 false, not 2 + 5.
    assert scores["iou"][0] == 4 / (4 + 1 + 3 + 2)
    assert scores["iou"][1] == 6 / (6 + 2 + 1)
    assert np.isnan(scores["iou"][2])
    assert scores["miou"] == (4 / 10 + 6 / 9) / 2
    challenge = metrics.challenge_scores(SMALL, np.array([1.0, 1.0, 0.0]))
    assert challenge["iou"][0] == 4 / (4 + 1 + 3 + 2 + 5)  # where its 5 pixels are false positives
    main = metrics.main_scores(SMALL, np.array([1.0, 1.0, 0.0]))
    assert main["iou"][0] == 4 / (4 + 1 + 2)  # where its 3 predictions are no misses


def test_without_such_a_class_it_is_the_challenges():
    everything = metrics.open_vocabulary_scores(SMALL, np.ones(3))
    challenge = metrics.challenge_scores(SMALL, np.ones(3))
    assert everything["miou"] == challenge["miou"]
    np.testing.assert_array_equal(everything["iou"], challenge["iou"])


def test_classes_that_do_not_occur_among_the_pixels_that_count():
    weights = np.array([1.0, 1.0, 1.0, 0.0])
    confusion = np.zeros((4, 4), int)
    confusion[0] = [5, 0, 0, 1]
    confusion[3] = [2, 2, 2, 2]  # all ignored, so that nothing is left of class 2
    confusion[0, 1] = 4  # class 1 is predicted where it is not
    scores = metrics.open_vocabulary_scores(confusion, weights)
    np.testing.assert_array_equal(scores["iou"], [5 / 10, 0, np.nan, np.nan])
    assert scores["miou"] == 0.25
    assert np.isnan(metrics.open_vocabulary_scores(np.zeros((4, 4), int), weights)["miou"])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=6))
def test_pixel_by_pixel(seed, weights):
    """By masks of pixels, as on images: ignored ones first, then intersections and unions."""
    rng, n = np.random.default_rng(seed), len(weights)
    truth, predicted = rng.integers(0, n, (2, rng.integers(1, 40)))
    confusion = np.zeros((n, n), np.int64)
    np.add.at(confusion, (truth, predicted), 1)
    counted = np.array(weights)[truth] > 0
    expected = np.full(n, np.nan)
    for c in np.flatnonzero(weights):
        of_truth, of_prediction = (truth == c) & counted, (predicted == c) & counted
        if union := (of_truth | of_prediction).sum():
            expected[c] = (of_truth & of_prediction).sum() / union
    scores = metrics.open_vocabulary_scores(confusion, np.array(weights))
    np.testing.assert_array_equal(scores["iou"], expected)
    known = expected[~np.isnan(expected)]
    assert scores["miou"] == known.mean() if len(known) else np.isnan(scores["miou"])


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
