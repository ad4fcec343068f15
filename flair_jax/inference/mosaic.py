"""Mosaic of the input rasters on one pixel grid, read in windows.

Each pixel comes from one input, for all bands: the last one in the list that is valid there.
"""

import functools
import shlex
from collections.abc import Sequence

import numpy as np
from rasterio.windows import Window

from flair_jax.errors import UserError
from flair_jax.inference.band_selection import UNSCALED, Scaling
from flair_jax.inference.georeference import short_name
from flair_jax.inference.input_files import open_raster, reading
from flair_jax.inference.raster_input import RasterInput, select_for_all

_CLOSE = 0.05  # tolerance, in pixels, of a raster's offset from the pixel grid of the first one
_OPEN_FILES = 64
# A mosaic of so many pixels is refused if the inputs cover less than this share of it: just to
# write that there is no data would take hours, and nobody could use the file.
_LARGE, _SPARSE = 2**36, 0.01


class Mosaic:
    """The input rasters as one.

    Args:
        paths: of the inputs.
        wanted: names of the model's bands.
        numbers: the user's choice of bands, or empty.
        scaling: how other types than uint8 are scaled.

    Attributes:
        inputs: the rasters.
        selections: the bands for the model, for each layout of bands.
        width, height: in pixels.
        georeference: where it lies.
        covered: upper bound of the share of its pixels that lie within an input.

    Raises:
        UserError: an input cannot be opened, does not fit the model, or does not fit the others;
            the message names it.
    """

    def __init__(
        self,
        paths: Sequence[str],
        wanted: Sequence[str],
        numbers: Sequence[int],
        scaling: Scaling = UNSCALED,
    ) -> None:
        self.inputs = [RasterInput.open(path) for path in paths]
        # A dataset that is dropped from the cache is closed as nothing else refers to it.
        self._open = functools.lru_cache(_OPEN_FILES)(open_raster)
        self.selections = select_for_all(self.inputs, wanted, numbers, self._open, scaling)
        self._bands = len(wanted)
        first = self.inputs[0]
        self.georeference = first.georeference
        self.width, self.height, self.covered = first.width, first.height, 1.0
        self._flips = [(False, False)]
        self._boxes = np.array([[0, 0, first.width, first.height]])
        if len(self.inputs) > 1:
            self._place_all(first)

    def _place_all(self, first: RasterInput) -> None:
        """Puts all inputs on the pixel grid of the first one."""
        for item in self.inputs:
            _check_system(item, first)
        placements = [_place(item, first) for item in self.inputs]
        self._flips = [flips for _, flips in placements]
        boxes = np.array([box for box, _ in placements])
        left, top = boxes[:, :2].min(0).tolist()
        self.width, self.height = (boxes[:, 2:].max(0) - boxes[:, :2].min(0)).tolist()
        self._boxes = boxes - [left, top, left, top]
        self.georeference = first.georeference.cropped(left, top)
        pixels = sum(item.width * item.height for item in self.inputs)
        self.covered = min(pixels / (self.width * self.height), 1.0)
        self._check_extent()

    def intersects(self, top: int, left: int, bottom: int, right: int) -> bool:
        """Whether any input reaches into a window."""
        return bool(len(self._inputs_in(top, left, bottom, right)))

    def _inputs_in(self, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        boxes = self._boxes
        return np.flatnonzero(
            (boxes[:, 0] < right) & (boxes[:, 1] < bottom)
            & (boxes[:, 2] > left) & (boxes[:, 3] > top)
        )  # fmt: skip

    def read(
        self, top: int, left: int, height: int, width: int
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """Reads a window that lies within the mosaic.

        Returns:
            The image (height, width, bands) uint8, 0 where it is not valid, or None if no pixel is
            valid; and the valid pixels, (height, width) bool.

        Raises:
            UnreadableError: GDAL cannot read it.
        """
        image = None
        valid = np.zeros((height, width), bool)
        for index in reversed(self._inputs_in(top, left, top + height, left + width)):
            item = self.inputs[index]
            selection = self.selections[item.layout]
            rows, columns, window, turn = self._overlap(index, top, left, height, width)
            with reading(item.path, window):
                raster = self._open(item.path)
                new = item.read_valid(raster, selection, window)[turn] & ~valid[rows, columns]
                if not new.any():
                    continue
                part = item.read_image(raster, selection, window)[turn]
            if image is None:
                image = np.zeros((height, width, self._bands), np.uint8)
            if new.all():
                image[rows, columns] = part
            else:
                image[rows, columns][new] = part[new]
            valid[rows, columns] |= new
            if valid.all():
                break
        return image, valid

    def _overlap(
        self, index: int, top: int, left: int, height: int, width: int
    ) -> tuple[slice, slice, Window, tuple[slice, slice]]:
        """The part of a window that an input covers.

        Returns:
            Its rows and columns in the window, its window in the input, and how to flip what is
            read there.
        """
        box = self._boxes[index].tolist()
        begin_x, end_x = max(box[0], left), min(box[2], left + width)
        begin_y, end_y = max(box[1], top), min(box[3], top + height)
        flip_x, flip_y = self._flips[index]
        column = box[2] - end_x if flip_x else begin_x - box[0]
        row = box[3] - end_y if flip_y else begin_y - box[1]
        return (
            slice(begin_y - top, end_y - top),
            slice(begin_x - left, end_x - left),
            Window(column, row, end_x - begin_x, end_y - begin_y),
            np.s_[:: -1 if flip_y else 1, :: -1 if flip_x else 1],
        )

    def _check_extent(self) -> None:
        """Raises a UserError for inputs that are too far apart for one raster."""
        if self.covered > _SPARSE:
            return
        size = (
            f"their mosaic would have {self.width:,} x {self.height:,} pixels, of which they cover "
            f"{100 * self.covered:.1g} %"
        )
        centres = ((self._boxes[:, :2] + self._boxes[:, 2:]) / 2).T
        degrees = self.georeference.degrees(*centres)
        if degrees is not None and np.diff(np.sort(degrees[0])).max() > 180:
            east, west = (
                self.inputs[int(i)].path for i in (degrees[0].argmin(), degrees[0].argmax())
            )
            zone = f"EPSG:{32660 if degrees[1].mean() >= 0 else 32760}"
            raise UserError(
                f"{west} lies west and {east} east of the antimeridian, a full turn apart in "
                f"{short_name(self.georeference.crs)}: {size}. Detect on each side by itself, or "
                f"warp all inputs to one system that spans the antimeridian, such as\n  gdalwarp "
                f"-t_srs {zone} -r bilinear {shlex.quote(east)} warped.tif"
            )
        if self.width * self.height > _LARGE:
            farthest = int(np.hypot(*(centres - centres[:, :1])).argmax())
            raise UserError(
                f"{self.inputs[0].path} and {self.inputs[farthest].path} lie too far apart for one "
                f"raster: {size}. Run detect on each of these areas on its own"
            )


def _check_system(item: RasterInput, first: RasterInput) -> None:
    """Raises a UserError for an input that cannot be mosaicked, or is in another CRS."""
    georeference, crs = item.georeference, first.georeference.crs
    quoted = shlex.quote(item.path)
    if georeference.gcps or (georeference.rpcs is not None and not georeference.has_transform):
        flag = "" if georeference.gcps else "-rpc -t_srs EPSG:CODE "
        raise UserError(
            f"{item.path} has {georeference.description} instead of a geotransform and cannot be "
            f"mosaicked: detect on it alone, or warp it first, such as\n  gdalwarp {flag}-r "
            f"bilinear {quoted} warped.tif"
        )
    if not georeference.has_transform or not georeference.is_invertible:
        raise UserError(
            f"{item.path} is not georeferenced and cannot be mosaicked: detect on it alone, or "
            "georeference it first"
        )
    if georeference.crs != crs:
        to = f"gdalwarp -t_srs {shlex.quote(short_name(crs))} -r bilinear {quoted} warped.tif"
        raise UserError(
            f"{item.path} is in {short_name(georeference.crs)}, {first.path} in {short_name(crs)}: "
            + (
                "give all the same one"
                if None in (crs, georeference.crs)
                else f"warp it, such as\n  {to}"
            )
        )


def _place(item: RasterInput, first: RasterInput) -> tuple[list[int], tuple[bool, bool]]:
    """The box (left, top, right, bottom) of an input on the grid of the first; its flips in x, y.

    Raises:
        UserError: it has another grid.
    """
    transform, width, height = item.georeference.transform, item.width, item.height
    corners = np.array([(0, 0), (width, 0), (0, height)], float)
    origin, right, down = np.transpose((~first.georeference.transform @ transform) @ corners.T)
    flips = bool(right[0] < origin[0]), bool(down[1] < origin[1])
    sides = np.array([(-width if flips[0] else width, 0), (0, -height if flips[1] else height)])
    advice = "resample to one grid with gdalwarp -tap -tr XSIZE YSIZE, or detect on each by itself"
    if np.abs(np.stack([right, down]) - origin - sides).max() > _CLOSE:
        raise UserError(
            f"{item.path} has another pixel size or orientation than {first.path} ({_pixel(item)} "
            f"instead of {_pixel(first)}): {advice}"
        )
    corner = np.minimum(origin, origin + sides.sum(0))
    nearest = np.rint(corner)
    off = np.abs(corner - nearest).max()
    if off > _CLOSE:
        raise UserError(
            f"{item.path} is not aligned with the pixel grid of {first.path}, but {off:.2f} pixels "
            f"off: {advice}"
        )
    left, top = nearest.astype(int).tolist()
    return [left, top, left + width, top + height], flips


def _pixel(item: RasterInput) -> str:
    t = item.georeference.transform
    angle = np.degrees(np.arctan2(t.d, t.a))
    size = f"{np.hypot(t.a, t.d):.10g} x {np.hypot(t.b, t.e):.10g}"
    return size + (f" turned by {angle:.3g} degrees" if abs(angle) > 1e-6 else "")
