"""flair-jax export: a model -> PyTorch weights, ONNX, StableHLO, a folder for a hub."""

import argparse

from flair_jax.cli.parser import one_of

EXAMPLES = (
    "flair-jax export --checkpoint=runs/baseline --format=onnx --output=unet.onnx",
    "flair-jax export --checkpoint=runs/baseline --format=hub --output=unet_hub",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Defines the flags."""
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="what detect takes")
    add(
        "--format", required=True, type=one_of("torch", "onnx", "stablehlo", "hub"), metavar="NAME",
        help="torch: weights of segmentation-models-pytorch's U-Net; onnx: for ONNX Runtime, "
        "OpenVINO, QGIS (extra `export`); stablehlo: for JAX without this package; "
        "hub: a folder for the Hugging Face hub",
    )  # fmt: skip
    add(
        "--output", required=True, metavar="PATH",
        help="to write: .safetensors, or (with PyTorch) .pth or .pt; .onnx; a folder",
    )  # fmt: skip
    add(
        "--license", default="", metavar="ID",
        help="of --format=hub: the SPDX identifier of the licence that you publish the model "
        "under, such as Apache-2.0 or etalab-2.0; the card states none, if not given",
    )  # fmt: skip
    add(
        "--ema", action=argparse.BooleanOptionalAction, default=None,
        help="the exponential moving average of the weights, or not; by default what "
        "config.monitor watched",
    )  # fmt: skip
    onnx = parser.add_argument_group("of --format=onnx").add_argument
    onnx(
        "--input", type=one_of("uint8", "float32"), default="uint8", metavar="TYPE",
        help="uint8 (the default), normalised in the graph; or float32, normalised before",
    )  # fmt: skip
    onnx(
        "--result", type=one_of("logits", "probabilities", "classes"), default="logits",
        metavar="NAME", help="logits (the default) or probabilities of all classes; or classes: "
        "uint8 numbers from 0",
    )  # fmt: skip
    onnx(
        "--deepness", action="store_true",
        help="for the QGIS plug-in Deepness: float32, probabilities, its metadata",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Exports the checkpoint; returns the exit status."""
    from flair_jax.interop.export import export

    path = export(
        args.checkpoint, args.output, args.format, ema=args.ema, input=args.input,
        result=args.result, deepness=args.deepness, license=args.license,
    )  # fmt: skip
    print(f"written: {path}")
    return 0
