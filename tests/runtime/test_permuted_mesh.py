"""Rows, batches and gathered texts, whatever the order of the devices of several processes."""

import pytest
from processes import finish, free_port, start

pytestmark = pytest.mark.slow

CODE = """
import sys
import numpy as np
port, count, index = map(int, sys.argv[1:])
jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
mesh = sharding.make_mesh()
assert [d.id for d in mesh.devices.flat] == [jax.devices()[i].id for i in order]
steps, batch = 3, 2 * mesh.size
whole = np.arange(batch * 5).reshape(batch, 5)
rows = sharding.process_rows(mesh, batch)
assert len(rows) == batch // count

array = sharding.to_global({"x": whole[rows]}, mesh)["x"]
np.testing.assert_array_equal(sharding.local_rows(array), whole[rows])
replicate = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))
np.testing.assert_array_equal(replicate(array), whole)

texts = np.array([[f"é{step} {'x' * row}" for row in range(batch)] for step in range(steps)])
gathered = sharding.gather_texts(texts[:, rows], mesh)
assert gathered.tolist() == texts.reshape(-1).tolist()
assert sharding.largest(10 * index + 1) == 10 * count - 9
print("equal")
"""


# Of 2 x 4 devices those of v5p:2x2x2 and of a ring, of 4 x 2 an order without any system.
@pytest.mark.parametrize(
    ("processes", "order"),
    [
        (2, [0, 4, 1, 5, 2, 6, 3, 7]),
        (2, [0, 1, 4, 5, 7, 6, 3, 2]),
        (4, [5, 2, 7, 0, 3, 6, 1, 4]),
    ],
)
def test_every_row_stays_where_it_belongs(processes, order):
    port = free_port()
    outputs = finish(
        *(
            start(CODE, port, processes, index, devices=8 // processes, order=order)
            for index in range(processes)
        )
    )
    assert [output.split()[-1] for output in outputs] == ["equal"] * processes
