import numpy as np
import pytest

from flair_jax.data.nomenclature import BASELINE
from flair_jax.evaluation import grouped_metrics
from flair_jax.evaluation.metrics import challenge_scores, main_scores, summary

FIELDS = {
    "id": np.array(["000001", "000002", "000003", "000004", "000005"]),
    "domain": np.array(["D012_2019", "D012_2019", "D022_2021", "D022_2021", "D022_2021"]),
    "zone": np.array(["Z1_AA", "Z1_AA", "Z1_AA", "Z2_UU", "Z3_NF"]),
    "camera": np.array(["UCE-M3-f120-s07", "CAMERA#1", "CAMERA#1", "CAMERA#1", "CAMERA#1"]),
    "date": np.array(["2019-07-01", "2018-07-31", "2021-06-02", "2021-06-02", "2021-11-30"]),
}


@pytest.fixture
def confusions():
    rng = np.random.default_rng(0)
    return rng.integers(0, 50, (5, 13, 13)) + 500 * np.eye(13, dtype=np.int64)


def test_groups():
    groups = grouped_metrics.groups(FIELDS)
    assert groups["month"].tolist() == ["07", "07", "06", "06", "11"]
    zones = groups["zone"]
    assert zones[0] == zones[1] == "D012_2019/Z1_AA"
    assert len(set(zones.tolist())) == 4  # a zone's name may occur in two domains


def test_parts_are_scored_as_the_whole_is(confusions):
    scores = grouped_metrics.grouped_scores(confusions, grouped_metrics.groups(FIELDS), BASELINE)
    assert list(scores) == ["intervals", "by_domain", "by_camera", "by_month"]
    assert list(scores["by_month"]) == ["06", "07", "11"]
    part = scores["by_camera"]["CAMERA#1"]
    assert (part["num_patches"], part["num_zones"]) == (4, 4)
    expected = summary(confusions[1:].sum(0), BASELINE.names, BASELINE.weights)
    assert part["challenge"] == expected["challenge"]
    assert part["main"] == expected["main"]
    one_zone = scores["by_domain"]["D012_2019"]
    assert (one_zone["num_patches"], one_zone["num_zones"]) == (2, 1)
    assert one_zone["challenge_miou_interval"] is None


def test_no_groups_are_made_of_what_is_not_known(confusions):
    unknown = np.array([""] * 5)
    fields = FIELDS | {"camera": unknown, "date": unknown}
    groups = grouped_metrics.groups(fields, "group")
    assert list(groups) == ["group", "zone"]
    scores = grouped_metrics.grouped_scores(confusions, groups, BASELINE)
    assert list(scores) == ["intervals", "by_group"]
    some = FIELDS | {"camera": unknown, "date": np.array(["2021-06-02", "", "", "", ""])}
    scores = grouped_metrics.grouped_scores(confusions, grouped_metrics.groups(some), BASELINE)
    assert list(scores) == ["intervals", "by_domain", "by_month"]
    assert list(scores["by_month"]) == ["06"]


def test_interval_is_of_all_draws_of_zones(confusions):
    """Two zones give three different draws, of probabilities 1/4, 1/2 and 1/4."""
    zones = np.array(["a", "a", "b", "b", "b"])
    found = grouped_metrics.intervals(confusions, zones, BASELINE)
    a, b = confusions[:2].sum(0), confusions[2:].sum(0)
    possible = [challenge_scores(x, BASELINE.weights)["miou"] for x in (2 * a, a + b, 2 * b)]
    assert found["challenge_miou"] == pytest.approx([min(possible), max(possible)], abs=1e-12)
    assert (found["zones"], found["level"], found["resamples"]) == (2, 0.95, 1000)


def test_scores_of_many_draws_at_once_are_those_of_one_by_one():
    """Also where classes are missing, which the challenge's mean leaves out."""
    rng = np.random.default_rng(0)
    confusions = rng.integers(0, 2**40, (300, 13, 13)) * (rng.random((300, 13, 1)) < 0.7)
    confusions *= rng.random((300, 1, 13)) < 0.7
    confusions[0] = 0
    challenge, main = grouped_metrics._mious(confusions, BASELINE.weights)
    one_by_one = [challenge_scores(x, BASELINE.weights)["miou"] for x in confusions]
    np.testing.assert_array_equal(challenge, one_by_one)
    one_by_one = [main_scores(x, BASELINE.weights)["miou"] for x in confusions]
    np.testing.assert_array_equal(main, one_by_one)


def test_interval_has_the_width_of_the_scores_spread():
    """For many zones of one class, each hit or missed, IoU has a binomial's standard deviation."""
    hits = np.random.default_rng(1).random(400) < 0.7
    confusions = np.zeros((400, 13, 13), np.int64)
    confusions[np.arange(400), 0, np.where(hits, 0, 12)] = 100
    zones = np.arange(400).astype(str)
    low, high = grouped_metrics.intervals(confusions, zones, BASELINE)["challenge_iou"]["building"]
    share = hits.mean()
    std = np.sqrt(share * (1 - share) / 400)
    assert [low, high] == pytest.approx([share - 1.96 * std, share + 1.96 * std], abs=0.2 * std)


def test_patches_are_scored_by_the_classes_that_their_truth_has():
    confusions = np.zeros((5, 13, 13), np.int64)
    confusions[0, 0, 0], confusions[0, 1, 1] = 60, 40
    confusions[1, 0, 0], confusions[1, 0, 1], confusions[1, 1, 1] = 60, 20, 20
    confusions[2, 0, 0], confusions[2, 0, 5] = 30, 10  # 5 is not in the truth
    confusions[3, 12, 12] = 100  # "other" is not scored
    confusions[4, 0, 0], confusions[4, 12, 0], confusions[4, 12, 12] = 40, 10, 50
    patches = grouped_metrics.by_patch(confusions, FIELDS, np.array([0, 1, 3, 4, 6]), BASELINE)
    assert [p["place"] for p in patches] == [0, 1, 3, 4, 6]
    assert [p["classes"] for p in patches] == [2, 2, 1, 0, 1]
    miou = [1.0, (60 / 80 + 20 / 40) / 2, 30 / 40, None, 40 / 50]
    assert [p["miou"] for p in patches] == pytest.approx(miou)
    assert [p["accuracy"] for p in patches] == pytest.approx([1.0, 0.8, 0.75, None, 1.0])
    assert (patches[3]["id"], patches[3]["zone"]) == ("000004", "Z2_UU")


def test_what_never_occurs_has_no_interval(confusions):
    confusions[:, 4] = confusions[:, :, 4] = 0
    found = grouped_metrics.intervals(confusions, np.array(list("abcde")), BASELINE)
    assert found["challenge_iou"]["water"] is None
    assert found["challenge_miou"][0] < found["challenge_miou"][1]
    again = grouped_metrics.intervals(confusions, np.array(list("abcde")), BASELINE)
    assert again == found
    single = grouped_metrics.intervals(confusions, np.array(list("aaaaa")), BASELINE)
    assert single["challenge_miou"] is None
    assert single["challenge_iou"]["building"] is None
