"""What a compiled program asks of a chip: memory, operations, traffic and collectives."""

import dataclasses
import math
import re
from collections.abc import Sequence

import jax

from flair_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip's peak performance and memory.

    Attributes:
        flops: peak bfloat16 operations per second.
        bandwidth: of its memory, in bytes per second.
        memory: what a program may use of it, in bytes.
    """

    flops: float
    bandwidth: float
    memory: float


# By `jax.Device.device_kind`. Operations and bandwidth: the pages "TPU v4", "TPU v5e", "TPU v5p",
# "TPU v6e" of the Cloud TPU documentation, docs.cloud.google.com/tpu/docs/v4 and so on, read in
# November 2026. Memory: what the TPU compiler (libtpu 0.0.50.1) gives a program, from its error for
# one that is too large; a little less than the 32, 16, 95 and 32 GB of those pages.
CHIPS = {
    "TPU v4": Chip(275e12, 1200e9, 30.75 * 2**30),
    "TPU v5 lite": Chip(197e12, 819e9, 15.75 * 2**30),  # v5e
    "TPU v5": Chip(459e12, 2765e9, 95.73 * 2**30),  # v5p
    "TPU v6 lite": Chip(918e12, 1638e9, 31.24 * 2**30),  # v6e
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
class Collective:
    """All collectives of a kind in a program: how many, and the bytes of their results."""

    count: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Figures:
    """What the compiler reports of a program, for one chip and one run of it.

    Attributes:
        arguments, outputs, temporaries, code: memory in bytes.
        aliased: bytes of outputs that reuse the memory of arguments.
        flops: floating-point operations.
        traffic: bytes read and written, as the compiler's cost model counts them.
        collectives: by kind.
    """

    arguments: int
    outputs: int
    temporaries: int
    code: int
    aliased: int
    flops: float
    traffic: float
    collectives: dict[str, Collective]

    @property
    def memory(self) -> int:
        """Bytes of the chip's memory that are in use at once."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code

    def seconds(self, chip: Chip) -> tuple[float, float]:
        """The roofline: seconds of operations and of memory traffic at the chip's peaks."""
        return self.flops / chip.flops, self.traffic / chip.bandwidth


def figures_of(compiled: jax.stages.Compiled) -> Figures:
    """Reads the figures of a compiled program.

    Raises:
        UserError: the backend's compiler gives none.
    """
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    if memory is None or cost is None:
        raise UserError(
            "this compiler reports neither the memory nor the operations of a program: compile for "
            "TPUs with --topology=v5e:2x4, or on another machine"
        )
    return Figures(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        flops=cost["flops"],
        traffic=cost["bytes accessed"],
        collectives=collectives(compiled.as_text() or ""),
    )


# %all-reduce.1 = (f32[64]{0:T(128)}, f32[3,3]{1,0}) all-reduce(%a, %b), channel_id=2, ...
_COLLECTIVE = re.compile(
    r"^\s*(?:ROOT )?%?[\w.-]+ = (.+?) "
    r"(all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(-start)?\("
    r"(?:.*?\bchannel_id=(\d+))?",
    re.MULTILINE,
)
_ARRAY = re.compile(r"\b(pred|token|[a-z]+(\d+)\w*)\[([\d,]*)\]")


def collectives(hlo: str) -> dict[str, Collective]:
    """Counts the collectives in a compiled program's text, each once.

    An asynchronous one is counted by its start. One that the TPU compiler has split into parts, to
    run beside computations, has the same channel in all of them and is counted once.

    Args:
        hlo: the text of the optimised module, what every device runs.
    """
    totals: dict[str, Collective] = {}
    channels = set()
    for shape, kind, start, channel in _COLLECTIVE.findall(hlo):
        if channel and channel in channels:
            continue
        channels.add(channel)
        if start and kind in ("all-gather", "collective-permute"):
            shape = _members(shape)[1]  # (operands, results, ...)
        total = totals.get(kind, Collective(0, 0))
        totals[kind] = Collective(total.count + 1, total.bytes + _bytes(shape))
    return totals


def _members(shape: str) -> Sequence[str]:
    """The members of a tuple's shape: "((f32[8]{0}, s32[]), f32[8,2]{1,0})" has two."""
    members, depth, begin = [], 0, 1
    for i, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or depth == 0:
            members.append(shape[begin:i].strip())
            begin = i + 1
    return members


def _bytes(shape: str) -> int:
    """The size of an array, or of all arrays of a tuple."""
    total = 0
    for name, bits, sides in _ARRAY.findall(shape):
        width = {"pred": 8, "token": 0}.get(name) if not bits else int(bits)
        total += -(-math.prod(int(side) for side in sides.split(",") if side) * (width or 0) // 8)
    return total
