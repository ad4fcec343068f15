import numpy as np
import pytest

from flair_jax.errors import UserError
from flair_jax.runtime import sharding


class Mesh:
    size = 8


@pytest.mark.parametrize(("batch_size", "near"), [(10, 8), (12, 16), (3, 8), (0, 8)])
def test_batch_that_does_not_divide(batch_size, near):
    expected = rf"config.batch_size={batch_size} is .* multiple of the 8 devices: set it to {near}"
    with pytest.raises(UserError, match=expected):
        sharding.check_batch_size(batch_size, Mesh(), "config.batch_size")
    sharding.check_batch_size(16, Mesh(), "config.batch_size")


def test_batch_that_does_not_divide_into_parts():
    expected = r"the 8 devices, times config.accumulate_steps=4: set it to 64"
    with pytest.raises(UserError, match=expected):
        sharding.check_batch_size(56, Mesh(), "config.batch_size", parts=4)


def test_a_batch_comes_back_as_it_went():
    mesh = sharding.make_mesh()
    rows = np.arange(12).reshape(4, 3)
    whole = sharding.to_global({"x": rows}, mesh)["x"]
    assert whole.sharding == sharding.batch_sharding(mesh)
    np.testing.assert_array_equal(sharding.local_rows(whole), rows)
