"""What a compiled program asks of a chip: memory, operations, traffic and collectives."""

import dataclasses

import jax

from flair_jax.aot import hlo
from flair_jax.aot.chips import CHIPS
from flair_jax.errors import UserError


def usable_memory(device: jax.Device) -> float | None:
    """Bytes that a program may use, from the device or else from `CHIPS`; None if in neither."""
    try:
        limit = (device.memory_stats() or {}).get("bytes_limit")
    except jax.errors.JaxRuntimeError:  # a device of a topology: there is none to ask
        limit = None
    chip = CHIPS.get(device.device_kind)
    return limit or (chip.usable_memory if chip else None)


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
