"""Peak performance and memory of TPUs and GPUs, from their makers' pages."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip's peak performance and memory.

    Attributes:
        flops: peak operations per second: of "bfloat16", and where they are known of "float32" and
            of "tf32", which is float32 whose products are rounded to TF32.
        bandwidth: of its memory, in bytes per second.
        memory: in bytes.
        share: of the memory, that a program may use.
    """

    flops: Mapping[str, float]
    bandwidth: float
    memory: float
    share: float = 1.0

    @property
    def usable_memory(self) -> float:
        """What a program may use of it, in bytes."""
        return self.share * self.memory


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
        {"bfloat16": 989e12, "tf32": 494e12, "float32": 67e12},
        3352320000000, 84942979072, PREALLOCATED,
    ),
    "NVIDIA A100-SXM4-80GB": Chip(
        {"bfloat16": 312e12, "tf32": 156e12, "float32": 19.5e12},
        2039040000000, 85100068864, PREALLOCATED,
    ),
}  # fmt: skip
