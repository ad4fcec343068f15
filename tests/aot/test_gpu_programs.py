"""The train step compiled for GPUs that are not attached."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from flair_jax import config as configuration
from flair_jax.aot import hlo, programs
from flair_jax.aot.chips import CHIPS
from flair_jax.aot.figures import figures_of
from flair_jax.aot.topologies import has_gpu_compiler, topology_devices
from flair_jax.models import resnet
from flair_jax.runtime.sharding import make_mesh

pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
needs_compiler = pytest.mark.skipif(
    not has_gpu_compiler(), reason="the GPU compiler is not installed (extra gpu-compile)"
)
SIZE = 64
ROOT = Path(__file__).parents[2]


def step(topology, monkeypatch, **changes):
    """A small step, one block in each stage: compiled in a third of the time."""
    monkeypatch.setattr(resnet, "STAGES", tuple((width, 1) for width, _ in resnet.STAGES))
    config = configuration.default()
    mesh = make_mesh(topology_devices(topology))
    config.update(changes)
    config.batch_size = 4 * mesh.size
    return programs.lower_train_step(config, SIZE, mesh)


CONVOLUTIONS = 2 * 4 + 3 + 1 + 2 * 5 + 1  # blocks, projections, stem, decoder, head


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_convolutions_are_cudnns_and_nothing_is_scattered_or_sorted(dtype, monkeypatch):
    text = step("h100:1", monkeypatch, dtype=dtype).compile().as_text()
    calls = re.findall(r'custom_call_target="(__cudnn\$conv\w+)"', text)
    # Each forward and twice backward, but for the gradient of the image.
    assert len(calls) == 3 * CONVOLUTIONS - 1
    assert not re.search(r" convolution\(| scatter\(| sort\(", text)
    # Nothing larger than a pair of pixels is summed in bfloat16: no dimension but those of 2.
    for shape, dimensions, operand in re.findall(
        r"= bf16\[([\d,]*)\]\S* reduce\(%([\w.-]+),.*dimensions=\{([\d,]+)\}", text
    ):
        summed = re.search(rf"%{re.escape(dimensions)} = bf16\[([\d,]+)\]", text)[1].split(",")
        assert {summed[int(i)] for i in operand.split(",")} == {"2"}, shape


@needs_compiler
@pytest.mark.parametrize(("precision", "rounded"), [(None, False), ("tensorfloat32", True)])
def test_products_of_float32_are_rounded_to_tf32_where_it_is_set(precision, rounded, monkeypatch):
    with jax.default_matmul_precision(precision):
        text = step("a100:1", monkeypatch).compile().as_text()
    exact = [
        "operand_precision={highest,highest" in line
        for line in text.splitlines()
        if 'custom_call_target="__cudnn$conv' in line
    ]
    assert exact == [not rounded] * (3 * CONVOLUTIONS - 1)


@needs_compiler
@pytest.mark.parametrize(("batch_norm", "most"), [("sync", 60), ("per_device", 6)])
def test_all_reduces(batch_norm, most, monkeypatch):
    compiled = step("h100:2x2", monkeypatch, dtype="bfloat16", batch_norm=batch_norm).compile()
    found = figures_of(compiled).collectives
    assert set(found) == {"all-reduce"}
    assert found["all-reduce"].count <= most
    parameters = sum(x.size for x in jax.tree.leaves(compiled.in_avals[0][0].params))
    assert found["all-reduce"].bytes == pytest.approx(2 * parameters, rel=0.03)


@needs_compiler
def test_the_table_for_gpus():
    done = subprocess.run(
        [
            *(sys.executable, "-m", "flair_jax", "train-compile", "--config=baseline"),
            *("--patch_size=64", "--batch_size=16", "--topology=h100:2x2"),
            *("--config.matmul_precision=tf32", "--config.deterministic=true"),
        ],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=600,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"^(.{26})(.+)$", done.stdout, re.MULTILINE))
    rows = {name.strip(): value for name, value in rows.items()}
    assert rows["chips"] == "4 x NVIDIA H100 80GB HBM3, 2 host(s)"
    assert rows["memory of a chip"].endswith("GiB of 59.332 GiB: fits")
    assert rows["operations of a chip"].endswith("at 494 TFLOP/s (tf32)")
    assert rows["not counted"] == "the workspaces of cuDNN's convolutions"
    assert rows["most of them"].endswith("config.batch_norm=per_device needs none of these")


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "dtype", "convolutions", "others"),
    [
        ("h100:1", "bfloat16", 4.49, 8.15),
        ("h100:1", "float32", 8.98, 14.4),
        ("a100:1", "float32", 8.98, 15.5),
    ],
)
def test_traffic_of_the_whole_step_is_that_of_xlas_cost_model(
    topology, dtype, convolutions, others
):
    """XLA's own model of the same step, 8 patches of 512 x 512, JAX 0.12.0.1, 2026-11-25."""
    config = configuration.default()
    config.dtype, config.batch_size = dtype, 8
    mesh = make_mesh(topology_devices(topology))
    text = programs.lower_train_step(config, 512, mesh).compile().as_text()
    found = hlo.kernels(text)
    assert found.flops == pytest.approx(1525e9, rel=0.001)
    assert found.convolutions / 1e9 == pytest.approx(convolutions, rel=0.01)
    assert found.others / 1e9 == pytest.approx(others, rel=0.06)


def test_cards_have_peaks_of_every_arithmetic():
    cards = [chip for kind, chip in CHIPS.items() if kind.startswith("NVIDIA")]
    assert len(cards) == 2
    for chip in cards:
        assert chip.flops["float32"] < chip.flops["tf32"] < chip.flops["bfloat16"]
