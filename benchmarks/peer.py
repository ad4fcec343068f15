"""A data loader that works like the reference's, to compare with (PyTorch, rasterio)."""

from collections.abc import Iterator

import albumentations
import numpy as np
import rasterio
import torch
from torch.utils.data import DataLoader, Dataset

CLASSES = 13


class Patches(Dataset):
    """Patches as the reference loads them: image, and mask with one channel per class.

    Args:
        pairs: paths of image and mask of each patch.
        augment: whether to apply random flips and rotations by 90 degrees, on the host.
    """

    def __init__(self, pairs: list[tuple[str, str]], augment: bool) -> None:
        self._pairs = pairs
        self._augment = albumentations.Compose(
            [
                albumentations.VerticalFlip(p=0.5),
                albumentations.HorizontalFlip(p=0.5),
                albumentations.RandomRotate90(p=0.5),
            ]
            if augment
            else []
        )

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image_path, mask_path = self._pairs[index]
        with rasterio.open(image_path) as raster:
            image = raster.read().swapaxes(0, 2).swapaxes(0, 1)
        with rasterio.open(mask_path) as raster:
            labels = raster.read()[0]
        labels[labels > CLASSES] = CLASSES
        mask = np.stack([labels == value for value in range(1, CLASSES + 1)], -1).astype("float32")
        made = self._augment(image=image, mask=mask)
        image = made["image"].swapaxes(0, 2).swapaxes(1, 2) / 255.0
        mask = made["mask"].swapaxes(0, 2).swapaxes(1, 2)
        return {
            "img": torch.as_tensor(np.ascontiguousarray(image), dtype=torch.float),
            "msk": torch.as_tensor(np.ascontiguousarray(mask), dtype=torch.float),
        }


def batches(
    pairs: list[tuple[str, str]], batch_size: int, augment: bool, workers: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of the patches in random order; the last incomplete batch is dropped."""
    return iter(
        DataLoader(
            Patches(pairs, augment), batch_size=batch_size, shuffle=True, num_workers=workers,
            drop_last=True,
        )
    )  # fmt: skip
