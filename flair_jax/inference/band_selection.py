"""Selection of a raster's bands for a model, and of the band that holds transparency.

Whether a band that is tagged alpha is transparency is decided by its values: GDAL tags the fourth
band of any uint8 file so by default, although it is near infrared in most aerial images.
"""

import dataclasses
import shlex
from collections.abc import Callable, Sequence

import numpy as np
import rasterio
from rasterio.enums import ColorInterp

from flair_jax.errors import UserError
from flair_jax.models.spec import stretch_text
from tfds_builder import bands

_UNSPECIFIC = {ColorInterp.undefined, ColorInterp.gray, ColorInterp.alpha, ColorInterp.palette}
_LISTED = 10  # bands of a message
_EXTREME_SHARE = 0.9  # of an alpha band's values that are lowest or highest, at least
_FEW_VALUES = 3  # distinct values up to which a band may be alpha whatever they are
_FEW_PIXELS = 16  # of an alpha band; fewer samples say nothing
_MANY_PIXELS = 1000  # for correlations
_RESEMBLANCE = 0.02  # difference of mean correlation that tells red and near infrared apart,
_NOISE = 3.0  # beside so many standard deviations of a correlation of noise

_ALPHA_TYPES = ("uint8", "uint16")  # of bands that GDAL tags alpha although they are data

Sampler = Callable[[Sequence[int]], np.ndarray]
Limit = float | str  # a value, or a percentile such as "p2"


@dataclasses.dataclass(frozen=True)
class Scaling:
    """How pixels of other types than uint8 become a model's uint8.

    Attributes:
        by_user: (lowest, highest) value of each of the model's bands, or one for all (--stretch);
            it applies to every raster. Percentiles, such as "p2", are replaced by values first,
            see `percentiles`.
        of_model: the same of the images that the model was trained on; () if they were not
            stretched. It applies to rasters of the types `trained_on`.
        trained_on: the types of those images.
        source: where `by_user` is from, for reports.
    """

    by_user: tuple[tuple[Limit, Limit], ...] = ()
    of_model: tuple[tuple[float, float], ...] = ()
    trained_on: tuple[str, ...] = ("uint8",)
    source: str = "--stretch"

    def check(self, wanted: Sequence[str]) -> None:
        """Raises a UserError unless `by_user` has one range, or one for each band of a model."""
        if len(self.by_user) not in (0, 1, len(wanted)):
            raise UserError(
                f"--stretch has {len(self.by_user)} ranges, and the model takes {len(wanted)} "
                f"bands ({', '.join(wanted)}): give one for all, or one for each"
            )

    def of(self, indices: Sequence[int]) -> "Scaling":
        """That of some of the bands."""
        return dataclasses.replace(
            self,
            by_user=tuple(self.by_user[i] for i in indices)
            if len(self.by_user) > 1
            else self.by_user,
            of_model=tuple(self.of_model[i] for i in indices) if self.of_model else (),
        )


UNSCALED = Scaling()


@dataclasses.dataclass(frozen=True)
class BandSelection:
    """The bands of a raster that a model is fed with.

    Attributes:
        numbers: band numbers from 1, in the order of the model's bands.
        reasons: how each was found.
        data: numbers of all bands that hold data, that is, all but alpha.
        alpha: number of the band that holds transparency; 0 if there is none.
        notes: decisions to report.
        stretch: (lowest, highest) of each of these bands, which become 0 and 255; () where they are
            fed as they are.
        scaling: the stretch in words, or "".
    """

    numbers: tuple[int, ...]
    reasons: tuple[str, ...]
    data: tuple[int, ...]
    alpha: int
    notes: tuple[str, ...]
    stretch: tuple[tuple[float, float], ...] = ()
    scaling: str = ""

    def describe(self, wanted: Sequence[str]) -> str:
        """Which band feeds which input, such as "red 3, green 2, blue 1 (description)"."""
        pairs = [f"{name} {number}" for name, number in zip(wanted, self.numbers, strict=True)]
        if len(set(self.reasons)) == 1:
            text = f"{', '.join(pairs)} ({self.reasons[0]})"
        else:
            text = ", ".join(
                f"{pair} ({reason})" for pair, reason in zip(pairs, self.reasons, strict=True)
            )
        return f"{text}, {self.scaling}" if self.scaling else text


