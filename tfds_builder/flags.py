"""The flags of the build, without the imports of its work, so that --help is quick."""

import argparse
import re

SHARD_MB = 256.0
OF_OWN = (
    "images", "masks", "pairs", "classes", "name", "patch_size", "overlap", "remainder", "bands",
    "stretch", "unlisted", "masks_by", "split_by", "block_size", "val_groups", "test_groups",
    "val_share", "test_share", "seed",
)  # fmt: skip
OF_HUB = ("split", "flair1_metadata")
OF_FLAIR = (
    "source", "config", "train_csv", "val_csv", "test_csv", "shuffle", "beam_runner",
    "beam_options",
)  # fmt: skip
_PERCENTILE = re.compile(r"p\d+(\.\d+)?")
Limit = float | str
FORMATS = ("array_record", "tfrecord", "parquet", "riegeli")  # of TFDS


def value_range(text: str, *, percentiles: bool = False) -> tuple[Limit, Limit]:
    """Returns the limits of a stretch: MIN,MAX, or percentiles such as p2,p98 where they are taken.

    An argparse type.
    """
    try:
        low, high = (
            limit if percentiles and _PERCENTILE.fullmatch(limit) else float(limit)
            for limit in (part.strip() for part in text.split(","))
        )
    except ValueError as error:
        more = " or p2,p98" * percentiles
        raise argparse.ArgumentTypeError(f"{text!r} is not a range such as 0,3000{more}") from error
    return low, high


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Defines the flags, which are the arguments of `tfds_builder.build.build`."""
    parser.add_argument("--source", help="folder of the download; zips need not be unpacked")
    parser.add_argument("--data_dir", help="where data sets go (default: TFDS's own)")
    parser.add_argument(
        "--config",
        help="FLAIR #1: published (default), d077, or a name for your lists; flair2: FLAIR #2's"
        " test split; hub: FLAIR-HUB",
    )
    for split in ("train", "val", "test"):
        parser.add_argument(f"--{split}_csv", help=f"list of the patches of {split}, as published")
    parser.add_argument("--num_workers", type=int, help="processes (default: one for each CPU)")
    parser.add_argument(
        "--on_error", choices=("fail", "skip"), default="fail",
        help="fail (default), or skip: leave faulty patches out and list them",
    )  # fmt: skip
    parser.add_argument(
        "--shard_mb", type=float, default=SHARD_MB, help=f"pixels in a shard ({SHARD_MB:g} MiB)"
    )
    parser.add_argument(
        "--shuffle", action="store_true", help="store patches in a random order, always the same"
    )
    parser.add_argument(
        "--file_format", choices=FORMATS, default=FORMATS[0],
        help="array_record (default) is what training reads",
    )  # fmt: skip
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a data set that is already built"
    )
    parser.add_argument("--beam_runner", help="a runner of Apache Beam, such as DirectRunner")
    parser.add_argument("--beam_options", help="key=value,... for the runner")
    hub = parser.add_argument_group("FLAIR-HUB, with --config=hub")
    hub.add_argument(
        "--split", choices=("hub", "flair1"),
        help="by FLAIR-HUB's lists (hub, the default); or FLAIR #1's own patches, split as there",
    )  # fmt: skip
    hub.add_argument(
        "--flair1_metadata", metavar="FILE", help="of FLAIR #1, for --split=flair1; JSON or zip"
    )
    own = parser.add_argument_group("your own images, in place of --source")
    own.add_argument(
        "--images", metavar="DIR", help="GeoTIFF, PNG or JPEG; several folders as 'a/*/images'"
    )
    own.add_argument("--masks", metavar="DIR", help="of the images' names, but for the suffix")
    own.add_argument(
        "--pairs", metavar="CSV", help="in place of both: columns image, mask, split, group, date"
    )
    own.add_argument(
        "--classes", metavar="CSV", help="columns value, name, colour, weight; ignore for a value"
    )
    own.add_argument("--name", help="of the data set; train with --config.data_config=NAME")
    own.add_argument("--patch_size", type=int, metavar="PIXELS", help="side of a patch (512)")
    own.add_argument("--overlap", type=int, metavar="PIXELS", help="of neighbouring patches (0)")
    own.add_argument(
        "--remainder", choices=("pad", "drop"),
        help="the rim of an image: padded and ignored (pad, the default), or left out",
    )  # fmt: skip
    own.add_argument(
        "--bands", metavar="A,B,...", help="names of the files' bands, in order; - leaves one out"
    )
    own.add_argument(
        "--stretch", nargs="+", type=value_range, metavar="MIN,MAX",
        help="values that become 0 and 255; one for all bands, or one for each",
    )  # fmt: skip
    own.add_argument(
        "--unlisted", choices=("error", "ignore"),
        help="mask values and colours that the classes do not list (error)",
    )  # fmt: skip
    own.add_argument(
        "--masks_by", choices=("auto", "values", "colours"),
        help="auto (default): by colours if the mask has a palette or three bands",
    )  # fmt: skip
    own.add_argument(
        "--split_by", metavar="NAME",
        help="what a group is: folder (default), blocks of the map, or a column of --pairs",
    )  # fmt: skip
    own.add_argument(
        "--block_size", type=float, metavar="SIDE", help="of a block, in map units (4 patches)"
    )
    own.add_argument("--val_groups", metavar="A,B,...", help="groups of val; what is left is train")
    own.add_argument("--test_groups", metavar="A,B,...", help="groups of test")
    own.add_argument(
        "--val_share", type=float, metavar="SHARE", help="of val, in groups drawn at random (0.15)"
    )
    own.add_argument(
        "--test_share", type=float, metavar="SHARE", help="of test, in the same way (0.15)"
    )
    own.add_argument("--seed", type=int, metavar="N", help="of the draw (0)")
