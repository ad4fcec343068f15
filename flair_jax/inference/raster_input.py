"""One input raster of a detection: its grid, its bands for the model, its valid pixels.

Which pixels are valid is one mask for all bands, by GDAL's order of precedence: a mask (internal
or `.msk`), else an alpha band, wherever it is, else NoData, where all bands have that value.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import rasterio
from rasterio.enums import MaskFlags
from rasterio.windows import Window

from flair_jax.errors import UserError
from flair_jax.inference import percentiles
from flair_jax.inference.band_selection import (
    UNSCALED,
    BandLayout,
    BandSelection,
    Scaling,
    select_bands,
)
from flair_jax.inference.georeference import Georeference
from flair_jax.inference.input_files import open_raster, reading
from tfds_builder.bands import stretched

_SAMPLED_FILES = 16  # of one layout
_SAMPLES = 64  # windows over all of them
_WINDOW = 32  # side of a window

Open = Callable[[str], rasterio.DatasetReader]


@dataclasses.dataclass(frozen=True)
class RasterInput:
    """One input raster.

    Attributes:
        path: its name for GDAL.
        files: the files that belong to it.
        width, height: in pixels.
        georeference: where it lies.
        layout: its bands.
        mask: where its validity comes from: "mask", "nodata" or "" for neither; an alpha band of
            the selection precedes "nodata".
        nodata: its NoData value, for reports.
        block_shape: (rows, columns) of the blocks that it is stored in.
        images: number of images in the file, of which GDAL opens the first.
    """

    path: str
    files: tuple[str, ...]
    width: int
    height: int
    georeference: Georeference
    layout: BandLayout
    mask: str
    nodata: float | None
    block_shape: tuple[int, int]
    images: int = 1

    @classmethod
    def open(cls, path: str, flag: str = "--input") -> "RasterInput":
        """Reads all but the pixels.

        Args:
            path, flag: see `open_raster`.

        Raises:
            UserError: GDAL cannot open it.
        """
        with open_raster(path, flag) as raster:
            try:
                return cls(
                    path, tuple(raster.files), raster.width, raster.height,
                    Georeference.of(raster), BandLayout.of(raster), _mask(raster),
                    next((v for v in raster.nodatavals if v is not None), None),
                    raster.block_shapes[0], max(1, len(raster.subdatasets)),
                )  # fmt: skip
            except rasterio.errors.RasterioError as error:
                raise UserError(f"{path} cannot be read ({flag}): {error}") from error

    def validity(self, selection: BandSelection) -> str:
        """Where its valid pixels are known from, in words."""
        if self.mask == "mask":
            return "mask"
        if selection.alpha:
            return f"alpha band {selection.alpha}"
        return (
            f"NoData {self.nodata:g}"
            if self.mask == "nodata" and self.nodata is not None
            else ("NoData" if self.mask else "all pixels")
        )

    def read_valid(
        self, raster: rasterio.DatasetReader, selection: BandSelection, window: Window
    ) -> np.ndarray:
        """The valid pixels of a window, (H, W) bool."""
        valid = self._unmasked(raster, selection, (window.height, window.width), window)
        if any("float" in self.layout.dtypes[number - 1] for number in selection.numbers):
            valid &= np.isfinite(raster.read(list(selection.numbers), window=window)).all(0)
        return valid

    def _unmasked(
        self,
        raster: rasterio.DatasetReader,
        selection: BandSelection,
        shape: tuple[int, int],
        window: Window | None = None,
    ) -> np.ndarray:
        """(H, W) bool of a window, or of the whole raster, reduced to a shape."""
        if self.mask != "mask" and selection.alpha:
            return raster.read(selection.alpha, window=window, out_shape=shape) > 0
        if not self.mask:
            return np.ones(shape, bool)

        def any_of(numbers: Sequence[int]) -> np.ndarray:
            whole = len(numbers), *shape
            return raster.read_masks(list(numbers), window=window, out_shape=whole).any(0)

        valid = any_of(selection.numbers)
        others = [i for i in selection.data if i not in selection.numbers]
        if others and not valid.all():
            valid |= any_of(others)
        return valid

    def read_reduced(
        self, raster: rasterio.DatasetReader, selection: BandSelection, step: int
    ) -> np.ndarray:
        """Every `step`-th pixel of the whole raster in both directions, where it is valid.

        GDAL takes it from the overviews, if there are any.

        Returns:
            (bands, N) of the selected bands' type, finite.
        """
        shape = -(-self.height // step), -(-self.width // step)
        numbers = list(selection.numbers)
        with reading(self.path, Window(0, 0, self.width, self.height)):
            values = raster.read(numbers, out_shape=(len(numbers), *shape))
            valid = self._unmasked(raster, selection, shape)
        return values[:, valid & np.isfinite(values).all(0)]

    def read_image(
        self, raster: rasterio.DatasetReader, selection: BandSelection, window: Window
    ) -> np.ndarray:
        """The model's bands of a window, (H, W, bands) uint8."""
        image = raster.read(list(selection.numbers), window=window)
        if selection.stretch:
            image = stretched(image, selection.stretch, np.isfinite(image).all(0))
        return np.ascontiguousarray(np.moveaxis(image, 0, -1))


