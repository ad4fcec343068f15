"""Detection of a raster as in the reference (rasterio, and PyTorch or another engine), to compare.

    python benchmarks/peer_detection.py --weights=FILE.safetensors --input=IN.tif --output=OUT.tif
    python benchmarks/peer_detection.py --weights=FILE.onnx --engine=openvino ...

Square tiles of a regular grid are read window by window, padded with zeros outside the raster, and
passed in small float32 batches to segmentation-models-pytorch's U-Net, or to OpenVINO or ONNX
Runtime with its ONNX file (`flair-jax export --format=onnx --input=float32`). The class of highest
probability is written to a GeoTIFF, without the margins of the tile. Classes start at 0.
"""

import argparse
from collections.abc import Callable, Iterator

import numpy as np
import rasterio
from rasterio.windows import Window

CLASSES = 13


Network = Callable[[np.ndarray], np.ndarray]  # (N, 5, H, W) float32 -> logits (N, classes, H, W)


def batches(
    path: str, tile: int, margin: int, batch_size: int
) -> Iterator[tuple[list[tuple[int, int]], np.ndarray]]:
    """Positions (row, column) of tiles without their margins, and their pixels as float32."""
    with rasterio.open(path) as raster:
        height, width = raster.shape
        step = tile - 2 * margin
        positions = [(y, x) for y in range(0, height, step) for x in range(0, width, step)]
        for begin in range(0, len(positions), batch_size):
            part = positions[begin : begin + batch_size]
            windows = [Window(x - margin, y - margin, tile, tile) for y, x in part]
            images = [raster.read(window=w, boundless=True, fill_value=0) for w in windows]
            yield part, np.stack(images).astype(np.float32) / 255


def in_torch(weights: str, bands: int, channels_last: bool, bfloat16: bool) -> Network:
    import segmentation_models_pytorch as smp
    import torch
    from safetensors.torch import load_file

    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = smp.create_model(
        "unet", "resnet34", encoder_weights=None, in_channels=bands, classes=CLASSES
    )
    model.load_state_dict(load_file(weights), strict=True)
    model = model.eval().to(memory_format=layout)

    def network(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = model(torch.from_numpy(images).to(memory_format=layout))
        return torch.softmax(logits.float(), 1).numpy()

    return network


def in_openvino(weights: str, bfloat16: bool) -> Network:
    import openvino

    model = openvino.Core().compile_model(
        weights, "CPU", {"INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32"}
    )
    return lambda images: model(images)[0]


def in_onnx_runtime(weights: str) -> Network:
    import onnxruntime

    session = onnxruntime.InferenceSession(weights, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"image": images})[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True)
    parser.add_argument("--input", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--margin", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--engine", default="torch", choices=["torch", "openvino", "onnxruntime"])
    parser.add_argument("--channels_last", action="store_true", help="of PyTorch")
    parser.add_argument("--bfloat16", action="store_true", help="of PyTorch and OpenVINO")
    args = parser.parse_args()
    with rasterio.open(args.input) as raster:
        profile = raster.profile | {"count": 1, "compress": "lzw", "interleave": "band"}
        bands, height, width = raster.count, raster.height, raster.width
    if args.engine == "torch":
        network = in_torch(args.weights, bands, args.channels_last, args.bfloat16)
    elif args.engine == "openvino":
        network = in_openvino(args.weights, args.bfloat16)
    else:
        network = in_onnx_runtime(args.weights)
    inside = np.s_[args.margin : args.tile - args.margin]
    tiles = batches(args.input, args.tile, args.margin, args.batch_size)
    with rasterio.open(args.output, "w", **profile) as out:
        for positions, images in tiles:
            classes = network(images).argmax(1).astype(np.uint8)
            for (y, x), labels in zip(positions, classes, strict=True):
                core = labels[inside, inside][: height - y, : width - x]
                out.write(core, 1, window=Window(x, y, core.shape[1], core.shape[0]))


if __name__ == "__main__":
    main()
