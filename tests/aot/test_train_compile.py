import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flair_jax.aot import topologies, train_compile
from flair_jax.aot.chips import CHIPS, Chip
from flair_jax.aot.figures import Figures
from flair_jax.aot.hlo import Collective, Kernels, collectives, kernels
from flair_jax.errors import UserError

ROOT = Path(__file__).parents[2]
PARAMETERS = 24_444_381
SMALL = ("--config=configs/baseline.py", "--patch_size=32")
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


def run(*flags, devices=8, script=("-m", "flair_jax", "train-compile")):
    xla_flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.run(
        [sys.executable, *script, *flags], capture_output=True, text=True, check=False, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": xla_flags}, timeout=600,
    )  # fmt: skip


def table(done):
    """The printed rows by name."""
    rows = re.findall(r"^(.{26})(.+)$", done.stdout, re.MULTILINE)
    return {name.strip(): value for name, value in rows}


def gibibytes(value):
    return float(value.split()[0])


HLO = """
HloModule jit_train_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%async_computation (p: bf16[8,4]) -> bf16[2,4] {
  ROOT %reduce-scatter.1 = bf16[2,4]{1,0:T(8,128)(2,1)} reduce-scatter(%p), channel_id=6
}

%async_collective_fusion.1 (p: bf16[9]) -> bf16[9] {
  ROOT %all-reduce.2 = bf16[9]{0} all-reduce(%p), channel_id=8, to_apply=%add
}

%async_collective_fusion.2 (p: bf16[9]) -> bf16[9] {
  ROOT %all-reduce.3 = bf16[9]{0:S(1)} all-reduce(%p), channel_id=8, to_apply=%add
}

ENTRY %main (p: f32[64]) -> f32[64] {
  %all-reduce = f32[64]{0:T(128)S(1)} all-reduce(%p), channel_id=1, to_apply=%add
  %all-reduce.1 = (f32[3,3,8,8]{3,2,1,0:T(8,128)}, /*index=1*/f32[]{:T(128)}) all-reduce(%a, %b)
  %all-reduce-start = (bf16[16]{0}, pred[3]{0}) all-reduce-start(%c, %d), channel_id=3
  %all-reduce-done = (bf16[16]{0}, pred[3]{0}) all-reduce-done(%all-reduce-start)
  %ars.2 = ((f32[6]{0}), f32[6]{0}) all-reduce-start(%x), channel_id=9, replica_groups={{0,1}}
  %ars.3 = ((f32[2]{0}, s8[3]{0}), (f32[2]{0}, s8[3]{0})) all-reduce-start(%y, %z), channel_id=10
  %all-gather-start = ((s4[5]{0}, u8[2,2]{1,0}), (s4[20]{0}, u8[8,2]{1,0})) all-gather-start(%e, %f)
  %all-gather-done = (s4[20]{0}, u8[8,2]{1,0}) all-gather-done(%all-gather-start)
  %cp = (f32[7]{0}, f32[7]{0}, u32[]{:S(2)}, u32[]) collective-permute-start(%g), channel_id=5
  %cpd = f32[7]{0} collective-permute-done(%cp)
  %rs = ((bf16[8,4]{1,0}), bf16[2,4]{1,0}, s32[]) async-start(%h), calls=%async_computation
  %rsd = bf16[2,4]{1,0} async-done(%rs), calls=%async_computation
  %ata = f8e4m3fn[10]{0} all-to-all(%i), channel_id=7, metadata={op_name="x all-reduce(y"}
  ROOT %out = f32[64]{0} get-tuple-element(%all-reduce.1), index=0
}
"""


def test_collectives_are_counted_once_by_kind():
    assert collectives(HLO) == {
        "all-reduce": Collective(
            6, 64 * 4 + (3 * 3 * 8 * 8 + 1) * 4 + 16 * 2 + 3 + 9 * 2 + 24 + 8 + 3
        ),
        "all-gather": Collective(1, 10 + 16),
        "collective-permute": Collective(1, 28),
        "reduce-scatter": Collective(1, 16),
        "all-to-all": Collective(1, 10),
    }
    assert collectives("ROOT %sum = f32[] add(%a, %b)") == {}


