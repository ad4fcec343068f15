"""Plots of scores, as PNG files and as arrays."""

import io

import numpy as np
from etils import epath
from PIL import Image

from flair_jax.data.nomenclature import Nomenclature
from flair_jax.runtime.atomic_io import atomic_write


def plot_confusion_matrix(
    confusion: np.ndarray, nomenclature: Nomenclature, path: epath.Path
) -> None:
    """Draws the confusion matrix, each row divided by its sum, as in the published figure.

    Args:
        confusion: (classes, classes) counts, rows are the truth.
        nomenclature: the classes' names.
        path: a .png file.
    """
    atomic_write(path, _confusion_png(confusion, nomenclature, dpi=120))


def confusion_image(confusion: np.ndarray, nomenclature: Nomenclature) -> np.ndarray:
    """What `plot_confusion_matrix` draws, smaller, as (H, W, 3) uint8."""
    png = _confusion_png(confusion, nomenclature, dpi=80)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _confusion_png(confusion: np.ndarray, nomenclature: Nomenclature, dpi: int) -> bytes:
    from matplotlib.figure import Figure

    rows = confusion.sum(1, keepdims=True)
    shares = np.divide(confusion, rows, out=np.zeros(confusion.shape), where=rows > 0)
    n = len(nomenclature)
    figure = Figure(figsize=(2 + 0.62 * n, 1.6 + 0.58 * n), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=1)
    axes.set_xticks(range(n), nomenclature.names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(n), nomenclature.names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title("Confusion matrix, rows in shares of the true class")
    for (row, column), share in np.ndenumerate(shares):
        if rows[row]:
            colour = "black" if share > 0.6 else "white"
            axes.text(
                column, row, f"{share:.2f}", ha="center", va="center", color=colour, fontsize=8
            )
    figure.colorbar(image, ax=axes, fraction=0.04)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, bbox_inches="tight")
    return file.getvalue()
