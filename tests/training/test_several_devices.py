"""One training, whatever the machine: 1, 2, 4 or 8 virtual devices in a process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]

# At the recipe's rate a difference of 1e-7 grows tenfold a step; at 1e-4 rounding stays small.
DEVICES = """
import json, sys
import jax, numpy as np
from flair_jax import config as configuration
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime.sharding import make_mesh, replicate, to_global
from flair_jax.training.optimizer import make_optimizer
from flair_jax.training.state import create_train_state
from flair_jax.models.functional import split_model
from flair_jax.training.step import make_train_step, set_training_options

def batch(seed):
    rng = np.random.default_rng(seed)
    return {"image": rng.integers(0, 256, (16, 48, 48, 5), dtype=np.uint8),
            "mask": rng.integers(1, 20, (16, 48, 48), dtype=np.uint8),
            "metadata": rng.normal(size=(16, 40)).astype(np.float32),
            "stop": np.zeros(16, bool)}

for devices, steps, changes in json.loads(sys.argv[1]):
    config = configuration.default()
    config.batch_size, config.augment, config.crop_size = 16, True, 32
    config.metadata.update({"use": True, "encoding": "corrected", "fusion": "channels"})
    config.learning_rate = 1e-4
    config.update(changes)
    spec = ModelSpec.from_config(config, (48, 48))
    mesh = make_mesh(jax.devices()[:devices])
    model = set_training_options(spec.build_model(), config, mesh)
    graphdef, params, batch_stats = split_model(model)
    optimizer = make_optimizer(config, num_steps=1)
    state = replicate(create_train_state(params, batch_stats, optimizer), mesh)
    step = make_train_step(graphdef, spec, config, optimizer, mesh)
    losses = []
    for k in range(steps):
        state, numbers = step(state, to_global(batch(k), mesh))
        losses.append(float(numbers["loss"]))
    var = np.asarray(state.batch_stats["encoder.layer4.2.bn2.var"]).tolist()
    print(json.dumps([losses, var]), flush=True)
"""


def printed(script, *arguments):
    """The lines of JSON that a script prints, run as a process."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False,
        cwd=ROOT, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def train(*settings):
    """Losses, and one layer's running variance, of each (devices, steps, changed settings)."""
    return printed(DEVICES, json.dumps(settings))


@pytest.fixture(autouse=True)
def eight_devices(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")


def test_any_number_of_devices_trains_as_one_does():
    (one, var), *others = train(*((devices, 20, {}) for devices in (1, 2, 4, 8)))
    assert len(set(one)) == 20
    for losses, other_var in others:
        assert losses == pytest.approx(one, rel=1e-5)
        assert other_var == pytest.approx(var, rel=1e-3)


def test_parts_recomputing_and_statistics_of_each_device():
    parts = {"accumulate_steps": 2}
    plain, recomputed, on_one, on_four, per_device = (
        losses
        for losses, _ in train(
            (2, 3, {}), (2, 3, {"remat": True}), (1, 3, parts), (4, 3, parts),
            (2, 3, {"batch_norm": "per_device"}),
        )
    )  # fmt: skip
    assert recomputed == pytest.approx(plain, rel=1e-5)
    assert on_four == pytest.approx(on_one, rel=1e-5)
    # Statistics of fewer samples are other statistics.
    for other in (on_one, per_device):
        assert abs(other[0] / plain[0] - 1) > 1e-4


# Logits alone: what the statistics need goes into no logit.
FORWARD = """
import json, jax, jax.numpy as jnp
from flair_jax import config as configuration
from flair_jax.aot.hlo import collectives
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime.sharding import batch_sharding, make_mesh, replicated
from flair_jax.models.functional import merge_model, split_model
from flair_jax.training.step import set_training_options

mesh = make_mesh()
for kind in ("sync", "per_device"):
    config = configuration.default()
    config.batch_norm = kind
    spec = ModelSpec.from_config(config, (32, 32))
    model = set_training_options(spec.build_model(), config, mesh)
    graphdef, params, batch_stats = split_model(model)
    forward = jax.jit(
        lambda p, s, image: merge_model(graphdef, p, s)(image, train=True),
        in_shardings=(replicated(mesh), replicated(mesh), batch_sharding(mesh)),
        out_shardings=batch_sharding(mesh),
    )
    image = jax.ShapeDtypeStruct((16, 32, 32, 5), jnp.float32)
    compiled = forward.lower(params, batch_stats, image).compile()
    found = collectives(compiled.as_text())
    print(json.dumps({name: all_.count for name, all_ in found.items()}), flush=True)
"""


def test_statistics_of_each_device_need_no_collective_in_the_forward_pass():
    sync, per_device = printed(FORWARD)
    # One for each of 46 normalisations; the shortcuts' three may go together with their blocks'.
    assert sync["all-reduce"] >= 43
    assert per_device == {}


# 3 devices do not share a batch of 8 evenly: each computes all of it.
ADAPTED = """
import json, jax, numpy as np
from flair_jax import config as configuration
from flair_jax.inference.adaptation import BATCH, adapted_statistics
from flair_jax.models.functional import split_model
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime.sharding import make_mesh, replicate

spec = ModelSpec.from_config(configuration.default(), (64, 64))
_, params, batch_stats = split_model(spec.build_model())
rng = np.random.default_rng(0)
data = [{"image": rng.integers(0, 256, (BATCH, 64, 64, 5), dtype=np.uint8)} for _ in range(3)]
for devices in (1, 3, 8):
    mesh = make_mesh(jax.devices()[:devices])
    new = adapted_statistics(spec, params, replicate(batch_stats, mesh), data, mesh)
    print(json.dumps([np.asarray(new[name]).tolist() for name in sorted(new)]), flush=True)
"""


def test_statistics_of_new_images_on_any_number_of_devices():
    one, three, eight = printed(ADAPTED)
    assert len(one) == 2 * 46
    for other in (three, eight):
        for expected, found in zip(one, other, strict=True):
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
