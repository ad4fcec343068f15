"""Fills the invalid pixels of a tile before the network sees it.

A value such as 0 would be taken for an object (black is water) and change the classes of the valid
pixels beside it.
"""

import numpy as np
from scipy import ndimage


def fill_invalid(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Mirrors the valid part of a tile into its invalid part.

    An invalid pixel gets the value of its mirror image at the nearest valid pixel, or of that
    pixel itself if the mirror image is not valid or outside the tile.

    Args:
        image: (H, W, bands).
        valid: (H, W) bool, at least one of them true.

    Returns:
        (H, W, bands); the same array if all pixels are valid.
    """
    if valid.all():
        return image
    rows, columns = np.nonzero(~valid)
    nearest = ndimage.distance_transform_edt(~valid, return_distances=False, return_indices=True)
    nearest_row, nearest_column = nearest[:, rows, columns]
    row, column = 2 * nearest_row - rows, 2 * nearest_column - columns
    height, width = valid.shape
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    row, column = np.where(inside, row, nearest_row), np.where(inside, column, nearest_column)
    mirrored = valid[row, column]
    row = np.where(mirrored, row, nearest_row)
    column = np.where(mirrored, column, nearest_column)
    filled = image.copy()
    filled[rows, columns] = image[row, column]
    return filled
