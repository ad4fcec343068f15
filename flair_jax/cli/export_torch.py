"""flair-jax export-torch: a checkpoint -> PyTorch weights."""

import argparse

EXAMPLES = (
    "flair-jax export-torch --checkpoint=runs/baseline --out=baseline.safetensors",
    "flair-jax export-torch --checkpoint=runs/baseline --out=baseline.pth",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Defines the flags."""
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="a workdir or a folder of checkpoints")
    add(
        "--out", required=True, metavar="FILE",
        help="to write: .safetensors, or (with PyTorch) .pth or .pt",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Converts the checkpoint; returns the exit status."""
    from flair_jax.interop.export_torch import export_weights

    count = export_weights(args.checkpoint, args.out)
    print(f"{count} tensors in {args.out}")
    return 0
