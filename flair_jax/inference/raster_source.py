"""The raster of a detection: the mosaic of the inputs, resampled on request; what to report.

Some of its bands may come from other files, which are aligned to it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from flair_jax.errors import UserError
from flair_jax.inference import resampling
from flair_jax.inference.area_of_interest import Area
from flair_jax.inference.band_files import HEIGHT, BandFile
from flair_jax.inference.band_selection import UNSCALED, Scaling
from flair_jax.inference.georeference import Georeference
from flair_jax.inference.input_files import is_remote, with_sources
from flair_jax.inference.mosaic import Mosaic
from flair_jax.inference.pixel_grid import PixelGrid
from flair_jax.inference.raster_input import RasterInput
from flair_jax.inference.stacked_band import StackedBand

_FAR = 1.3  # ratio of ground sample distances from which a warning is printed
_OBLONG = 1.1  # ratio of a pixel's sides from which a warning is printed
_GROUPS = 4  # different selections of bands that are listed
_LONGEST = 2**31 - 1  # side of a raster for GDAL
_SPARSE = 0.5  # share of a mosaic that is covered, below which this is reported


class Source:
    """One raster of the model's bands, from one or several files.

    Args:
        paths: see `input_files.expand`.
        wanted: names of the model's bands.
        bands: see `Options.bands`.
        resolution: see `Options.resolution`.
        trained_at: ground sample distance in metres that the model was trained at; 0 if unknown.
        scaling: how other types than uint8 are scaled.
        files: the bands that are in files of their own, see `band_files`.
        in_steps: whether the model's heights are in FLAIR's steps of 0.2 m.

    Attributes:
        paths: the inputs.
        width, height: in pixels.
        georeference: where it lies.
        pixels: its pixel grid.
        area: the part that is wanted; None: all of it.
        remote: whether an input is read over a network.

    Raises:
        UserError: an input cannot be opened, or does not fit the model or the others.
    """

    def __init__(
        self,
        paths: Sequence[str],
        wanted: Sequence[str],
        bands: Sequence[int] = (),
        resolution: float = 0.0,
        trained_at: float = 0.0,
        scaling: Scaling = UNSCALED,
        files: Mapping[str, Sequence[BandFile]] | None = None,
        in_steps: bool = True,
    ) -> None:
        files = files or {}
        self.paths = list(paths)
        others = [file.path for of_band in files.values() for file in of_band]
        self.remote = any(map(is_remote, [*paths, *others]))
        self.area: Area | None = None
        self._own = [i for i, name in enumerate(wanted) if name not in files]
        self._bands, self._trained_at = len(wanted), trained_at
        self._wanted = tuple(wanted[i] for i in self._own)
        scaling.check(wanted)
        self._mosaic = Mosaic(paths, self._wanted, bands, scaling.of(self._own))
        self.width, self.height = self._mosaic.width, self._mosaic.height
        self.georeference = self._mosaic.georeference
        self._vertical: resampling.Axis | None = None
        self._horizontal: resampling.Axis | None = None
        if resolution:
            self._resample(resolution)
        factors = [axis.factor if axis else 1.0 for axis in (self._horizontal, self._vertical)]
        self.pixels = PixelGrid(
            self.name, self.georeference, self.width, self.height,
            (self._mosaic.width, self._mosaic.height), (factors[0], factors[1]),
        )  # fmt: skip
        of_heights = scaling
        if len(scaling.by_user) == 1:  # a range for all bands is meant for the image
            of_heights = dataclasses.replace(scaling, by_user=())
        self._stacked = {
            i: StackedBand(
                name,
                files[name],
                self.pixels,
                (of_heights if name == HEIGHT else scaling).of([i]),
                in_steps,
            )
            for i, name in enumerate(wanted)
            if name in files
        }

    def _resample(self, resolution: float) -> None:
        size = self.pixel_size
        if size is None:
            raise UserError(
                f"the ground sample distance of {self.name} is unknown, so --resolution cannot be "
                "used: omit it, or resize the raster with gdal_translate -outsize"
            )
        factors = resolution / size[0], resolution / size[1]
        sides = self.width / factors[0], self.height / factors[1]
        if max(sides) < 0.5 or max(sides) > _LONGEST:
            raise UserError(
                f"--resolution={resolution:g} would make {sides[0]:.2g} x {sides[1]:.2g} pixels of "
                f"{self.name}, whose ground sample distance is {size[0]:.3g} x {size[1]:.3g} m"
            )
        self._horizontal = resampling.Axis(self.width, factors[0])
        self._vertical = resampling.Axis(self.height, factors[1])
        self.width, self.height = self._horizontal.length, self._vertical.length
        self.georeference = self.georeference.resampled(*factors)

    @property
    def name(self) -> str:
        """The first file, and the number of others."""
        return _first_of(self.paths)

    @property
    def window(self) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the map in the raster: the area of interest, or all."""
        return self.area.window if self.area else (0, 0, self.height, self.width)

    @property
    def map_georeference(self) -> Georeference:
        """Of the map."""
        top, left, *_ = self.window
        return self.georeference.cropped(left, top) if self.area else self.georeference

    @property
    def pixel_size(self) -> tuple[float, float] | None:
        """Ground sample distance (x, y) at the centre in metres; None if unknown."""
        return self.georeference.pixel_size(self.width / 2, self.height / 2)

    @property
    def files(self) -> list[str]:
        """The local files that the pixels come from."""
        files = [file for item in self._mosaic.inputs for file in item.files]
        return with_sources(files + [f for band in self._stacked.values() for f in band.files])

    @property
    def bands(self) -> str:
        """Which bands feed the model's inputs, and how that was decided."""
        of_inputs = self._by_input(
            lambda item: self._mosaic.selections[item.layout].describe(self._wanted)
        )
        return "; ".join([of_inputs, *(band.description for band in self._stacked.values())])

    @property
    def validity(self) -> str:
        """Where the valid pixels are known from."""
        text = self._by_input(lambda item: item.validity(self._mosaic.selections[item.layout]))
        return text + "; where the other files have data too" * bool(self._stacked)

    def _by_input(self, describe: Callable[[RasterInput], str]) -> str:
        """A description of the inputs; if they differ, with the files that each applies to."""
        files: dict[str, list[str]] = {}
        for item in self._mosaic.inputs:
            files.setdefault(describe(item), []).append(item.path)
        if len(files) == 1:
            return next(iter(files))
        texts = [f"{text} in {_first_of(paths)}" for text, paths in files.items()]
        if len(texts) > _GROUPS:
            texts[_GROUPS:] = [f"and {len(texts) - _GROUPS} other ways"]
        return "; ".join(texts)

    def notes(self) -> list[str]:
        """What to report of the inputs beside their bands: decisions, and warnings."""
        notes = []
        for layout, selection in self._mosaic.selections.items():
            paths = [item.path for item in self._mosaic.inputs if item.layout == layout]
            notes += [f"{_first_of(paths)}: {note}" for note in selection.notes]
        for item in self._mosaic.inputs:
            if item.images > 1:
                notes.append(
                    f"note: {item.path} holds {item.images} images, and the first one is taken; "
                    "gdalinfo lists the names of the others"
                )
        if self._mosaic.covered < _SPARSE:
            share = f"{100 * self._mosaic.covered:.2g} %"
            notes.append(
                f"the raster is the box around all inputs, which cover at most {share} of it: the "
                "rest will be NoData, and is skipped"
            )
        for band in self._stacked.values():
            notes += band.notes
        notes += self.area.notes if self.area else ()
        return notes + self._scale_notes()

    def _scale_notes(self) -> list[str]:
        size, trained_at = self.pixel_size, self._trained_at
        if size is None:
            assumed = f" and assumed to be {trained_at:g} m, as the model was trained at"
            return [
                f"warning: the ground sample distance of {self.name} is unknown"
                + (assumed if trained_at else "")
            ]
        notes = []
        mean = math.sqrt(size[0] * size[1])
        if max(size) / min(size) > _OBLONG:
            advice = f"--resolution={trained_at or float(f'{min(size):.2g}'):g}"
            notes.append(
                f"warning: the pixels of {self.name} are oblong, {size[0]:.3g} x {size[1]:.3g} m "
                f"on the ground; models are trained on square ones: {advice} makes them so"
            )
        elif trained_at and not 1 / _FAR <= mean / trained_at <= _FAR:
            notes.append(
                f"warning: the ground sample distance of {self.name} is {mean:.2g} m, and the "
                f"model was trained at {trained_at:g} m: expect worse results than with "
                f"--resolution={trained_at:g}"
            )
        corners = np.array([[0, self.width, 0, self.width], [0, 0, self.height, self.height]])
        areas = self.georeference.pixel_area(*corners)
        if areas is not None and math.sqrt(areas.max() / areas.min()) > _FAR:
            notes.append(
                "warning: the ground sample distance varies by a factor of "
                f"{math.sqrt(areas.max() / areas.min()):.2g} over the raster: warp it to a "
                "coordinate system made for its region"
            )
        return notes

    def strip_bytes(self, rows: int) -> int:
        """Size of some rows of the inputs, if any is stored in strips, that is, in full rows."""
        striped = [i for i in self._mosaic.inputs if i.block_shape[1] == i.width]
        if not striped:
            return 0
        factor = self._vertical.factor if self._vertical else 1.0
        return int(rows * factor * self._mosaic.width * max(len(i.layout.dtypes) for i in striped))

    def is_empty(self, rows: np.ndarray, columns: np.ndarray) -> bool:
        """Whether no input reaches into some rows and columns, or none is wanted; see `read`."""
        top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
        if self.area and not self.area.touches(top, left, bottom, right):
            return True
        if self._vertical and self._horizontal:
            top, bottom = self._vertical.span(top, bottom)
            left, right = self._horizontal.span(left, right)
        return not self._mosaic.intersects(top, left, bottom, right)

    def read(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Reads the pixels of some rows and columns, which may be repeated and in any order.

        Args:
            rows, columns: int, indices of adjacent pixels of the raster.

        Returns:
            The image (rows, columns, bands) uint8, 0 where it is not valid, or None if no pixel is
            valid; and the valid pixels, (rows, columns) bool.

        Raises:
            UnreadableError: GDAL cannot read it.
        """
        top, left = int(rows.min()), int(columns.min())
        window = top, left, int(rows.max()) + 1 - top, int(columns.max()) + 1 - left
        if self._vertical and self._horizontal:
            image, valid = resampling.read_resampled(
                self._mosaic.read, self._vertical, self._horizontal, *window
            )
        else:
            image, valid = self._mosaic.read(*window)
        if image is not None and self._stacked:
            image, valid = self._with_stacked(image, valid, window)
        pixels = np.ix_(rows - top, columns - left)
        return (None if image is None else image[pixels]), valid[pixels]

    def _with_stacked(
        self, of_inputs: np.ndarray, valid: np.ndarray, window: tuple[int, int, int, int]
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """The image of a window with the bands that are in files of their own."""
        image = np.empty((*valid.shape, self._bands), np.uint8)
        image[:, :, self._own] = of_inputs
        for index, band in self._stacked.items():
            image[:, :, index], known = band.read(*window)
            valid = valid & known
            if not valid.any():
                return None, valid
        image[~valid] = 0
        return image, valid

    def inside(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray | None:
        """The pixels of some rows and columns that are wanted; None: all of them.

        Args:
            rows, columns: see `read`.
        """
        if self.area is None:
            return None
        top, left = int(rows.min()), int(columns.min())
        mask = self.area.mask(top, left, int(rows.max()) + 1, int(columns.max()) + 1)
        return mask[np.ix_(rows - top, columns - left)]


def _first_of(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return paths[0] + more
