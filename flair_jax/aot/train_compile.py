"""The train step compiled for hardware that need not be present: memory, operations, roofline.

Nothing is allocated and nothing is run.
"""

import importlib.metadata
import importlib.util
import time
from typing import TYPE_CHECKING

from flair_jax.errors import UserError

if TYPE_CHECKING:  # JAX is imported once the environment is set
    import jax
    import ml_collections

    from flair_jax.aot.figures import Chip, Figures


# What libtpu and JAX would otherwise query from the machine, which has no TPU. No TPU is opened, so
# libtpu's lock, which lets only one process use a machine's TPUs, is not needed.
NO_TPU_HERE = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def topology_devices(name: str) -> "list[jax.Device]":
    """The devices of a TPU topology, to compile for; there need be none on this machine.

    Raises:
        UserError: the TPU compiler is not installed, or does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={name} needs the TPU compiler, libtpu, which is not installed: "
            'pip install -e ".[tpu]", or leave --topology out to compile for the devices at hand'
        )
    from jax.experimental import topologies

    # As Cloud TPU runs it: both cores of a v4 chip as one device, which is v5p's default.
    options = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
    try:
        return topologies.get_topology_desc(name, platform="tpu", **options).devices
    except RuntimeError as error:
        raise UserError(
            f"the TPU compiler takes no --topology={name} ({error}): a topology is "
            "generation:shape, such as v5e:2x4, v5p:2x2x2 or v6e:16x16"
        ) from error


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

    from flair_jax.aot.figures import CHIPS, figures_of, usable_memory
    from flair_jax.aot.programs import lower_train_step

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
    show(*rows(figures, memory, chip, config.batch_size, mesh.size))
    return memory is None or figures.memory <= memory


def rows(
    figures: "Figures", memory: float | None, chip: "Chip | None", batch_size: int, chips: int
) -> list[tuple[str, str]]:
    """The table's rows: name and value.

    Args:
        figures: of the compiled step.
        memory: bytes that a chip has for it, None if not known.
        chip: its peak figures, None if not known.
        batch_size: the global one.
        chips: their number.
    """
    return [
        *_memory_rows(figures, memory),
        *_work_rows(figures, chip, batch_size, chips),
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
    ]


def _work_rows(
    figures: "Figures", chip: "Chip | None", batch_size: int, chips: int
) -> list[tuple[str, str]]:
    operations, traffic = f"{figures.flops / 1e9:,.1f} GFLOP", f"{figures.traffic / 1e9:,.2f} GB"
    roofline = speed = "unknown, as this chip's peak figures are"
    if chip is not None:
        computing, moving = figures.seconds(chip)
        operations += f", {_ms(computing)} at {chip.flops / 1e12:g} TFLOP/s (bfloat16)"
        traffic += f", {_ms(moving)} at {chip.bandwidth / 1e9:g} GB/s"
        longer = max(computing, moving)
        bound = "operations" if computing >= moving else "memory traffic"
        roofline = f"{_ms(longer)} a step, bound by {bound}"
        speed = f"{batch_size / longer:,.0f}, {batch_size / longer / chips:,.0f} a chip"
    return [
        ("operations of a chip", operations),
        ("memory traffic of a chip", traffic),
        ("roofline", roofline),
        ("images per second", speed),
    ]


def _collective_rows(figures: "Figures") -> list[tuple[str, str]]:
    found = sorted(figures.collectives.items())
    rows = [(kind, f"{all_.count}, {all_.bytes / 1e6:,.1f} MB a chip") for kind, all_ in found]
    return rows or [("collectives", "none")]


def _versions(platform: str) -> str:
    names = ["jax", "jaxlib", *(["libtpu"] if platform == "tpu" else [])]
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def _gib(size: float) -> str:
    return f"{size / 2**30:.3f} GiB"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms"


def show(*rows: tuple[str, str]) -> None:
    """Prints rows of the table."""
    for name, value in rows:
        print(f"{name:<26}{value}", flush=True)
