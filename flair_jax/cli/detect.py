"""flair-jax detect: the land cover of rasters of any size."""

import argparse
import functools
import signal
import sys

from flair_jax.cli.parser import numbers, one_of
from flair_jax.errors import UsageError
from flair_jax.runtime import huge_pages
from flair_jax.runtime.preemption import Preempted
from tfds_builder.flags import value_range

EXAMPLES = (
    "flair-jax detect --checkpoint=runs/toy --input=ortho.tif --output=cover.tif",
    "flair-jax detect --checkpoint=runs/toy --input=rgb.tif --nir=cir.tif:1 \\\n"
    "      --surface=dsm.tif --terrain=dtm.tif --aoi=town.gpkg --output=town.tif",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Defines the flags; all but the first four are fields of `inference.options.Options`."""
    add = parser.add_argument
    add(
        "--checkpoint",
        required=True,
        metavar="DIR",
        help="a run's workdir, a folder of checkpoints, or the folder of one step; or a published "
        "model: hf://organisation/repository, a folder with its files, or a file of weights",
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
    output = parser.add_mutually_exclusive_group(required=True).add_argument
    output("--output", default="", metavar="OUT.tif", help="the land-cover raster to write")
    output(
        "--output_dir", default="", metavar="DIR",
        help="instead: a map of each input by itself, DIR/NAME.tif; finished ones are kept, and a "
        "failure does not stop the others",
    )  # fmt: skip
    add(
        "--bands",
        type=numbers,
        default=(),
        metavar="4,1,2",
        help="numbers of the raster's bands from 1, in the order of the model's, without those of "
        "other files",
    )
    add(
        "--nir", default="", metavar="FILE[:N]",
        help="take the near infrared from (band N of) another file, of any resolution and system; "
        "NoData in it is NoData in the map",
    )  # fmt: skip
    add(
        "--height", default="", metavar="FILE[:N]",
        help="the same; floats are metres, bytes as in training",
    )  # fmt: skip
    add(
        "--surface", default="", metavar="FILE[:N]",
        help="with --terrain, in place of --height: altitudes in metres, whose difference is the "
        "height",
    )  # fmt: skip
    add("--terrain", default="", metavar="FILE[:N]", help="see --surface")
    add(
        "--stack", type=_band_file, action="extend", nargs="+", default=[], metavar="BAND=FILE[:N]",
        help="take any bands of the model from other files",
    )  # fmt: skip
    add(
        "--aoi", default="", metavar="FILE",
        help="polygons of a vector file, in any system: outside is NoData, and the map is cropped "
        "to their bounds (extra `vector`)",
    )  # fmt: skip
    add(
        "--bounds", type=_bounds, default=(), metavar="LEFT,BOTTOM,RIGHT,TOP",
        help="crop the map to these coordinates of the raster",
    )  # fmt: skip
    add(
        "--stretch",
        type=functools.partial(value_range, percentiles=True),
        nargs="+",
        default=(),
        metavar="MIN,MAX",
        help="the values that become 0 and 255, one range for all of the model's bands or one for "
        "each; p2,p98: percentiles of the band in the whole raster; not given: the model's own, if "
        "the raster is of the type that it was trained on",
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
        help="side of square tiles, a multiple of 32; by default those that compute the fewest "
        "pixels within --memory",
    )
    add(
        "--margin",
        type=int,
        default=-1,
        metavar="PIXELS",
        help="context between neighbouring tiles (128, a quarter of a small --tile)",
    )
    add(
        "--memory", type=float, default=0.0, metavar="GB",
        help="that the process, or on accelerators each device, may take with the tiles that are "
        "chosen (2, half of a device's)",
    )  # fmt: skip
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
        help="tiles at a time over all devices (one for each)",
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
    options["stack"] = _by_band(options["stack"])
    checkpoint, inputs, output, output_dir = (
        options.pop(name) for name in ("checkpoint", "input", "output", "output_dir")
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from absl import logging

        from flair_jax import detect_raster, detect_rasters
        from flair_jax.runtime import compilation_cache, console

        logging.set_verbosity(logging.ERROR)  # Orbax logs every restore
        compilation_cache.use("default")
        if output_dir:
            return int(bool(detect_rasters(checkpoint, inputs, output_dir, **options).failed))
        written = detect_raster(checkpoint, inputs, output, **options)
        console.log("written  " + "\n         ".join(map(str, written)))
    except Preempted as stop:
        print(stop, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what is finished is kept: --resume continues from there", file=sys.stderr)
        return 1
    return 0


def _band_file(text: str) -> tuple[str, str]:
    """An argparse type: BAND=FILE."""
    band, _, file = text.partition("=")
    if not band.strip() or not file.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not BAND=FILE or BAND=FILE:N")
    return band.strip(), file.strip()


def _by_band(pairs: list[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for band, file in pairs:
        if band in found:
            raise UsageError(f"--stack gives {band} twice: {found[band]} and {file}")
        found[band] = file
    return found


def _bounds(text: str) -> tuple[float, ...]:
    """An argparse type: four numbers."""
    try:
        left, bottom, right, top = map(float, text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not LEFT,BOTTOM,RIGHT,TOP") from error
    return left, bottom, right, top
