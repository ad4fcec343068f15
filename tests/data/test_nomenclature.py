import numpy as np
import pytest

from flair_jax.data import nomenclature
from flair_jax.errors import UserError


def test_baseline():
    baseline = nomenclature.BASELINE
    assert len(baseline) == 13
    assert baseline.names[0] == "building"
    assert baseline.names[12] == "other"
    assert baseline.weights.tolist() == [1] * 12 + [0]
    assert baseline.labels[:20].tolist() == [255, *range(12), *[12] * 7]
    assert (baseline.labels[20:] == nomenclature.IGNORED).all()
    assert baseline.rgb[4].tolist() == [0x15, 0x53, 0xAE]


def test_full():
    assert nomenclature.FULL.labels[:20].tolist() == [255, *range(19)]
    assert nomenclature.FULL.weights.sum() == 19
    np.testing.assert_array_equal(nomenclature.FULL.rgb[12], [0x3D, 0xE6, 0xEB])


def test_unknown_name():
    with pytest.raises(UserError, match=r"unknown nomenclature 'flair'.*baseline, cosia, full"):
        nomenclature.nomenclature("flair")


CUSTOM = (
    ("built", "#db0e9a", 1.0, (1, 2, 3, 13, 18)),
    ("water", "#1553ae", 2.0, (5,)),
    ("green", "#55ff00", 0.5, (6, 7, 8, 9, 10, 11, 12, 14, 15, 16, 17)),
)


def test_custom_classes():
    custom = nomenclature.nomenclature("mine", CUSTOM)
    assert custom.names == ["built", "water", "green"]
    assert custom.weights.tolist() == [1, 2, 0.5]
    assert custom.labels[1:8].tolist() == [0, 0, 0, 255, 1, 2, 2]
    assert custom.names_of_values[:3] == ((1, "built"), (2, "built"), (3, "built"))


def test_disabled_classes_get_weight_0():
    chosen = nomenclature.nomenclature("full", disabled=("snow", "other"))
    assert chosen.weights.sum() == 17
    assert chosen.weights[[13, 18]].tolist() == [0, 0]
    assert chosen.labels.tolist() == nomenclature.FULL.labels.tolist()
    with pytest.raises(
        UserError, match=r"disabled_classes names 'ice', which 'full' does not have"
    ):
        nomenclature.nomenclature("full", disabled=("ice",))


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (("", "#000000", 1.0, (4,)), "must be a text that is not empty"),
        (("soil", "brown", 1.0, (4,)), "the colour is 'brown'; expected one like '#db0e9a'"),
        (("soil", "#000000", -1.0, (4,)), "the weight is -1.0; expected a number from 0"),
        (
            ("soil", "#000000", 1.0, (0, 4)),
            r"are \(0, 4\); those of the data set 'full' are 1 to 19",
        ),
        (("soil", "#000000", 1.0, (4, 256)), "expected some of 0 to 255"),
        (("soil", "#000000", 1.0, (True,)), "expected some of 0 to 255"),
        (("soil", "#000000", 1.0, ()), "expected some of 0 to 255"),
        (("soil", "#000000", 1.0, (5,)), "puts the mask value 5 in 'water' and in 'soil'"),
        (("water", "#000000", 1.0, (4,)), "has two classes of the same name"),
    ],
)
def test_invalid_classes(entry, expected):
    with pytest.raises(UserError, match=expected):
        nomenclature.nomenclature("mine", (*CUSTOM, entry))


def test_known_name_for_custom_classes():
    with pytest.raises(UserError, match="'baseline', a known one: give yours another name"):
        nomenclature.nomenclature("baseline", CUSTOM)
