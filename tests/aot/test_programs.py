"""The programs compiled for TPUs that are not attached: their form follows the mesh's devices."""

import importlib.util

import pytest

from flair_jax import config as configuration
from flair_jax.aot import programs
from flair_jax.aot.figures import figures_of
from flair_jax.aot.topologies import ENVIRONMENT, topology_devices
from flair_jax.evaluation import evaluate, predict
from flair_jax.inference import tile_predictor
from flair_jax.models import resnet
from flair_jax.models.ops import plain
from flair_jax.runtime.sharding import make_mesh

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
SIZE, EACH = 256, 4  # large enough that maps, not weights, are most of the traffic
PROGRAMS = {
    "train": lambda config, mesh: programs.lower_train_step(config, SIZE, mesh),
    "evaluation": lambda config, mesh: programs.lower_eval_step(config, SIZE, mesh),
    "prediction": lambda config, mesh: programs.lower_predict_step(config, SIZE, mesh),
    "detection": lambda config, mesh: programs.lower_tiles(
        config, SIZE, mesh, batch_size=config.batch_size
    ),
    "detection, one of eight views": lambda config, mesh: programs.lower_tiles(
        config, SIZE, mesh, batch_size=config.batch_size, views=8
    ),
}


@pytest.fixture
def mesh(monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    # One block in each stage: compiled in half the time.
    monkeypatch.setattr(resnet, "STAGES", tuple((width, 1) for width, _ in resnet.STAGES))
    tile_predictor.tile_programs.cache_clear()
    yield make_mesh(topology_devices("v5e:2x2"))
    tile_predictor.tile_programs.cache_clear()


@pytest.fixture
def config(mesh):
    config = configuration.default()
    config.dtype = "bfloat16"
    config.batch_size = EACH * mesh.size
    return config


def use_the_plain_form(monkeypatch):
    tile_predictor.tile_programs.cache_clear()
    for module in (evaluate, predict, tile_predictor):
        monkeypatch.setattr(module, "for_mesh", lambda mesh: plain)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_for_tpus_has_the_tpus_form(name, config, mesh):
    """On a host whose default backend is the CPU: eight pixels of 5 bands are packed into one."""
    text = PROGRAMS[name](config, mesh).as_text()
    assert f"x{SIZE}x{SIZE // 8}x40xbf16>" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evaluation", "prediction", "detection"])
def test_its_traffic_is_that_of_packed_pixels(name, config, mesh, monkeypatch):
    packed = figures_of(PROGRAMS[name](config, mesh).compile())
    use_the_plain_form(monkeypatch)
    unpacked = figures_of(PROGRAMS[name](config, mesh).compile())
    assert packed.traffic < 0.6 * unpacked.traffic
