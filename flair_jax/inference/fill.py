"""Fills the invalid pixels of a tile before the network sees it.

A constant such as 0 would look like an object (black like water) and change the classes of the
valid pixels beside it. Mirroring the valid part, or smoothing, is no better than the nearest pixel.
"""

import numpy as np


def fill_invalid(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Gives the invalid pixels of a tile the values of the nearest valid one.

    Args:
        image: (H, W, bands).
        valid: (H, W) bool, at least one of them true.

    Returns:
        (H, W, bands); the same array if all pixels are valid.
    """
    if valid.all():
        return image
    from scipy import ndimage  # here, since most rasters do not need what takes long to import

    rows, columns = np.nonzero(~valid)
    nearest = ndimage.distance_transform_edt(~valid, return_distances=False, return_indices=True)
    filled = image.copy()
    filled[rows, columns] = image[tuple(nearest[:, rows, columns])]
    return filled
