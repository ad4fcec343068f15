"""What a compiled program asks of a chip: memory, operations, traffic and collectives."""

import dataclasses
from collections.abc import Mapping

import jax

from flair_jax.aot import hlo
from flair_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip's peak performance and memory.

    Attributes:
        flops: peak operations per second: of "bfloat16", and where they are known of "float32" and
            of "tf32", which is float32 whose products are rounded to TF32.
        bandwidth: of its memory, in bytes per second.
        memory: what a program may use of it, in bytes.
    """

    flops: Mapping[str, float]
    bandwidth: float
    memory: float


PREALLOCATED = 0.75  # JAX's share of a GPU's memory by default

# By `jax.Device.device_kind`. TPUs: operations and bandwidth are of the pages "TPU v4", "TPU v5e",
# "TPU v5p", "TPU v6e" of the Cloud TPU documentation (docs.cloud.google.com/tpu/docs/v4 etc.),
# read in November 2026. Memory: what the TPU compiler (libtpu 0.0.50.1) gives a program, from its
# error for one that is too large; a little less than the 32, 16, 95 and 32 GB of those pages.
# GPUs: NVIDIA's data sheets of the H100 SXM and of the A100 80 GB SXM, without sparsity.
CHIPS = {
    "TPU v4": Chip({"bfloat16": 275e12}, 1200e9, 30.75 * 2**30),
    "TPU v5 lite": Chip({"bfloat16": 197e12}, 819e9, 15.75 * 2**30),  # v5e
    "TPU v5": Chip({"bfloat16": 459e12}, 2765e9, 95.73 * 2**30),  # v5p
    "TPU v6 lite": Chip({"bfloat16": 918e12}, 1638e9, 31.24 * 2**30),  # v6e
    "NVIDIA H100 80GB HBM3": Chip(
        {"bfloat16": 989e12, "tf32": 494e12, "float32": 67e12}, 3352e9, PREALLOCATED * 84942979072
    ),
    "NVIDIA A100-SXM4-80GB": Chip(
        {"bfloat16": 312e12, "tf32": 156e12, "float32": 19.5e12}, 2039e9, PREALLOCATED * 85100068864
    ),
}


def usable_memory(device: jax.Device) -> float | None:
    """Bytes that a program may use, from the device or else from `CHIPS`; None if in neither."""
    try:
        limit = (device.memory_stats() or {}).get("bytes_limit")
    except jax.errors.JaxRuntimeError:  # a device of a topology: there is none to ask
        limit = None
    chip = CHIPS.get(device.device_kind)
    return limit or (chip.memory if chip else None)


@dataclasses.dataclass(frozen=True)
class Figures:
    """What the compiler reports of a program, for one chip and one run of it.

    Attributes:
        arguments, outputs, temporaries, code: memory in bytes.
        aliased: bytes of outputs that reuse the memory of arguments.
        flops: floating-point operations; on GPUs those of the convolutions. None if not known.
        traffic: bytes read and written, as the compiler's cost model counts them; on GPUs the
            arguments and results of all kernels. None if not known.
        collectives: by kind.
        on_gpu: whether it is compiled for a GPU.
    """

    arguments: int
    outputs: int
    temporaries: int
    code: int
    aliased: int
    flops: float | None
    traffic: float | None
    collectives: dict[str, hlo.Collective]
    on_gpu: bool = False

    @property
    def memory(self) -> int:
        """Bytes of the chip's memory that are in use at once."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


def figures_of(compiled: jax.stages.Compiled) -> Figures:
    """Reads the figures of a compiled program.

    Raises:
        UserError: the backend's compiler gives none.
    """
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    text = compiled.as_text() or ""
    on_gpu = hlo.is_of_gpu(text)
    if memory is None or (cost is None and not on_gpu):
        raise UserError(
            "this compiler reports neither the memory nor the operations of a program: compile for "
            "TPUs with --topology=v5e:2x4, or on another machine"
        )
    flops = traffic = None
    if on_gpu:  # no cost analysis without a card, and none of cuDNN's calls with one
        if found := hlo.kernels(text):
            flops, traffic = found.flops, found.convolutions + found.others
    elif cost is not None:
        flops, traffic = cost["flops"], cost["bytes accessed"]
    return Figures(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        flops=flops,
        traffic=traffic,
        collectives=hlo.collectives(text),
        on_gpu=on_gpu,
    )
