import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from flair_jax.models.ops import plain
from flair_jax.runtime import arithmetic

H100 = SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3", compute_capability="9.0")
V100 = SimpleNamespace(device_kind="Tesla V100", compute_capability="7.0")
TPU = SimpleNamespace(device_kind="TPU v5 lite")
CPU = SimpleNamespace(device_kind="cpu")
MI300 = SimpleNamespace(device_kind="AMD Instinct MI300X", compute_capability="gfx942")


@pytest.fixture
def unchanged():
    before = jax.config.values["jax_default_matmul_precision"]
    yield
    jax.config.update("jax_default_matmul_precision", before)


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("tf32", H100, None),
        ("tf32", V100, jax.lax.Precision.HIGHEST),
        ("tf32", MI300, jax.lax.Precision.HIGHEST),
        ("tf32", TPU, jax.lax.Precision.HIGHEST),
        ("tf32", CPU, jax.lax.Precision.HIGHEST),
        ("highest", H100, jax.lax.Precision.HIGHEST),
    ],
)
def test_products_are_rounded_to_tf32_on_gpus_only(precision, device, expected, unchanged):
    arithmetic.set_precision(precision, device)
    assert plain.full_precision(jnp.ones(1)) is expected
    assert plain.full_precision(jnp.ones(1, jnp.bfloat16)) is None


@pytest.mark.parametrize("before", ["", "--xla_dump_to=x", arithmetic.DETERMINISTIC])
def test_a_fixed_order_is_a_flag_of_xlas_once(before, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", before)
    arithmetic.fix_order()
    assert os.environ["XLA_FLAGS"].split().count("--xla_gpu_deterministic_ops=true") == 1
    assert os.environ["XLA_FLAGS"].startswith(before)


@pytest.mark.parametrize(
    ("dtype", "precision", "device", "expected"),
    [
        ("float32", "highest", H100, "of float32 not rounded (config.matmul_precision=highest)"),
        ("float32", "tf32", H100, "of float32 rounded to TF32 (config.matmul_precision=tf32)"),
        ("bfloat16", "tf32", H100, ""),
        ("float32", "highest", V100, ""),
        ("float32", "tf32", V100, "config.matmul_precision=tf32 changes nothing on Tesla V100"),
        ("float32", "tf32", TPU, "config.matmul_precision=tf32 changes nothing on TPU v5 lite"),
        ("float32", "highest", TPU, ""),
        ("float32", "highest", MI300, ""),
        ("float32", "tf32", MI300, "config.matmul_precision=tf32 changes nothing on AMD Instinct"),
    ],
)
def test_the_start_of_a_run_reports_it(dtype, precision, device, expected):
    described = arithmetic.describe(dtype, precision, device)
    assert described.startswith(expected)
    assert bool(described) == bool(expected)
