"""What the text of an optimised module (HLO) tells: its collectives, and a GPU's kernels.

The compilers for TPUs and CPUs report operations and memory traffic themselves. The one for GPUs
does not without a card, but its text names every kernel with the shapes that it reads and writes.
"""

import dataclasses
import math
import re
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of a kind in a program: how many, and the bytes of their results."""

    count: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Kernels:
    """A GPU's kernels in a program that has no loops.

    Attributes:
        flops: operations of the convolutions; all others are few beside them.
        convolutions, others: bytes that cuDNN's convolutions and all other kernels read and write.
    """

    flops: float
    convolutions: int
    others: int


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation: `%name = shape opcode(%operand, ...), attributes`."""

    name: str
    shape: str
    opcode: str
    operands: list[str]
    attributes: str


_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
_CONVOLUTION = 'custom_call_target="__cudnn$conv'
_COMPUTATION = re.compile(r"^%([\w.-]+) \(.*\{\n((?:.*\n)+?)\}", re.MULTILINE)
_NAME = re.compile(r"\s*(?:ROOT )?%?([\w.-]+) = ")
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
    for instruction in _instructions(hlo):
        kind, shape = instruction.opcode.removesuffix("-start"), instruction.shape
        if kind not in _COLLECTIVES:
            continue
        if channel := re.search(r"\bchannel_id=(\d+)", instruction.attributes):
            if channel[1] in channels:
                continue
            channels.add(channel[1])
        if instruction.opcode.endswith("-start") and _holds_operands(kind, shape):
            shape = _members(shape)[1]  # (operands, results, ...)
        total = totals.get(kind, Collective(0, 0))
        totals[kind] = Collective(total.count + 1, total.bytes + _bytes(shape))
    return totals


def _holds_operands(kind: str, shape: str) -> bool:
    """Whether the shape of a start is (operands, results, ...): an all-reduce's only on GPUs."""
    return kind in ("all-gather", "collective-permute") or shape.startswith("((")


def is_of_gpu(hlo: str) -> bool:
    """Whether a program has been compiled for a GPU: its convolutions are calls of cuDNN."""
    return _CONVOLUTION in hlo


def kernels(hlo: str) -> Kernels | None:
    """The kernels of a program compiled for a GPU.

    Args:
        hlo: the text of the optimised module, what every device runs.

    Returns:
        None if it has loops, whose bodies run an unknown number of times.
    """
    computations = {name: list(_instructions(body)) for name, body in _COMPUTATION.findall(hlo)}
    shapes: dict[str, str] = {}
    flops, convolutions, others = 0.0, 0, 0
    for instruction in _instructions(hlo[hlo.index("\nENTRY ") :]):
        shapes[instruction.name] = instruction.shape
        if instruction.opcode == "while":
            return None
        moved = _bytes(instruction.shape)
        if _CONVOLUTION in instruction.attributes:
            convolutions += moved + sum(_bytes(shapes[name]) for name in instruction.operands)
            flops += _operations(instruction, shapes)
        elif instruction.opcode == "fusion":
            called = re.search(r"calls=%([\w.-]+)", instruction.attributes)
            assert called is not None, instruction
            others += moved + _read_by_fusion(computations[called[1]])
        elif instruction.opcode in ("copy", "custom-call"):
            others += moved + sum(_bytes(shapes[name]) for name in instruction.operands)
    return Kernels(flops, convolutions, others)


def _read_by_fusion(computation: list[Instruction]) -> int:
    """The bytes that a fusion reads of its arguments: of some only slices."""
    total = 0
    for argument in computation:
        if argument.opcode == "parameter":
            users = [other for other in computation if argument.name in other.operands]
            sliced = users and all(user.opcode in ("slice", "dynamic-slice") for user in users)
            total += sum(_bytes(user.shape) for user in users) if sliced else _bytes(argument.shape)
    return total


def _operations(convolution: Instruction, shapes: dict[str, str]) -> float:
    """The operations of a cuDNN call, forward or of one of the gradients."""
    first, second = (_sides(shapes[name]) for name in convolution.operands[:2])
    result = _sides(convolution.shape)
    if "convBackwardFilter" in convolution.attributes:  # (map, gradient) -> gradient of the kernel
        kernel, output = result, second
    elif "convBackwardInput" in convolution.attributes:  # (gradient, kernel)
        kernel, output = second, first
    else:  # (map, kernel)
        kernel, output = second, result
    labels = re.search(r"dim_labels=\w+_(\w+)->", convolution.attributes)
    assert labels is not None, convolution
    per_number = math.prod(kernel) // kernel[labels[1].index("o")]
    return 2.0 * math.prod(output) * per_number


def _instructions(text: str) -> Iterator[Instruction]:
    for line in text.splitlines():
        start = _NAME.match(line)
        if start is None:
            continue
        rest = line[start.end() :]
        end = _end_of_tuple(rest) if rest.startswith("(") else rest.find(" ")
        opcode, parenthesis, rest_of_line = rest[end + 1 :].partition("(")
        if end > 0 and parenthesis:
            inside, _, attributes = rest_of_line.partition(")")
            operands = re.findall(r"%([\w.-]+)", inside)
            yield Instruction(start[1], rest[:end], opcode, operands, attributes)


def _end_of_tuple(text: str) -> int:
    """Where the tuple's shape ends that a text begins with."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return i + 1
    return -1


def _members(shape: str) -> list[str]:
    """The members of a tuple's shape: "((f32[8]{0}, s32[]), f32[8,2]{1,0})" has two."""
    members, depth, begin = [], 0, 1
    for i, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or depth == 0:
            members.append(shape[begin:i].strip())
            begin = i + 1
    return members


def _sides(shape: str) -> list[int]:
    """The sides of an array, or of the first one of a tuple."""
    array = _ARRAY.search(shape)
    assert array is not None, shape
    return [int(side) for side in array[3].split(",")]


def _bytes(shape: str) -> int:
    """The size of an array, or of all arrays of a tuple."""
    total = 0
    for name, bits, sides in _ARRAY.findall(shape):
        width = {"pred": 8, "token": 0}.get(name) if not bits else int(bits)
        total += -(-math.prod(int(side) for side in sides.split(",") if side) * (width or 0) // 8)
    return total