GPU = """
HloModule jit_step

%fused_add (param_0: f32[8,4], param_1: f32[4]) -> f32[4] {
  %param_0 = f32[8,4]{1,0} parameter(0)
  %param_1 = f32[4]{0} parameter(1)
  %slice.1 = f32[1,4]{1,0} slice(%param_0), slice={[0:1], [0:4]}
  ROOT %add.1 = f32[4]{0} add(%slice.1, %param_1)
}

ENTRY %main (x: bf16[2,6,6,3], k: bf16[8,3,3,3]) -> (f32[4]) {
  %x = bf16[2,6,6,3]{3,2,1,0} parameter(0)
  %k = bf16[8,3,3,3]{3,2,1,0} parameter(1)
  %forward = (bf16[2,6,6,8]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), CALL convForward"
  %y = bf16[2,6,6,8]{3,2,1,0} get-tuple-element(%forward), index=0
  %filter = (bf16[8,3,3,3]{3,2,1,0}, u8[0]{0}) custom-call(%x, %y), CALL convBackwardFilter"
  %input = (bf16[2,6,6,3]{3,2,1,0}, u8[0]{0}) custom-call(%y, %k), CALL convBackwardInput"
  %a = f32[8,4]{1,0} constant({...})
  %b = f32[4]{0} constant({...})
  %sum = f32[4]{0} fusion(%a, %b), kind=kLoop, calls=%fused_add
  %copied = f32[4]{0} copy(%sum)
  ROOT %result = (f32[4]{0}) tuple(%copied)
}
""".replace(
    "CALL ",
    'window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$',
)


def test_kernels_of_a_gpu():
    image, kernel, output = 2 * 6 * 6 * 3, 8 * 3 * 3 * 3, 2 * 6 * 6 * 8
    assert kernels(GPU) == Kernels(
        flops=3 * 2 * output * 27,
        convolutions=3 * 2 * (image + kernel + output),
        others=(4 + 4 + 4) * 4 + 2 * 4 * 4,  # of the first argument only a slice is read
    )
    assert kernels(GPU.replace("copy(%sum)", "while(%sum), condition=%c, body=%d")) is None


FIGURES = Figures(
    arguments=100, outputs=90, temporaries=1000, code=7, aliased=80, flops=4e12, traffic=3e9,
    collectives={"all-reduce": Collective(2, 5_000_000)},
)  # fmt: skip


def test_memory_counts_what_lies_in_the_same_place_once():
    assert FIGURES.memory == 100 + 90 - 80 + 1000 + 7


@pytest.mark.parametrize(
    ("peaks", "bandwidth", "products", "roofline", "speed"),
    [
        ({"bfloat16": 2e14}, 1e12, "bfloat16", "20.00 ms a step, bound by operations", "400, 50 a"),
        ({"bfloat16": 2e14}, 1e12, "float32", "20.00 ms a step, bound by operations", "400, 50 a"),
        ({"bfloat16": 9e14, "tf32": 2e14}, 1e12, "tf32", "20.00 ms a step, bound by op", "400, 50"),
        ({"bfloat16": 2e15}, 1e11, "bfloat16", "30.00 ms a step, bound by memory", "267, 33 a"),
    ],
)
def test_roofline_is_the_longer_of_two_times(peaks, bandwidth, products, roofline, speed):
    chip = Chip(peaks, bandwidth, 1)
    rows = dict(train_compile.rows(FIGURES, 2**30, chip, 8, 8, products))
    assert rows["roofline"].startswith(roofline)
    assert rows["images per second"].startswith(speed)
    assert rows["all-reduce"] == "2, 5.0 MB a chip"


def test_the_devices_at_hand():
    done = run(*SMALL, "--batch_size=8")
    assert done.returncode == 0, done.stderr
    rows = table(done)
    assert rows["train step of"] == "baseline"
    assert rows["activations"] == "float32"
    assert rows["batch"] == "8 patches of 32 x 32, 1 a chip"
    assert rows["chips"] == "8 x cpu, 1 host(s)"
    assert rows["memory of a chip"].endswith("of unknown")
    for row in ("roofline", "images per second"):  # nothing is guessed for a CPU
        assert rows[row].startswith("unknown")
    # Each device has the whole state in float32, and the next state reuses its memory.
    state = 4 * PARAMETERS / 2**30
    for row in ("arguments", "outputs", "aliased"):
        assert gibibytes(rows[row]) == pytest.approx(state, rel=0.01)
    assert gibibytes(rows["memory of a chip"]) == pytest.approx(
        gibibytes(rows["arguments"]) + gibibytes(rows["temporaries"]), abs=0.002
    )
    assert float(rows["operations of a chip"].split()[0]) > 0.1
    count, size = re.match(r"(\d+), ([\d.]+) MB a chip$", rows["all-reduce"]).groups()
    assert int(count) > 0
    assert float(size) >= 4 * PARAMETERS / 1e6  # the gradients, once


