"""A band of the model from a file of its own, as the model's uint8; heights from metres."""

import functools
from collections.abc import Sequence

import numpy as np

from flair_jax.errors import UserError
from flair_jax.inference import percentiles
from flair_jax.inference.band_files import HEIGHT, BandFile
from flair_jax.inference.band_selection import BandSelection, Scaling
from flair_jax.inference.input_files import open_raster
from flair_jax.inference.pixel_grid import PixelGrid
from flair_jax.inference.raster_input import RasterInput, select_for_all
from flair_jax.inference.warped_band import WarpedBand
from flair_jax.models.spec import stretch_text
from tfds_builder import bands
from tfds_builder.hub.reference import STEPS_PER_METRE

_STEPS = (0.0, 255 / STEPS_PER_METRE)  # metres that become 0 and 255
_PLAUSIBLE = -1000.0, 9000.0  # metres; what is beyond is no height, but stands for none
_SAMPLE = 2**16  # pixels of a file of heights that are looked at
_WINDOWS, _WINDOW = 6, 32  # of the aligned heights that are looked at, along each axis; side


class StackedBand:
    """A band of the model from one file, or a height from two: surface less terrain.

    Args:
        name: of the band.
        files: one, or surface and terrain.
        target: the grid to align it to.
        scaling: of this band.
        in_steps: whether the model's heights are in FLAIR's steps of 0.2 m.

    Attributes:
        files: the local files that it is read from.
        description: which band of which file it is, and how it is scaled.
        notes: what to report beside.

    Raises:
        UserError: a file cannot be opened, or does not fit the model or the grid.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[BandFile],
        target: PixelGrid,
        scaling: Scaling,
        in_steps: bool,
    ) -> None:
        self.notes: list[str] = []
        items = [RasterInput.open(file.path, file.flag) for file in files]
        numbers = [_number(name, *pair) for pair in zip(files, items, strict=True)]
        types = [item.layout.dtypes[n - 1] for item, n in zip(items, numbers, strict=True)]
        metric = name == HEIGHT and all(dtype.startswith("float") for dtype in types)
        if len(files) > 1 and not metric:
            raise UserError(
                f"--surface={files[0].path} and --terrain={files[1].path} hold "
                f"{' and '.join(types)}: expected metres as float32 or float64, such as by "
                "gdal_translate -ot Float32"
            )
        limits, how = _limits(name, files, types, metric, scaling, in_steps)
        # Of metres, the limits are known; the placeholder has the bands selected all the same.
        for_file = Scaling(by_user=(limits,)) if limits else scaling
        selections = [
            _select(name, *of_file, for_file) for of_file in zip(files, items, numbers, strict=True)
        ]
        self.notes += [f"{files[0].path}: {note}" for note in selections[0].notes]
        if limits is None:
            limits = next(iter(selections[0].stretch), None)
            how = selections[0].scaling or types[0]
            if name == HEIGHT and limits is None and in_steps:
                how += f", taken as 1 for {1 / STEPS_PER_METRE:g} m"
        self._limits = limits
        self._in_metres = metric and limits == _STEPS
        if self._in_metres:
            for of_file in zip(files, items, numbers, selections, strict=True):
                _check_heights(*of_file)
        self._layers = [
            WarpedBand(file, item, number, selection.alpha, target)
            for file, item, number, selection in zip(files, items, numbers, selections, strict=True)
        ]
        for layer in self._layers:
            self.notes += layer.notes
        if self._in_metres:
            self._check_above_ground(files, target)
        self.files = [path for item in items for path in item.files]
        sources = " less ".join(
            f"band {n} of {file.path}" for file, n in zip(files, numbers, strict=True)
        )
        self.description = f"{name} from {sources}, {how}"

    def read(self, top: int, left: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Reads a window of the grid.

        Returns:
            The band (height, width) uint8, 0 where it is not valid; and the valid pixels, (height,
            width) bool.

        Raises:
            UnreadableError: GDAL cannot read it.
        """
        values, valid = self._values(top, left, height, width)
        if self._limits:
            return bands.stretched(values[None], (self._limits,), valid)[0], valid
        return np.where(valid, np.rint(values), 0).astype(np.uint8), valid

    def _values(self, *window: int) -> tuple[np.ndarray, np.ndarray]:
        values, valid = self._read_layer(self._layers[0], *window)
        for layer in self._layers[1:]:
            below, known = self._read_layer(layer, *window)
            values, valid = values - below, valid & known
        return values, valid

    def _read_layer(self, layer: WarpedBand, *window: int) -> tuple[np.ndarray, np.ndarray]:
        values, valid = layer.read(*window)
        if self._in_metres:
            lowest, highest = _PLAUSIBLE
            valid &= (values >= lowest) & (values <= highest)
        return values, valid

    def _check_above_ground(self, files: Sequence[BandFile], target: PixelGrid) -> None:
        """Notes heights that are probably altitudes.

        Raises:
            UserError: the surface is below the terrain.
        """
        side = min(_WINDOW, target.height), min(_WINDOW, target.width)
        tops = np.unique(np.linspace(0, target.height - side[0], _WINDOWS).astype(int))
        lefts = np.unique(np.linspace(0, target.width - side[1], _WINDOWS).astype(int))
        found = []
        for top in tops.tolist():
            for left in lefts.tolist():
                values, valid = self._values(top, left, *side)
                found.append(values[valid])
        heights = np.concatenate(found)
        if not heights.size:
            return
        median = float(np.median(heights))
        if len(files) > 1 and median < -1:
            raise UserError(
                f"--surface={files[0].path} is below --terrain={files[1].path} in most places, by "
                f"{-median:.3g} m in the median: are the two exchanged?"
            )
        if median > _STEPS[1] or median < -1:
            advice = (
                ""
                if len(files) > 1
                else "; if they are altitudes, give --surface and --terrain instead"
            )
            self.notes.append(
                f"warning: the median of the heights in {files[0].path} is {median:.3g} m, and "
                f"those above ground are taken from 0 to {_STEPS[1]:g} m{advice}"
            )


