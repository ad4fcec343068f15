"""The command: a raster -> a land-cover raster.

python -m flair_jax.detect --checkpoint=DIR --input=RASTER[,RASTER...] --output=OUT.tif
"""

import signal
import sys

from absl import app, flags, logging

from flair_jax.errors import UserError
from flair_jax.interruption import Interrupted

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run's workdir, a folder of checkpoints, or the folder of one step."
)
_INPUT = flags.DEFINE_multi_string(
    "input", [],
    "What GDAL opens: a file, a URL; several, by commas, a quoted glob or the flag again, are one "
    "mosaic.",
)  # fmt: skip
_OUTPUT = flags.DEFINE_string("output", None, "The land-cover raster to write, OUT.tif.")
_BANDS = flags.DEFINE_list(
    "bands", [], "Numbers of the raster's bands from 1, in the order of the model's: 4,1,2."
)
_RESOLUTION = flags.DEFINE_float(
    "resolution", 0.0, "Resample to pixels of this size in metres (bilinear); 0: as it is."
)
_TILE = flags.DEFINE_integer(
    "tile", 0, "Side of the tiles, a multiple of 32; 0: 1024, less for a small raster."
)
_MARGIN = flags.DEFINE_integer(
    "margin", -1, "Pixels of context at each side of a tile; -1: 128, a quarter of a small tile."
)
_BLEND = flags.DEFINE_enum(
    "blend", "crop", ["crop", "hann"],
    "crop: each tile without its margin; hann: weighted mean of overlapping tiles, no seams.",
)  # fmt: skip
_TTA = flags.DEFINE_bool("tta", False, "Average over the eight symmetries: takes 8 times as long.")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 0, "Tiles at a time over all devices; 0: one a CPU, four an accelerator."
)
_FIRST_CLASS = flags.DEFINE_integer(
    "first_class", 1, "Value of the first class: 1 as in FLAIR's masks, 0 as in predictions."
)
_PROBABILITIES = flags.DEFINE_bool(
    "probabilities", False, "Write OUT_probabilities.tif too, a band a class, 255 for 1."
)
_CONFIDENCE = flags.DEFINE_bool(
    "confidence", False, "Write OUT_confidence.tif too: margin and entropy, 255 for 1."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace what an earlier detection wrote.")
_RESUME = flags.DEFINE_bool(
    "resume", False, "Go on with an interrupted detection, if there is one."
)
_AVERAGE = flags.DEFINE_bool("average", False, "Use the moving average of the weights.")


def main(argv: list[str]) -> None:
    """Detects as the flags ask."""
    if len(argv) > 1:
        raise UserError(
            f"unexpected argument {argv[1]!r}: flags are written --name=value; quote a glob, so "
            "that the shell leaves it alone"
        )
    for flag in (_CHECKPOINT, _OUTPUT):
        if not flag.value:
            raise UserError(f"--{flag.name} is needed; --help shows all flags")
    try:
        bands = tuple(int(number) for number in _BANDS.value)
    except ValueError as error:
        raise UserError(
            f"--bands={','.join(_BANDS.value)} are not numbers of bands, such as 1,2,3"
        ) from error
    logging.set_verbosity(logging.ERROR)  # Orbax narrates every restore

    from flair_jax import compilation_cache, console, detect_raster

    compilation_cache.use("default")
    written = detect_raster(
        _CHECKPOINT.value,
        _INPUT.value,
        _OUTPUT.value,
        bands=bands,
        resolution=_RESOLUTION.value,
        tile=_TILE.value,
        margin=_MARGIN.value,
        blend=_BLEND.value,
        tta=_TTA.value,
        batch_size=_BATCH_SIZE.value,
        first_class=_FIRST_CLASS.value,
        probabilities=_PROBABILITIES.value,
        confidence=_CONFIDENCE.value,
        overwrite=_OVERWRITE.value,
        resume=_RESUME.value,
        averaged=_AVERAGE.value,
    )
    console.say("written  " + "\n         ".join(map(str, written)))


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(f"{error}\nPass --help to see the flags.") from error


def run() -> None:
    """Entry point of the command."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app.run(main, flags_parser=_parse_flags)
    except UserError as error:
        sys.exit(f"error: {error}")
    except Interrupted as stop:
        sys.exit(str(stop))
    except KeyboardInterrupt:
        sys.exit("stopped; what is finished is kept: --resume goes on from there")


if __name__ == "__main__":
    run()