@dataclasses.dataclass(frozen=True)
class BandLayout:
    """What a raster's metadata tell of its bands; rasters of one layout get the same selection.

    Attributes:
        descriptions: lower case, "" where there is none.
        interpretations: colour interpretation.
        dtypes: of rasterio.
        bits: of each band's values, 8 unless fewer are stored.
    """

    descriptions: tuple[str, ...]
    interpretations: tuple[ColorInterp, ...]
    dtypes: tuple[str, ...]
    bits: tuple[int, ...]

    @classmethod
    def of(cls, raster: rasterio.DatasetReader) -> "BandLayout":
        """The layout of an open raster."""
        try:
            descriptions = tuple((d or "").strip().lower() for d in raster.descriptions)
        except UnicodeError:  # not UTF-8
            descriptions = ("",) * raster.count
        bits = [raster.tags(i, ns="IMAGE_STRUCTURE").get("NBITS", "8") for i in raster.indexes]
        return cls(descriptions, raster.colorinterp, raster.dtypes, tuple(map(int, bits)))

    @property
    def indexes(self) -> range:
        """Band numbers, from 1."""
        return range(1, len(self.dtypes) + 1)

    def described(self, number: int) -> str:
        """The name of a band by its description, as the builder of data sets reads it, or ""."""
        return bands.name_of(self.descriptions[number - 1])

    def interpreted(self, number: int) -> str:
        """The name of a band by its colour interpretation, or ""."""
        interpretation = self.interpretations[number - 1]
        return "" if interpretation in _UNSPECIFIC else interpretation.name

    def listed(self, numbers: Sequence[int]) -> str:
        """Bands with description and colour interpretation, at most a few of them."""
        texts = [
            f"{i} ({' '.join(filter(None, (self.descriptions[i - 1], self._colour(i))))})"
            for i in numbers
        ]
        if len(texts) > _LISTED:
            texts[_LISTED - 2 : -1] = ["..."]
        return ", ".join(texts)

    def _colour(self, number: int) -> str:
        return self.interpretations[number - 1].name


def select_bands(
    path: str,
    layout: BandLayout,
    wanted: Sequence[str],
    numbers: Sequence[int],
    sample: Sampler,
    scaling: Scaling = UNSCALED,
) -> BandSelection:
    """Selects the bands of a raster for a model.

    Args:
        path: of the raster, for messages.
        layout: its bands.
        wanted: names of the model's bands.
        numbers: the user's choice (--bands), or empty.
        sample: called with band numbers, gives their values at pixels all over the raster,
            (N, bands) of their type; called only if needed.
        scaling: how other types than uint8 are scaled.

    Raises:
        UserError: the bands do not fit the model, or which of them to use is ambiguous.
    """
    wanted = bands.names_of(wanted)
    if numbers:
        _check_numbers(path, layout, wanted, numbers)
        named = set(numbers)
    else:
        named = {i for i in layout.indexes if layout.described(i) in wanted}
    alpha, notes = _find_alpha(layout, named, sample)
    data = [i for i in layout.indexes if i != alpha]
    if numbers:
        chosen = [(i, "--bands") for i in numbers]
    else:
        _check_palette(path, layout, data, len(wanted))
        chosen = _by_metadata(path, layout, wanted, data, sample)
    selected = tuple(i for i, _ in chosen)
    _check_palette(path, layout, selected, len(wanted))
    stretch, text, scaling_notes = _stretch(path, layout, selected, wanted, scaling)
    return BandSelection(
        selected, tuple(reason for _, reason in chosen), tuple(data), alpha,
        (*notes, *scaling_notes), stretch, text,
    )  # fmt: skip


def _check_numbers(
    path: str, layout: BandLayout, wanted: Sequence[str], numbers: Sequence[int]
) -> None:
    both = _both(path, layout, wanted)
    wrong = [n for n in numbers if n not in layout.indexes]
    if wrong:
        raise UserError(f"--bands names band {wrong[0]}, which does not exist: {both}")
    if len(numbers) != len(wanted):
        chosen = ",".join(map(str, numbers))
        raise UserError(f"--bands={chosen} names {len(numbers)} bands: {both}")


