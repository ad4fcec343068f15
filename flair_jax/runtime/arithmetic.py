"""How GPUs compute: in a fixed order or the fastest, products of float32 rounded to TF32 or not.

Both are settings of XLA and JAX for the whole process.
"""

import os
import re

import jax

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def fix_order() -> None:
    """Lets GPUs sum in a fixed order (config.deterministic), so that results repeat to the bit.

    To be called before JAX's backend starts. On other platforms they do in any case.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if DETERMINISTIC not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {DETERMINISTIC}".strip()


def has_tf32(device: jax.Device) -> bool:
    """Whether a device multiplies in TF32: NVIDIA's GPUs from compute capability 8.0 on."""
    # AMD's have a capability too, such as "gfx942"; other devices have none.
    capability = str(getattr(device, "compute_capability", ""))
    return re.fullmatch(r"\d+\.\d+", capability) is not None and float(capability) >= 8


def set_precision(matmul_precision: str, device: jax.Device) -> None:
    """Sets what products of float32 are rounded to: nothing, or TF32 where a device has it.

    Args:
        matmul_precision: of the configuration.
        device: one of those that compute. Without TF32 nothing changes: TPUs would round more.
    """
    if matmul_precision == "tf32" and has_tf32(device):
        jax.config.update("jax_default_matmul_precision", "tensorfloat32")


def describe(dtype: str, matmul_precision: str, device: jax.Device) -> str:
    """What a run's products are rounded to, for the lines at its start; "" if nothing to choose."""
    if matmul_precision == "tf32" and not has_tf32(device):
        return f"config.matmul_precision=tf32 changes nothing on {device.device_kind}"
    if not has_tf32(device) or dtype != "float32":
        return ""
    if matmul_precision == "tf32":
        return "of float32 rounded to TF32 (config.matmul_precision=tf32)"
    return (
        "of float32 not rounded (config.matmul_precision=highest); by NVIDIA's data sheets "
        "tf32 computes 7 to 8 times as much per second, bfloat16 15 (A100, H100)"
    )
