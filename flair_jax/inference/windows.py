"""The land cover of a raster window by window, for those who write it themselves."""

import os
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Literal, TypeVar, overload

import numpy as np
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.windows import Window

from flair_jax.data.nomenclature import Nomenclature
from flair_jax.errors import UserError
from flair_jax.inference.geotiff import NODATA
from flair_jax.inference.input_files import expand, without_warnings
from flair_jax.inference.options import Options
from flair_jax.inference.predictor import Model, load_model
from flair_jax.inference.preparation import prepare
from flair_jax.inference.tile_rows import predicted_parts

Classes = tuple[Window, np.ma.MaskedArray]
WithProbabilities = tuple[Window, np.ma.MaskedArray, np.ma.MaskedArray]
T = TypeVar("T", Classes, WithProbabilities)
_OF_FILES = ("confidence", "overwrite", "resume")  # options that are of no use here


class Windows(Generic[T]):
    """The windows of a raster and their classes, computed as they are iterated over.

    Every iteration computes all of them anew.

    Attributes:
        height, width: of the map, in pixels.
        crs, transform: where it lies, as in rasterio.
        nomenclature: the classes in their order.
        first_class: the number of the first class.
    """

    def __init__(self, model: Model, paths: Sequence[str], options: Options) -> None:
        self._prepared = prepare(model.spec, paths, options)
        self._model = model
        source = self._prepared.source
        self._top, self._left, self.height, self.width = source.window
        georeference = source.map_georeference
        self.crs: CRS | None = georeference.crs
        self.transform: Affine = georeference.transform
        self.nomenclature: Nomenclature = model.spec.nomenclature
        self.first_class = options.first_class

    @property
    def profile(self) -> dict[str, Any]:
        """Arguments of `rasterio.open` for a GeoTIFF of the classes."""
        return {
            "driver": "GTiff", "dtype": "uint8", "count": 1, "height": self.height,
            "width": self.width, "crs": self.crs, "transform": self.transform, "nodata": NODATA,
            "tiled": True, "compress": "deflate",
        }  # fmt: skip

    def __iter__(self) -> Iterator[T]:
        """Computes the windows, in rows from the top, each from left to right."""
        prepared = self._prepared
        model, _ = prepared.adapted(self._model)
        predictor = prepared.predictor(model)
        parts = predicted_parts(
            prepared.source, prepared.grid, predictor, classes=len(self.nomenclature),
            batch_size=prepared.batch_size,
        )  # fmt: skip
        for top, left, results, valid in parts:
            yield from self._cropped(top, left, results, valid)

    def _cropped(
        self, top: int, left: int, results: dict[str, np.ndarray], valid: np.ndarray
    ) -> Iterator[Any]:
        """The part of a window of the raster that lies within the map, if any pixel is valid."""
        top, left = top - self._top, left - self._left
        rows = slice(max(-top, 0), min(self.height - top, valid.shape[0]))
        columns = slice(max(-left, 0), min(self.width - left, valid.shape[1]))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        masked = ~valid[rows, columns]
        if masked.all():
            return
        window = Window(
            left + columns.start, top + rows.start,
            columns.stop - columns.start, rows.stop - rows.start,
        )  # fmt: skip
        classes = results["classes"][rows, columns] + np.uint8(self.first_class)
        found: list[Any] = [window, _masked(classes, masked, NODATA)]
        if "probabilities" in results:
            values = results["probabilities"][rows, columns]
            found.append(_masked(values, np.broadcast_to(masked[..., None], values.shape), 0))
        yield tuple(found)


def _masked(values: np.ndarray, mask: np.ndarray, fill: int) -> np.ma.MaskedArray:
    return np.ma.MaskedArray(np.where(mask, np.uint8(fill), values), mask, fill_value=fill)


Inputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@overload
def predict_windows(
    model: str | os.PathLike[str] | Model,
    source: Inputs,
    *,
    probabilities: Literal[False] = False,
    **options: Any,
) -> Windows[Classes]: ...


@overload
def predict_windows(
    model: str | os.PathLike[str] | Model,
    source: Inputs,
    *,
    probabilities: Literal[True],
    **options: Any,
) -> Windows[WithProbabilities]: ...


def predict_windows(
    model: str | os.PathLike[str] | Model,
    source: Inputs,
    *,
    probabilities: bool = False,
    **options: Any,
) -> Windows[Any]:
    """Predicts the land cover of a raster window by window, and writes nothing.

    The windows do not overlap, and hold the same pixels as the map of `detect_raster`. Windows
    without a valid pixel are left out: what no window covers is NoData.

    Args:
        model: see `detect_raster`.
        source: rasters, see the inputs of `detect_raster`.
        probabilities: also yield the probabilities of all classes.
        options: the attributes of `Options`, by name, but those of files to write: `confidence`,
            `overwrite`, `resume`.

    Returns:
        An iterable of the window, a `rasterio.windows.Window` of the map; its class numbers, (H, W)
        uint8 from `first_class`, masked where there is no data, where the data is 255; and, if
        asked for, (H, W, classes) uint8 probabilities, 255 for 1, masked in the same way. Its
        attributes say how large the map is and where it lies, see `Windows`.

    Raises:
        UserError: an argument does not fit, or a file cannot be read.
    """
    for name in _OF_FILES:
        if name in options:
            raise UserError(f"predict_windows writes no files: leave out the option {name}")
    chosen = Options(**options, probabilities=probabilities)
    chosen.check()
    with without_warnings():
        if not isinstance(model, Model):
            model = load_model(model, ema=chosen.ema)
        return Windows(model, expand(source), chosen)
