"""A loaded model on several devices."""

import json

from processes import finish, start

CODE = """
import sys, tempfile
import jax, numpy as np
import tiny_model
tiny_model.install()
import flair_jax
from flair_jax import config as configuration
from flair_jax.inference.loading import load, save_model
from flair_jax.inference.predictor import Model
from flair_jax.models.functional import split_model
from flair_jax.models.spec import ModelSpec
import flair_jax.runtime.sharding

spec = ModelSpec.from_config(configuration.default(), (32, 32))
folder = tempfile.mkdtemp() + "/checkpoints"
save_model(folder, spec, *split_model(spec.build_model(0))[1:])
model, rows = flair_jax.load_model(folder), []
infer = model._infer

def counted(*args):
    result = infer(*args)
    rows.append([shard.data.shape[0] for shard in result.addressable_shards])
    return result

model._infer = counted
mesh = flair_jax.runtime.sharding.make_mesh(jax.devices()[:1])
alone = Model(folder, mesh, *load(folder, mesh))
for count in (1, 8, 6):
    images = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 5), dtype=np.uint8)
    found = model(images)
    assert found.shape == (count, 32, 32, 13)
    np.testing.assert_allclose(found, alone(images), atol=1e-6)
print(json.dumps(rows))
"""


def test_the_devices_share_a_batch():
    (output,) = finish(start(CODE, devices=4))
    rows = json.loads(output.splitlines()[-1])
    assert rows == [[1] * 4, [2] * 4, [2] * 4]
