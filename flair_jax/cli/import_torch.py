"""flair-jax import-torch: PyTorch weights -> a checkpoint."""

import argparse

from flair_jax.cli.parser import one_of
from flair_jax.data.bands import BANDS

EXAMPLES = (
    "flair-jax import-torch --out=runs/flair_inc \\\n"
    "      --weights=FLAIR-INC_rgbie_15cl_resnet34-unet_weights.pth",
    "flair-jax import-torch --weights=mine.safetensors --out=runs/mine \\\n"
    "      --bands=red,green,blue --nomenclature=baseline --normalization=scaling",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Defines the flags."""
    add = parser.add_argument
    add(
        "--weights",
        required=True,
        metavar="FILE",
        help="of a segmentation-models-pytorch U-Net with a ResNet34 encoder, FLAIR-INC's or "
        "FLAIR-HUB's among them: .safetensors, .pth, .ckpt or hf://...",
    )
    add("--out", required=True, metavar="DIR", help="folder to make")
    add(
        "--bands",
        metavar="NAMES",
        help=f"in the weights' order, from {','.join(BANDS)}",
    )
    add("--nomenclature", metavar="NAME", help="baseline or full or cosia")
    add(
        "--normalization", type=one_of("scaling", "custom"), metavar="NAME",
        help="scaling (pixels / 255) or custom (by means and standard deviations)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Converts the weights and prints the model's spec; returns the exit status."""
    from flair_jax.interop.import_torch import import_weights

    spec = import_weights(
        args.weights, args.out, bands=tuple(args.bands.split(",")) if args.bands else None,
        nomenclature=args.nomenclature, normalization=args.normalization,
    )  # fmt: skip
    enabled = [c.name for c in spec.nomenclature.classes if c.weight]
    print(f"written to {args.out}/checkpoints")
    print(f"  bands          {', '.join(spec.bands)}")
    print(f"  nomenclature   {spec.nomenclature.name}")
    print(f"  classes        {len(spec.nomenclature)} outputs, {len(enabled)} enabled")
    print(f"  normalization  {spec.normalization}")
    print(f"  metadata       {spec.metadata_encoding or 'none'}")
    print("  first class    0 (mask values start at 1)")
    return 0