def _find_alpha(layout: BandLayout, named: set[int], sample: Sampler) -> tuple[int, list[str]]:
    """The number of the band that holds transparency, or 0; and what to report of it.

    Args:
        layout: of the raster.
        named: bands that are data because the user or a description names them.
        sample: see `select_bands`.
    """
    notes: list[str] = []
    for number in layout.indexes:
        if layout.interpretations[number - 1] != ColorInterp.alpha or number in named:
            continue
        dtype = layout.dtypes[number - 1]
        others = [i for i in layout.indexes if i != number and layout.dtypes[i - 1] == dtype]
        if dtype not in _ALPHA_TYPES or not others:
            return number, notes
        values, image = np.split(sample([number, *others]), [1], axis=1)
        highest = np.iinfo(dtype).max
        # Outside the image, near infrared is 0 as well.
        inside = ~((image == 0).all(1) | (image == highest).all(1))
        values = values[inside, 0]
        distinct = len(np.unique(values))
        share = np.isin(values, (0, highest)).mean() if len(values) else 1.0
        if len(values) < _FEW_PIXELS or distinct <= _FEW_VALUES or share >= _EXTREME_SHARE:
            return number, notes
        notes.append(
            f"band {number} is tagged alpha, but {distinct} values occur in it, of which "
            f"{share:.0%} are 0 or {highest}: it is taken as image data, not as transparency"
        )
    return 0, notes


def _by_metadata(
    path: str, layout: BandLayout, wanted: Sequence[str], data: Sequence[int], sample: Sampler
) -> list[tuple[int, str]]:
    """The band for each of the model's, and whether by description, interpretation or position.

    Raises:
        UserError: it is ambiguous.
    """
    described = {i: layout.described(i) for i in data}
    known = {*wanted, *bands.ALIASES}
    names = {
        i: name
        if name in known or bands.is_other(layout.descriptions[i - 1])
        else layout.interpreted(i)
        for i, name in described.items()
    }
    found: dict[str, tuple[int, str]] = {}
    for name in wanted:
        for labels, reason in ((described, "description"), (names, "colour interpretation")):
            of_name = [i for i in data if labels[i] == name]
            if len(of_name) > 1:
                listed = ", ".join(map(str, of_name))
                raise _ambiguous(
                    path, layout, wanted, data, found, f"By {reason}, bands {listed} are {name}."
                )
            if of_name:
                found[name] = of_name[0], reason
                break
    missing = [name for name in wanted if name not in found]
    unnamed = [i for i in data if not names[i]]
    if missing:
        if len(data) != len(wanted) or len(missing) != len(unnamed):
            raise _ambiguous(path, layout, wanted, data, found)
        reason = "position" if len(missing) > 1 or not found else "the only band left"
        found |= {name: (i, reason) for name, i in zip(missing, unnamed, strict=True)}
    for name, (i, reason) in found.items():
        text = layout.descriptions[i - 1]
        if reason != "description" and bands.mentioned(text) - {name}:
            text = f"By {reason}, band {i} is {name}, but its description is {text!r}."
            raise _ambiguous(path, layout, wanted, data, found, text)
    roles = {name: (i, "colour interpretation") for i, name in names.items() if name} | found
    if len(data) == 4 and len(unnamed) in (1, 4) and {"red", "green", "blue"} <= roles.keys():
        _check_order(path, layout, wanted, data, roles, sample)
    return [found[name] for name in wanted]


def _check_order(
    path: str, layout: BandLayout, wanted: Sequence[str], data: Sequence[int],
    roles: dict[str, tuple[int, str]], sample: Sampler,
) -> None:  # fmt: skip
    """Raises a UserError if four bands look as if near infrared came first and red last.

    GDAL tags four bands red, green, blue, alpha by default, whatever they are. In images of land,
    red resembles green and blue more than near infrared does.
    """
    if roles["red"][1] == "description":
        return
    red, green, blue = (roles[name][0] for name in ("red", "green", "blue"))
    (fourth,) = set(data) - {red, green, blue}
    values = sample([red, green, blue, fourth]).astype(float)
    values = values[np.isfinite(values).all(1)]
    values = values[~((values == 0).all(1) | (values == 255).all(1))]
    if len(values) < _MANY_PIXELS or not values.std(0).all():
        return
    correlation = np.corrcoef(values.T)
    of_red, of_fourth = correlation[0, 1:3].mean(), correlation[3, 1:3].mean()
    if of_fourth < 0.5 or of_fourth - of_red < _RESEMBLANCE + _NOISE / np.sqrt(len(values)):
        return
    as_is = {"red": red, "green": green, "blue": blue, "nir": fourth}
    swapped = as_is | {"red": fourth, "nir": red}
    likely, otherwise = (
        "--bands=" + ",".join(str(order.get(name, "?")) for name in wanted)
        for order in (swapped, as_is)
    )
    raise UserError(
        f"{_both(path, layout, wanted)}. By {roles['red'][1]}, band {red} is red, but it "
        f"looks like near infrared, and band {fourth} like red (their mean correlations with "
        f"green and blue are {of_red:.2f} and {of_fourth:.2f}). List the bands in the model's "
        f"order: {likely} if that is so, {otherwise} if not"
    )


