"""Devices to compile for that need not be on this machine: TPU topologies, and hosts of GPUs."""

import importlib.util
import re
from typing import TYPE_CHECKING

from flair_jax.aot.chips import CHIPS
from flair_jax.errors import UserError

if TYPE_CHECKING:  # JAX is imported once the environment is set
    import jax

# To be set before JAX is imported: what libtpu and JAX would otherwise query from the machine. No
# TPU is opened, so libtpu's lock, which lets only one process use a machine's TPUs, is not needed.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# What the GPU compiler takes from a card, as a `GpuTargetConfigProto` in protobuf's text form.
_CARD = """
gpu_device_info {{
  cuda_compute_capability {{ {capability} }}
  core_count: {cores} fpus_per_core: {units} clock_rate_ghz: {clock}
  memory_bandwidth: {chip.bandwidth} device_memory_size: {chip.memory} l2_cache_size: {cache}
  shared_memory_per_core: {shared} shared_memory_per_block_optin: {shared_optin}
  shared_memory_per_block: 49152 threads_per_core_limit: 2048 threads_per_block_limit: 1024
  threads_per_warp: 32 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{kind}"
"""


def _card(kind: str, **fields: str | float) -> str:
    return _CARD.format(kind=kind, chip=CHIPS[kind], **fields)


CARDS = {
    "h100": _card(
        "NVIDIA H100 80GB HBM3", capability="major: 9 feature_extension: ACCELERATED_FEATURES",
        cores=132, units=128, clock=1.98, cache=52428800, shared=233472, shared_optin=232448,
    ),
    "a100": _card(
        "NVIDIA A100-SXM4-80GB", capability="major: 8",
        cores=108, units=64, clock=1.41, cache=41943040, shared=167936, shared_optin=166912,
    ),
}  # fmt: skip


def topology_devices(name: str) -> "list[jax.Device]":
    """The devices of a topology, to compile for.

    Args:
        name: of TPUs generation:shape, such as "v5e:2x4"; of GPUs card:number or
            card:hosts x cards of a host, such as "h100:8" or "a100:2x8".

    Raises:
        UserError: the compiler is not installed, or does not know the topology.
    """
    generation = name.partition(":")[0]
    return _gpus(name) if generation in CARDS else _tpus(name)


def has_gpu_compiler() -> bool:
    """Whether JAX's plug-in for NVIDIA GPUs is installed."""
    return importlib.util.find_spec("jax_plugins") is not None and any(
        importlib.util.find_spec(f"jax_plugins.xla_cuda{version}") for version in (12, 13)
    )


def _gpus(name: str) -> "list[jax.Device]":
    match = re.fullmatch(r"(\w+):(?:(\d+)x)?(\d+)", name)
    if match is None or "0" in match.groups():
        raise UserError(
            f"--topology={name} is not card:number or card:hosts x number, such as h100:8 or "
            "h100:2x8"
        )
    if not has_gpu_compiler():
        raise UserError(
            f"--topology={name} needs the GPU compiler, which is not installed: "
            'pip install -e ".[gpu-compile]", or leave --topology out to compile for the devices '
            "at hand"
        )
    from jax.experimental import topologies

    card, hosts, each = match.groups()
    return topologies.get_topology_desc(
        "gpus", platform="cuda", topology=f"1x{hosts or 1}x{each}", target_config=CARDS[card]
    ).devices


def _tpus(name: str) -> "list[jax.Device]":
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={name} needs the TPU compiler, libtpu, which is not installed: "
            'pip install -e ".[tpu]", or leave --topology out to compile for the devices at hand. '
            f"GPUs are {' and '.join(f'{card}:8' for card in CARDS)}"
        )
    from jax.experimental import topologies

    # As Cloud TPU runs it: both cores of a v4 chip as one device, which is v5p's default.
    options = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
    try:
        return topologies.get_topology_desc(name, platform="tpu", **options).devices
    except RuntimeError as error:
        raise UserError(
            f"the TPU compiler takes no --topology={name} ({error}): a topology is "
            "generation:shape, such as v5e:2x4, v5p:2x2x2 or v6e:16x16, or of GPUs card:number, "
            f"such as {' or '.join(f'{card}:8' for card in CARDS)}"
        ) from error
