"""flair-jax synthetic: a small synthetic data set in FLAIR #1's file layout."""

import argparse
from pathlib import Path

from flair_jax.errors import UserError

EXAMPLES = (
    "flair-jax synthetic --out=/tmp/flair",
    "flair-jax synthetic --out=/tmp/flair --patch_size=512 --train=100 --seed=1",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Defines the flags."""
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    add("--patch_size", type=int, default=128, metavar="PIXELS", help="side of a patch (128)")
    for split, count in (("train", 192), ("val", 32), ("test", 48)):
        add(f"--{split}", type=int, default=count, metavar="N", help=f"{split} patches ({count})")
    add("--seed", type=int, default=0, metavar="N", help="of the patches (0)")


def run(args: argparse.Namespace) -> int:
    """Writes the data set; returns the exit status."""
    from flair_jax.data.synthetic import generate

    options = vars(args)
    out = options.pop("out")
    try:
        count = generate(out, **options)
    except OSError as error:
        raise UserError(f"--out={out} cannot be written ({error})") from error
    print(f"{count} patches written. Build the data set with")
    print(f"  flair-jax build --source={out} --data_dir=WHERE_TO")
    return 0