def _ambiguous(
    path: str, layout: BandLayout, wanted: Sequence[str], data: Sequence[int],
    found: dict[str, tuple[int, str]], why: str = "",
) -> UserError:  # fmt: skip
    both = _both(path, layout, wanted)
    missing = [name for name in wanted if name not in found]
    if len(data) < len(wanted):
        count = len(layout.dtypes)
        listed = ",".join(map(str, range(1, count + 1)))
        remedy = (
            f". If the band tagged alpha is data, list it in the model's order: --bands={listed}"
            if count == len(wanted)
            else ""
        )
        return UserError(
            f"{both}: too few for this model. Use a model of these bands, or give the missing "
            f"ones from other files (--nir, --height, --stack BAND=FILE:N){remedy}"
        )
    spare = iter([i for i in data if i not in {number for number, _ in found.values()}])
    example = ",".join(str(found[name][0] if name in found else next(spare)) for name in wanted)
    why = why or f"Which of them is {' and '.join(missing)} is not clear from the file."
    return UserError(
        f"{both}. {why} List the bands to use, in the model's order, for example --bands={example}"
    )


def _check_palette(path: str, layout: BandLayout, bands: Sequence[int], wanted: int) -> None:
    if any(layout.interpretations[i - 1] == ColorInterp.palette for i in bands):
        colours = "gray" if wanted == 1 else "rgb"
        raise UserError(
            f"{path} has a colour table: its pixels are indices of colours. Expand them, such as\n"
            f"  gdal_translate -expand {colours} {shlex.quote(path)} expanded.tif"
        )


def _stretch(
    path: str, layout: BandLayout, numbers: Sequence[int], wanted: Sequence[str], scaling: Scaling
) -> tuple[tuple[tuple[float, float], ...], str, list[str]]:
    """The stretch of the selected bands, () for none; in words; and what to report.

    Raises:
        UserError: their values are not those that the model was trained on, and no stretch is
            known that makes them so.
    """
    types = {layout.dtypes[number - 1] for number in numbers}
    if len(types) > 1:
        raise UserError(f"{path} has bands of {' and '.join(sorted(types))}: convert them to one")
    (dtype,) = types
    if np.issubdtype(np.dtype(dtype), np.complexfloating):
        raise UserError(f"{path} has complex pixels, which are no images")
    if scaling.by_user:
        scaling.check(wanted)
        ranges = scaling.by_user * (len(wanted) if len(scaling.by_user) == 1 else 1)
        stretch = tuple((float(low), float(high)) for low, high in ranges)
        text = stretch_text(dict(zip(wanted, stretch, strict=True)))
        return stretch, f"{dtype} {text} by {scaling.source}", []
    of_model = stretch_text(dict(zip(wanted, scaling.of_model, strict=False)))
    trained_on = " and ".join(scaling.trained_on) or "images of an unknown type"
    if scaling.of_model and dtype in scaling.trained_on:
        return scaling.of_model, f"{dtype} {of_model} as in the model's training", []
    if dtype == "uint8":
        notes = []
        if scaling.of_model:
            notes.append(
                f"warning: its pixels are uint8, and the model was trained on {trained_on} "
                f"{of_model}: they are taken as stretched so already; if not, give --stretch"
            )
        bits = min(layout.bits[number - 1] for number in numbers)
        if bits < 8:
            raise UserError(
                f"{path} has pixels of {bits} bit{'s' * (bits > 1)}, 0 to {2**bits - 1}, and the "
                "model was trained on 0 to 255. If they are image values, give "
                f"--stretch=0,{2**bits - 1}"
            )
        return (), "", notes
    if scaling.of_model:
        raise UserError(
            f"{path} has pixels of {dtype}, and the model was trained on {trained_on} {of_model}: "
            "give the values that become 0 and 255 as --stretch=MIN,MAX, for all of the model's "
            "bands, or one for each: --stretch MIN,MAX MIN,MAX ..."
        )
    raise UserError(
        f"{path} has pixels of {dtype}, and the model was trained on uint8: give the values that "
        "become 0 and 255, by the stretch of the training images, as --stretch=MIN,MAX, for all of "
        "the model's bands, or one for each: --stretch MIN,MAX MIN,MAX ..."
    )


def _both(path: str, layout: BandLayout, wanted: Sequence[str]) -> str:
    return (
        f"the model takes {len(wanted)} band{'s' * (len(wanted) > 1)} ({', '.join(wanted)}), "
        f"{path} has {layout.listed(layout.indexes)}"
    )
