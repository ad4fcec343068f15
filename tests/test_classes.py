import numpy as np
import pytest

from flair_jax import classes
from flair_jax.errors import UserError


def test_baseline():
    baseline = classes.BASELINE
    assert len(baseline) == 13
    assert baseline.names[0] == "building"
    assert baseline.names[12] == "other"
    assert baseline.weights.tolist() == [1] * 12 + [0]
    assert baseline.labels[:20].tolist() == [255, *range(12), *[12] * 7]
    assert (baseline.labels[20:] == classes.IGNORED).all()
    assert baseline.rgb[4].tolist() == [0x15, 0x53, 0xAE]


def test_full():
    assert classes.FULL.labels[:20].tolist() == [255, *range(19)]
    assert classes.FULL.weights.sum() == 19
    np.testing.assert_array_equal(classes.FULL.rgb[12], [0x3D, 0xE6, 0xEB])


def test_unknown_name():
    with pytest.raises(UserError, match=r"unknown nomenclature 'flair'.*baseline, full"):
        classes.nomenclature("flair")