def _mask(raster: rasterio.DatasetReader) -> str:
    flags = [set(of_band) for of_band in raster.mask_flag_enums]
    if any(
        not of_band & {MaskFlags.all_valid, MaskFlags.alpha, MaskFlags.nodata} for of_band in flags
    ):
        return "mask"
    return "nodata" if any(MaskFlags.nodata in of_band for of_band in flags) else ""


def select_for_all(
    inputs: Sequence[RasterInput],
    wanted: Sequence[str],
    numbers: Sequence[int],
    open_: Open,
    scaling: Scaling = UNSCALED,
) -> dict[BandLayout, BandSelection]:
    """The bands for a model, for each layout of bands among some inputs.

    Args:
        inputs: the rasters.
        wanted, numbers: see `select_bands`.
        open_: opens a raster.
        scaling: see `select_bands`; its percentiles are those of all the rasters together.

    Raises:
        UserError: see `select_bands`.
    """
    groups: dict[BandLayout, list[RasterInput]] = {}
    for item in inputs:
        groups.setdefault(item.layout, []).append(item)

    def select(scaling: Scaling) -> dict[BandLayout, BandSelection]:
        return {
            layout: select_bands(
                members[0].path,
                layout,
                wanted,
                numbers,
                functools.partial(_sample, members, open_),
                scaling,
            )
            for layout, members in groups.items()
        }

    if not percentiles.has_percentiles(scaling.by_user):
        return select(scaling)
    scaling.check(wanted)
    selections = select(dataclasses.replace(scaling, by_user=((0.0, 1.0),)))  # for the bands
    step = percentiles.step_for(sum(item.width * item.height for item in inputs))
    parts = (item.read_reduced(open_(item.path), selections[item.layout], step) for item in inputs)
    name = inputs[0].path + (f" and {len(inputs) - 1} more" if len(inputs) > 1 else "")
    return select(percentiles.resolved(scaling, wanted, parts, step, name))


def _sample(members: Sequence[RasterInput], open_: Open, bands: Sequence[int]) -> np.ndarray:
    """(N, bands) of their type: pixels spread over some rasters."""
    chosen = np.unique(np.linspace(0, len(members) - 1, _SAMPLED_FILES).astype(int))
    each = int(np.ceil(np.sqrt(_SAMPLES / len(chosen))))
    samples = []
    for member in (members[i] for i in chosen):
        raster = open_(member.path)
        height, tops = _spread(member.height, each)
        width, lefts = _spread(member.width, each)
        for top in tops:
            for left in lefts:
                window = Window(left, top, width, height)
                with reading(member.path, window):
                    pixels = raster.read(list(bands), window=window)
                samples.append(pixels.reshape(len(bands), -1).T)
    return np.concatenate(samples)


def _spread(length: int, count: int) -> tuple[int, list[int]]:
    """The length of up to `count` windows along an axis, and where they begin."""
    size = min(_WINDOW, length)
    return size, np.linspace(0, length - size, min(count, -(-length // size))).astype(int).tolist()
