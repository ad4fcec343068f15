"""flair-jax detect: the land cover of rasters of any size."""

import argparse
import signal
import sys

from flair_jax.cli.parser import numbers, one_of, value_range
from flair_jax.runtime import huge_pages
from flair_jax.runtime.preemption import Preempted

EXAMPLES = (
    "flair-jax detect --checkpoint=runs/toy --input=ortho.tif --output=cover.tif",
    "flair-jax detect --checkpoint=runs/toy --input a.tif b.tif --output=ab.tif",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Defines the flags; all but the three paths are fields of `inference.options.Options`."""
    add = parser.add_argument
    add(
        "--checkpoint",
        required=True,
        metavar="DIR",
        help="a run's workdir, a folder of checkpoints, or the folder of one step",
    )
    add(
        "--input",
        required=True,
        action="extend",
        nargs="+",
        metavar="RASTER",
        help="what GDAL opens: a file, a URL; several, also separated by commas or as a quoted "
        "glob, are one mosaic",
    )
    add("--output", required=True, metavar="OUT.tif", help="the land-cover raster to write")
    add(
        "--bands",
        type=numbers,
        default=(),
        metavar="4,1,2",
        help="numbers of the raster's bands from 1, in the order of the model's",
    )
    add(
        "--stretch",
        type=value_range,
        nargs="+",
        default=(),
        metavar="MIN,MAX",
        help="the values that become 0 and 255, one for all of the model's bands or one for each; "
        "the model's own, if the raster is of the type that it was trained on",
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
        type=one_of("crop", "hann"),
        default="crop",
        metavar="NAME",
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
        metavar="0|1",
        help="value of the first class: 1 as in FLAIR's masks (the default), 0 as in predictions",
    )
    add(
        "--probabilities",
        action="store_true",
        help="write OUT_probabilities.tif too: one band per class, 255 for 1",
    )
    add(
        "--confidence",
        action="store_true",
        help="write OUT_confidence.tif too: probability of the class, margin, entropy; 255 for 1",
    )
    add(
        "--polygons", default="", metavar="NAME.gpkg",
        help="write polygons too, a GeoPackage in the folder of OUT.tif (extra `vector`)",
    )  # fmt: skip
    add(
        "--min_area", type=float, default=0.0, metavar="M2",
        help="minimum mapping unit of the polygons: smaller patches are merged into the neighbour "
        "with the longest border",
    )  # fmt: skip
    add("--min_area_raster", action="store_true", help="apply --min_area to OUT.tif as well")
    add(
        "--simplify", type=float, default=0.0, metavar="METRES",
        help="simplify the polygons (Visvalingam-Whyatt), without gaps and overlaps",
    )  # fmt: skip
    add(
        "--license", default="", metavar="ID",
        help="licence of the map, such as etalab-2.0, for tags and metadata",
    )  # fmt: skip
    add(
        "--acquired", default="", metavar="DATE[/DATE]",
        help="when the images were taken, such as 2021-06-30, for the STAC item",
    )  # fmt: skip
    add(
        "--engine", type=one_of("auto", "jax", "openvino", "onnxruntime"), default="auto",
        metavar="NAME",
        help="what computes the network: jax, or on a CPU openvino or onnxruntime (extra `cpu`); "
        "auto (the default): openvino on a CPU where it is installed",
    )  # fmt: skip
    add(
        "--precision", type=one_of("float32", "bfloat16"), default=argparse.SUPPRESS,
        metavar="TYPE",
        help="of the activations; the model's own, if not given",
    )  # fmt: skip
    add("--overwrite", action="store_true", help="replace what an earlier detection wrote")
    add("--resume", action="store_true", help="resume an interrupted detection, if there is one")
    add(
        "--adapt", action="store_true",
        help="re-estimate the batch statistics from the raster, without labels (AdaBN): for images "
        "unlike the training's",
    )  # fmt: skip
    add(
        "--ema", action=argparse.BooleanOptionalAction, default=None,
        help="use the exponential moving average of the weights (config.ema_decay), or not; by "
        "default what config.monitor watches",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Detects; returns the exit status."""
    huge_pages.use()
    options = vars(args)
    options["stretch"] = tuple(options["stretch"])
    checkpoint, inputs, output = (options.pop(name) for name in ("checkpoint", "input", "output"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from absl import logging

        from flair_jax import detect_raster
        from flair_jax.runtime import compilation_cache, console

        logging.set_verbosity(logging.ERROR)  # Orbax logs every restore
        compilation_cache.use("default")
        written = detect_raster(checkpoint, inputs, output, **options)
        console.log("written  " + "\n         ".join(map(str, written)))
    except Preempted as stop:
        print(stop, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what is finished is kept: --resume continues from there", file=sys.stderr)
        return 1
    return 0