def _number(name: str, file: BandFile, item: RasterInput) -> int:
    """The number of the band.

    Raises:
        UserError: it does not exist, or is not said and not clear.
    """
    layout = item.layout
    listed = f"{file.path} has {layout.listed(layout.indexes)}"
    if file.number:
        if file.number not in layout.indexes:
            raise UserError(f"{file.flag} names band {file.number}, which does not exist: {listed}")
        return file.number
    if len(layout.indexes) == 1:
        return 1
    described = [i for i in layout.indexes if layout.described(i) == bands.name_of(name)]
    if len(described) == 1:
        return described[0]
    example = f"{file.flag}={file.path}:1"
    infrared = " (in false-colour composites, near infrared is usually band 1)" * (name == "nir")
    raise UserError(
        f"which band is {name} is not clear: {listed}. Give its number, such as {example}{infrared}"
    )


def _limits(
    name: str, files: Sequence[BandFile], types: Sequence[str], metric: bool, scaling: Scaling,
    in_steps: bool,
) -> tuple[tuple[float, float] | None, str]:  # fmt: skip
    """The metres that become 0 and 255, and how that is known; None if the file's type tells.

    Raises:
        UserError: the unit of the model's heights is not known.
    """
    if not metric:
        return None, ""
    trained = bool(scaling.of_model) and types[0] in scaling.trained_on
    if not scaling.by_user and not trained:
        if not in_steps:
            raise UserError(
                f"{files[0].path} ({files[0].flag}) holds {types[0]}, and the unit of this model's "
                "heights is not known: give --stretch with a range for each band; that of "
                f"{name} is the metres that become 0 and 255"
            )
        return _STEPS, (
            f"{types[0]} metres x {STEPS_PER_METRE}: steps of {1 / STEPS_PER_METRE:g} m, at most "
            f"{_STEPS[1]:g} m"
        )
    if len(files) == 1:
        return None, ""
    ranges = scaling.by_user or scaling.of_model
    if percentiles.has_percentiles(ranges):
        raise UserError(
            "--stretch: the percentiles of surface less terrain are not known: give the metres "
            f"that become 0 and 255 for {name}"
        )
    ((low, high),) = ranges
    limits = float(low), float(high)
    return limits, f"{types[0]} {stretch_text({name: limits})}"


def _select(
    name: str, file: BandFile, item: RasterInput, number: int, scaling: Scaling
) -> BandSelection:
    open_ = functools.partial(open_raster, flag=file.flag)
    return select_for_all([item], (name,), (number,), open_, scaling)[item.layout]


def _check_heights(
    file: BandFile, item: RasterInput, number: int, selection: BandSelection
) -> None:
    """Raises a UserError for heights that are not metres as they are."""
    with open_raster(file.path, file.flag) as raster:
        scale, offset = raster.scales[number - 1], raster.offsets[number - 1]
        unit = (raster.units[number - 1] or "").strip().lower()
        step = max(1, int(np.sqrt(item.width * item.height / _SAMPLE)))
        values = item.read_reduced(raster, selection, step)
    if (scale, offset) != (1, 0):
        raise UserError(
            f"{file.path} ({file.flag}) holds values to be scaled by {scale:g} and shifted by "
            f"{offset:g}: expected metres; gdal_translate -unscale -ot Float32 makes them so"
        )
    if unit and not unit.startswith("m"):
        raise UserError(
            f"{file.path} ({file.flag}) holds heights in {unit}: expected metres; convert them, "
            "such as by gdal_calc.py, and set the unit to m"
        )
    lowest, highest = _PLAUSIBLE
    wrong = values[(values < lowest) | (values > highest)]
    if wrong.size:
        raise UserError(
            f"{file.path} ({file.flag}) holds {wrong[0]:g}, which is no height in metres and not "
            f"its NoData value: if it stands for no data, declare it so, such as by\n"
            f"  gdal_edit.py -a_nodata {wrong[0]:g} {file.path}"
        )