def test_a_step_that_does_not_fit():
    script = (
        "import sys\n"
        "from flair_jax.aot import chips\n"
        "from flair_jax.cli.commands import main\n"
        "chips.CHIPS['cpu'] = chips.Chip({'bfloat16': 1e12}, 1e11, 2**27)\n"
        "sys.exit(main(['train-compile', *sys.argv[1:]]))\n"
    )
    done = run(*SMALL, "--config.batch_size=2", devices=1, script=("-c", script))
    assert done.returncode == 1
    assert table(done)["memory of a chip"].endswith("GiB of 0.125 GiB: does not fit")
    assert table(done)["roofline"].endswith("memory traffic")
    assert table(done)["collectives"] == "none"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "status", "expected"),
    [
        ([], 2, "error: --config=NAME or --config=FILE is needed"),
        (["--config=configs/none.py"], 2, "error: there is no configuration file configs/none.py"),
        ([*SMALL, "--config.batch=8"], 2, "error: unknown configuration key config.batch on"),
        ([*SMALL, "--workdir=x"], 2, "error: unknown flag --workdir"),
        (
            [*SMALL, "--config.batch_size=10"],
            1,
            "error: config.batch_size=10 is the global batch and must be a multiple of the 8 "
            "devices: set it to 8",
        ),
        ([*SMALL, "--batch_size=12"], 1, "error: --batch_size=12 is the global batch"),
        (
            ["--config=configs/baseline.py", "--patch_size=100"],
            1,
            "error: --patch_size=100: the U-Net takes heights and widths that are multiples of 32",
        ),
        (
            [*SMALL, "--config.crop_size=64"],
            1,
            "error: --patch_size=32: config.crop_size=64 is more",
        ),
    ],
)
def test_mistakes_end_with_a_message(flags, status, expected):
    done = run(*flags)
    assert done.returncode == status
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert "compiled in" not in done.stdout


@pytest.mark.parametrize(("name", "extra"), [("v5e:2x4", "tpu"), ("h100:8", "gpu-compile")])
def test_topology_without_its_compiler(name, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=rf'--topology={name} needs .*pip install -e "\.\[{extra}\]"'
    ):
        topologies.topology_devices(name)


@pytest.mark.parametrize("name", ["h100:", "h100:0", "a100:2x", "a100:2x2x8", "h100:8 ", "h100"])
def test_gpus_that_cannot_be(name):
    with pytest.raises(UserError, match=f"--topology={name} is not card:number"):
        topologies.topology_devices(name)


@needs_libtpu
@pytest.mark.parametrize("name", ["v5x:3", "v5e:3x5", "nonsense"])
def test_topology_that_there_is_not(name):
    done = run(*SMALL, f"--topology={name}")
    assert done.returncode == 1
    assert f"error: the TPU compiler takes no --topology={name} (INVALID_ARGUMENT" in done.stderr
    assert "a topology is generation:shape" in done.stderr
    assert "Traceback" not in done.stderr


PROBE = """
import jax, jax.numpy as jnp
from flair_jax.aot.topologies import topology_devices
for name in ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"):
    devices = topology_devices(name)
    one = jax.sharding.SingleDeviceSharding(devices[0])
    large = jax.ShapeDtypeStruct((2**29, 128), jnp.float32, sharding=one)
    try:
        jax.jit(jnp.sort).lower(large).compile()
    except jax.errors.JaxRuntimeError as error:
        print(len(devices), devices[0].device_kind, "|", str(error).splitlines()[0])
"""


@needs_libtpu
def test_the_tables_memory_is_the_compilers(monkeypatch):
    for name, value in topologies.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    done = run(script=("-c", PROBE))
    limits = re.findall(r"4 (.+) \| RESOURCE_EXHAUSTED.* HBM \(([\d.]+)G\)", done.stdout)
    memory = {kind: chip.memory for kind, chip in CHIPS.items() if kind.startswith("TPU")}
    assert len(limits) == len(memory), done.stdout + done.stderr
    found = {kind: float(size) * 2**30 for kind, size in limits}
    assert found == pytest.approx(memory, rel=0.01)


@needs_libtpu
def test_chips_that_are_not_here():
    done = run(*SMALL, "--batch_size=4", "--topology=v5e:2x2", "--config.dtype=bfloat16")
    assert done.returncode == 0, done.stderr
    rows = table(done)
    assert rows["chips"] == "4 x TPU v5 lite, 1 host(s)"
    assert rows["memory of a chip"].endswith("GiB of 15.750 GiB: fits")
    assert "at 197 TFLOP/s" in rows["operations of a chip"]
    assert "at 819 GB/s" in rows["memory traffic of a chip"]
    assert "ms a step, bound by memory traffic" in rows["roofline"]
    size = re.match(r"\d+, ([\d.]+) MB a chip$", rows["all-reduce"])[1]
    assert float(size) >= 2 * PARAMETERS / 1e6  # in bfloat16, as the products that they sum
    assert CHIPS["TPU v5 lite"].flops["bfloat16"] == 197e12
