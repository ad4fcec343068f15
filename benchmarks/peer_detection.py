"""Detection of a raster as in the reference (PyTorch, rasterio), to compare with.

    python benchmarks/peer_detection.py --weights=FILE.safetensors --input=IN.tif --output=OUT.tif

Square tiles of a regular grid are read window by window, padded with zeros outside the raster, and
passed in small float32 batches to segmentation-models-pytorch's U-Net. The class of highest
probability is written to a GeoTIFF, without the margins of the tile. Classes start at 0.
"""

import argparse

import numpy as np
import rasterio
import segmentation_models_pytorch as smp
import torch
from rasterio.windows import Window
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

CLASSES = 13


class Tiles(Dataset):
    """The tiles of a raster: their position (row, column) and their pixels.

    Args:
        path: the raster.
        tile: side of a tile in pixels.
        margin: pixels at each side of a tile that only give context.
    """

    def __init__(self, path: str, tile: int, margin: int) -> None:
        self._raster = rasterio.open(path)
        self._tile, self._margin = tile, margin
        height, width = self._raster.shape
        step = tile - 2 * margin
        self._positions = [(y, x) for y in range(0, height, step) for x in range(0, width, step)]

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        y, x = self._positions[index]
        window = Window(x - self._margin, y - self._margin, self._tile, self._tile)
        image = self._raster.read(window=window, boundless=True, fill_value=0)
        pixels = torch.as_tensor(image / 255.0, dtype=torch.float)
        return {"image": pixels, "position": torch.tensor([y, x])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True)
    parser.add_argument("--input", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--margin", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--workers", type=int, default=0, help="processes that read tiles")
    parser.add_argument("--channels_last", action="store_true")
    args = parser.parse_args()
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    with rasterio.open(args.input) as raster:
        profile = raster.profile | {"count": 1, "compress": "lzw", "interleave": "band"}
        bands, height, width = raster.count, raster.height, raster.width
    model = smp.create_model(
        "unet", "resnet34", encoder_weights=None, in_channels=bands, classes=CLASSES
    )
    model.load_state_dict(load_file(args.weights), strict=True)
    model = model.eval().to(memory_format=layout)
    loader = DataLoader(
        Tiles(args.input, args.tile, args.margin), args.batch_size, num_workers=args.workers
    )
    inside = np.s_[args.margin : args.tile - args.margin]
    with rasterio.open(args.output, "w", **profile) as out, torch.inference_mode():
        for batch in loader:
            probabilities = torch.softmax(model(batch["image"].to(memory_format=layout)), 1)
            classes = torch.argmax(probabilities, 1).numpy().astype(np.uint8)
            for (y, x), labels in zip(batch["position"].tolist(), classes, strict=True):
                core = labels[inside, inside][: height - y, : width - x]
                out.write(core, 1, window=Window(x, y, core.shape[1], core.shape[0]))


if __name__ == "__main__":
    main()
