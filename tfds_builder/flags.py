"""The flags of the build, without the imports of its work, so that --help is quick."""

import argparse

SHARD_MB = 256.0
FORMATS = ("array_record", "tfrecord", "parquet", "riegeli")  # of TFDS


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Defines the flags, which are the arguments of `tfds_builder.build.build`."""
    parser.add_argument(
        "--source", required=True, help="folder of the download; zips need not be unpacked"
    )
    parser.add_argument("--data_dir", help="where data sets go (default: TFDS's own)")
    parser.add_argument("--config", help="published (default), d077, or a name for your lists")
    for split in ("train", "val", "test"):
        parser.add_argument(f"--{split}_csv", help=f"image and mask paths of {split}, as published")
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
