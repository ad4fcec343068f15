"""The train step compiled for hardware that need not be present: memory, operations, roofline.

Nothing is allocated and nothing is run.
"""

import contextlib
import importlib.metadata
import time
from typing import TYPE_CHECKING

from flair_jax.aot.chips import CHIPS, Chip

if TYPE_CHECKING:  # JAX is imported once the environment is set
    import jax
    import ml_collections

    from flair_jax.aot.figures import Figures


COMPILERS = {"tpu": ("libtpu",), "gpu": ("jax-cuda13-pjrt", "jax-cuda12-pjrt")}  # packages
MANY = 20  # collectives in a step: the gradients' and the losses' are fewer


def compile_and_show(
    config: "ml_collections.ConfigDict", patch_size: int, mesh: "jax.sharding.Mesh"
) -> bool:
    """Compiles the train step and prints what it asks of a chip.

    Args:
        config, patch_size, mesh: see `programs.lower_train_step`.

    Returns:
        False if it does not fit the chip's memory; True if it does, or the memory is not known.
    """
    import jax

    from flair_jax.aot.figures import figures_of, usable_memory
    from flair_jax.aot.programs import lower_train_step
    from flair_jax.runtime import arithmetic

    devices = mesh.devices.flatten()
    crop = f", crops of {config.crop_size}" if config.crop_size else ""
    hosts = len({device.process_index for device in devices})
    show(
        ("activations", config.dtype),
        ("batch", f"{config.batch_size} patches of {patch_size} x {patch_size}{crop}, "
                  f"{config.batch_size // mesh.size} a chip"),
        ("chips", f"{mesh.size} x {devices[0].device_kind}, {hosts} host(s)"),
        ("compiler", _versions(devices[0].platform)),
    )  # fmt: skip
    arithmetic.set_precision(config.matmul_precision, devices[0])
    lowered, started = lower_train_step(config, patch_size, mesh), time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        show(("memory of a chip", f"does not fit; the compiler says:\n{error}"))
        return False
    show(("compiled in", f"{time.monotonic() - started:.0f} s"))
    figures, memory = figures_of(compiled), usable_memory(devices[0])
    chip = CHIPS.get(devices[0].device_kind)
    products = config.dtype
    if products == "float32" and config.matmul_precision == "tf32":
        products = "tf32"
    show(*rows(figures, memory, chip, config.batch_size, mesh.size, products))
    return memory is None or figures.memory <= memory


def rows(
    figures: "Figures",
    memory: float | None,
    chip: Chip | None,
    batch_size: int,
    chips: int,
    products: str,
) -> list[tuple[str, str]]:
    """The table's rows: name and value.

    Args:
        figures: of the compiled step.
        memory: bytes that a chip has for it, None if not known.
        chip: its peak figures, None if not known.
        batch_size: the global one.
        chips: their number.
        products: "float32", "tf32" or "bfloat16".
    """
    return [
        *_memory_rows(figures, memory),
        *_work_rows(figures, chip, batch_size, chips, products),
        *_collective_rows(figures),
    ]


def _memory_rows(figures: "Figures", memory: float | None) -> list[tuple[str, str]]:
    if memory is None:
        verdict = "of unknown"
    else:
        verdict = f"of {_gib(memory)}: {'fits' if figures.memory <= memory else 'does not fit'}"
    return [
        ("memory of a chip", f"{_gib(figures.memory)} {verdict}"),
        ("  arguments", _gib(figures.arguments)),
        ("  outputs", _gib(figures.outputs)),
        ("  aliased", f"{_gib(figures.aliased)} (outputs in the arguments' place)"),
        ("  temporaries", _gib(figures.temporaries)),
        ("  generated code", _gib(figures.code)),
        *([("  not counted", "the workspaces of cuDNN's convolutions")] if figures.on_gpu else []),
    ]


def _work_rows(
    figures: "Figures", chip: Chip | None, batch_size: int, chips: int, products: str
) -> list[tuple[str, str]]:
    names = "operations of a chip", "memory traffic of a chip", "roofline", "images per second"
    if figures.flops is None or figures.traffic is None:
        unknown = "unknown: a step with config.accumulate_steps has a loop"
        return [(name, unknown) for name in names]
    operations, traffic = f"{figures.flops / 1e9:,.1f} GFLOP", f"{figures.traffic / 1e9:,.2f} GB"
    roofline = speed = "unknown, as this chip's peak figures are"
    if chip is not None:
        if products not in chip.flops:
            products = "bfloat16"
        computing, moving = figures.flops / chip.flops[products], figures.traffic / chip.bandwidth
        peak = f"{chip.flops[products] / 1e12:g} TFLOP/s ({products})"
        operations += f", {_ms(computing)} at {peak}"
        traffic += f", {_ms(moving)} at {chip.bandwidth / 1e9:g} GB/s"
        longer = max(computing, moving)
        bound = "operations" if computing >= moving else "memory traffic"
        roofline = f"{_ms(longer)} a step, bound by {bound}"
        speed = f"{batch_size / longer:,.0f}, {batch_size / longer / chips:,.0f} a chip"
    return list(zip(names, (operations, traffic, roofline, speed), strict=True))


def _collective_rows(figures: "Figures") -> list[tuple[str, str]]:
    found = sorted(figures.collectives.items())
    rows = [(kind, f"{all_.count}, {all_.bytes / 1e6:,.1f} MB a chip") for kind, all_ in found]
    if figures.on_gpu and sum(all_.count for _, all_ in found) > MANY:
        rows.append(
            ("  most of them", "batch statistics; config.batch_norm=per_device needs none of these")
        )
    return rows or [("collectives", "none")]


def _versions(platform: str) -> str:
    found = []
    for name in ("jax", "jaxlib", *COMPILERS.get(platform, ())):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # one of the two
            found.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(found)


def _gib(size: float) -> str:
    return f"{size / 2**30:.3f} GiB"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms"


def show(*rows: tuple[str, str]) -> None:
    """Prints rows of the table."""
    for name, value in rows:
        print(f"{name:<26}{value}", flush=True)
