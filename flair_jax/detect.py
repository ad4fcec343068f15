"""A raster -> a land-cover raster: the command.

python -m flair_jax.detect --checkpoint=DIR --input=RASTER [--input=RASTER...] --output=OUT.tif
"""

import argparse
import signal
import sys
from collections.abc import Sequence

from absl import logging

from flair_jax.errors import UserError
from flair_jax.runtime import huge_pages
from flair_jax.runtime.preemption import Preempted


def parser() -> argparse.ArgumentParser:
    """The flags; each that is not of the three paths is one of `detection.options.Options`."""
    made = argparse.ArgumentParser(
        description="Predicts the land cover of a raster of any size, and writes it as a raster.",
        allow_abbrev=False,
    )
    add = made.add_argument
    add(
        "--checkpoint",
        required=True,
        metavar="DIR",
        help="a run's workdir, a folder of checkpoints, or the folder of one step",
    )
    add(
        "--input",
        required=True,
        action="append",
        nargs="+",
        metavar="RASTER",
        help="what GDAL opens: a file, a URL; several, also by commas, as a quoted glob or by the "
        "flag again, are one mosaic",
    )
    add("--output", required=True, metavar="OUT.tif", help="the land-cover raster to write")
    add(
        "--bands",
        type=_numbers,
        default=(),
        metavar="4,1,2",
        help="numbers of the raster's bands from 1, in the order of the model's",
    )
    add(
        "--resolution",
        type=float,
        default=0.0,
        metavar="METRES",
        help="resample to pixels of this size (bilinear); as it is, if not given",
    )
    add(
        "--tile",
        type=int,
        default=0,
        metavar="PIXELS",
        help="side of the tiles, a multiple of 32 (1024, less for a small raster)",
    )
    add(
        "--margin",
        type=int,
        default=-1,
        metavar="PIXELS",
        help="context at each side of a tile (128, a quarter of a small tile)",
    )
    add(
        "--blend",
        choices=("crop", "hann"),
        default="crop",
        help="crop: each tile without its margin (the default); hann: the weighted mean of "
        "overlapping tiles, without seams",
    )
    add(
        "--tta",
        action="store_true",
        help="average over the eight symmetries of the square: takes eight times as long",
    )
    add(
        "--batch_size",
        type=int,
        default=0,
        metavar="TILES",
        help="tiles at a time over all devices (one a CPU, four an accelerator)",
    )
    add(
        "--first_class",
        type=int,
        choices=(0, 1),
        default=1,
        help="value of the first class: 1 as in FLAIR's masks (the default), 0 as in predictions",
    )
    add(
        "--probabilities",
        action="store_true",
        help="write OUT_probabilities.tif too, a band a class, 255 for 1",
    )
    add(
        "--confidence",
        action="store_true",
        help="write OUT_confidence.tif too: margin and entropy, 255 for 1",
    )
    add("--overwrite", action="store_true", help="replace what an earlier detection wrote")
    add(
        "--resume", action="store_true", help="go on with an interrupted detection, if there is one"
    )
    add(
        "--ema",
        action="store_true",
        dest="ema",
        help="use the moving average of the weights",
    )
    return made  # fmt: skip


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} are not numbers of bands, such as 1,2,3"
        ) from error


def main(argv: Sequence[str] | None = None) -> None:
    """Detects as the command line asks."""
    options = vars(parser().parse_args(argv))
    checkpoint, output = options.pop("checkpoint"), options.pop("output")
    inputs = [path for paths in options.pop("input") for path in paths]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.set_verbosity(logging.ERROR)  # Orbax narrates every restore
    try:
        from flair_jax import detect_raster
        from flair_jax.runtime import compilation_cache, console

        compilation_cache.use("default")
        written = detect_raster(checkpoint, inputs, output, **options)
        console.log("written  " + "\n         ".join(map(str, written)))
    except UserError as error:
        sys.exit(f"error: {error}")
    except Preempted as stop:
        sys.exit(str(stop))
    except KeyboardInterrupt:
        sys.exit("stopped; what is finished is kept: --resume goes on from there")


if __name__ == "__main__":
    huge_pages.use("flair_jax.detect")
    main()
