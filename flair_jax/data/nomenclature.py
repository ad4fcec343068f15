"""Nomenclatures: the classes of a model, and the mask values that map to each."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from flair_jax.errors import UserError
from tfds_builder.flair.reference import CLASSES as FLAIR  # by mask value: name and colour
from tfds_builder.hub.reference import CLASSES as HUB_CLASSES  # the same of FLAIR-HUB's masks
from tfds_builder.hub.reference import FLAIR_VALUES, WEIGHTS

IGNORED = 255  # label of mask values that map to no class: they count in no loss and no score


@dataclasses.dataclass(frozen=True)
class LandCover:
    """One class: its name, its colour, its weight in the loss, the mask values that map to it."""

    name: str
    colour: str
    weight: float
    values: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Nomenclature:
    """An ordered list of classes; the label of a class is its index in the list, from 0."""

    name: str
    classes: tuple[LandCover, ...]

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> list[str]:
        """Names of the classes in the order of their labels."""
        return [c.name for c in self.classes]

    @property
    def weights(self) -> np.ndarray:
        """(classes,) float32: weights of the classes in the loss; 0 leaves a class out."""
        return np.array([c.weight for c in self.classes], np.float32)

    @property
    def labels(self) -> np.ndarray:
        """(256,) uint8: the label of every mask value, `IGNORED` for unlisted values."""
        table = np.full(256, IGNORED, np.uint8)
        for label, land_cover in enumerate(self.classes):
            table[list(land_cover.values)] = label
        return table

    @property
    def names_of_values(self) -> tuple[tuple[int, str], ...]:
        """(mask value, name of its class), by value."""
        return tuple(sorted((value, c.name) for c in self.classes for value in c.values))

    @property
    def rgb(self) -> np.ndarray:
        """(classes, 3) uint8: the colours."""
        return np.array([tuple(bytes.fromhex(c.colour[1:])) for c in self.classes], np.uint8)


def _flair(last: int, weights_from: dict[int, float]) -> tuple[LandCover, ...]:
    return tuple(
        LandCover(*FLAIR[v], weight=weights_from.get(v, 1.0), values=(v,)) for v in range(1, last)
    )


# The baseline's 13: values 1 to 12, and one class "other" of weight 0 for all above.
BASELINE = Nomenclature(
    "baseline",
    (*_flair(13, {}), LandCover(*FLAIR[19], weight=0.0, values=tuple(range(13, 20)))),
)
# Each of the 19 values is a class.
FULL = Nomenclature("full", _flair(20, {}))
# FLAIR-HUB's classes in their order, 15 and 4 of weight 0: by the mask values of FLAIR, and by
# those of FLAIR-HUB.
COSIA, HUB = (
    Nomenclature(
        "cosia",
        tuple(
            LandCover(*HUB_CLASSES[value], weight=WEIGHTS[value], values=(stored[value],))
            for value in HUB_CLASSES
        ),
    )
    for stored in (FLAIR_VALUES, tuple(HUB_CLASSES))
)

NOMENCLATURES = {n.name: n for n in (BASELINE, FULL, COSIA)}
OF_DATA = "data"  # names the data set's own classes


def in_values_of(
    chosen: Nomenclature, meant: Sequence[tuple[int, str]], wanted: Sequence[tuple[int, str]]
) -> Nomenclature:
    """A nomenclature of FLAIR's mask values by FLAIR-HUB's, or the other way round.

    Args:
        chosen: the nomenclature.
        meant: (value, name) of the masks that its values are of, see `names_of_values`.
        wanted: the same of the masks to map to its classes.

    Returns:
        Its classes with the values of those masks; unchanged if one of them is neither FLAIR's nor
        FLAIR-HUB's.
    """
    flairs, hubs = FULL.names_of_values, HUB.names_of_values
    tables = {
        (flairs, hubs): dict(zip(FLAIR_VALUES, HUB_CLASSES, strict=True)),
        (hubs, flairs): dict(zip(HUB_CLASSES, FLAIR_VALUES, strict=True)),
    }
    table = tables.get((tuple(meant), tuple(wanted)))
    if table is None:
        return chosen
    classes = (
        dataclasses.replace(c, values=tuple(sorted(table[value] for value in c.values)))
        for c in chosen.classes
    )
    return Nomenclature(chosen.name, tuple(classes))


def nomenclature(
    name: str,
    classes: Sequence[tuple[str, str, float, Sequence[int]]] = (),
    disabled: Sequence[str] = (),
    of_data: Nomenclature | None = FULL,
) -> Nomenclature:
    """The nomenclature of this name, or a custom one.

    Args:
        name: "baseline", "full" or "cosia" (FLAIR-HUB's), for the masks of FLAIR and FLAIR-HUB;
            or "data", the data set's own; with `classes`, any other name.
        classes: (name, colour, weight, mask values) of each class of a custom nomenclature, in the
            order of their labels: `(("built", "#db0e9a", 1.0, (1, 18)), ...)`.
        disabled: names of classes that get weight 0: they count neither in the loss nor in the
            mean of the scores.
        of_data: the classes of the data set; None where it is not known, for a check of what can
            be checked without it.

    Raises:
        UserError: there is none of this name, the classes are invalid, or they are not of the
            data set; the message says why.
    """
    if classes:
        if name in (*NOMENCLATURES, OF_DATA):
            raise UserError(
                f"config.classes are given, and config.nomenclature is {name!r}, a known one: "
                "give yours another name"
            )
        chosen = Nomenclature(name, tuple(_checked(*entry) for entry in classes))
    elif name in NOMENCLATURES:
        chosen = NOMENCLATURES[name]
        values = FULL.names_of_values if of_data is None else of_data.names_of_values
        if values == HUB.names_of_values:
            chosen = in_values_of(chosen, FULL.names_of_values, values)
        elif of_data is not None and values != FULL.names_of_values:
            raise UserError(
                f"config.nomenclature={name!r} are FLAIR's classes, and the data set "
                f"{of_data.name!r} has its own: {', '.join(of_data.names)}. Train with "
                f"--config=own_data, or set config.nomenclature={OF_DATA!r}"
            )
    elif name == OF_DATA:
        if of_data is None or not of_data.classes:
            raise UserError(
                f"config.nomenclature={OF_DATA!r} are the classes of a data set, and "
                + ("no data set is read here" if of_data is None else "this one has no masks")
            )
        chosen = of_data
    else:
        raise UserError(
            f"unknown nomenclature {name!r} (config.nomenclature): "
            f"the known ones are {', '.join(sorted(NOMENCLATURES))}, and {OF_DATA!r} for those "
            "of the data set; for others, give config.classes"
        )
    if classes and of_data is not None:
        known = {value for value, _ in of_data.names_of_values}
        for c in chosen.classes:
            if not known.issuperset(c.values):
                raise UserError(
                    f"config.classes, {c.name!r}: the mask values are {c.values!r}; those of the "
                    f"data set {of_data.name!r} are {_ranges(known)}"
                )
    unknown = [n for n in disabled if n not in chosen.names]
    if unknown:
        raise UserError(
            f"config.disabled_classes names {unknown[0]!r}, which {name!r} does not have; its "
            f"classes are {', '.join(chosen.names)}"
        )
    if disabled:
        chosen = Nomenclature(
            chosen.name,
            tuple(
                dataclasses.replace(c, weight=0.0) if c.name in disabled else c
                for c in chosen.classes
            ),
        )
    _check(chosen)
    return chosen


def _checked(name: str, colour: str, weight: float, values: Sequence[int]) -> LandCover:
    where = f"config.classes, {name!r}"
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{where}: the name must be a text that is not empty")
    if not isinstance(colour, str) or not re.fullmatch("#[0-9a-fA-F]{6}", colour):
        raise UserError(f"{where}: the colour is {colour!r}; expected one like '#db0e9a'")
    if not (isinstance(weight, int | float) and 0 <= weight < float("inf")):
        raise UserError(f"{where}: the weight is {weight!r}; expected a number from 0")
    if not values or not all(type(v) is int and 0 <= v <= 255 for v in values):
        raise UserError(f"{where}: the mask values are {values!r}; expected some of 0 to 255")
    return LandCover(name, colour, float(weight), tuple(values))


def _ranges(values: set[int]) -> str:
    """Numbers in words: "1 to 3, 7"."""
    starts = sorted(v for v in values if v - 1 not in values)
    ends = sorted(v for v in values if v + 1 not in values)
    return ", ".join(f"{a} to {b}" if b > a else f"{a}" for a, b in zip(starts, ends, strict=True))


def _check(chosen: Nomenclature) -> None:
    """Raises a UserError for faults of the classes taken together."""
    if len(chosen) < 2 or not chosen.weights.any():
        raise UserError(
            f"the nomenclature {chosen.name!r} needs at least two classes, "
            "one of them with a weight above 0"
        )
    if len(set(chosen.names)) < len(chosen):
        raise UserError(f"the nomenclature {chosen.name!r} has two classes of the same name")
    class_of: dict[int, str] = {}
    for land_cover in chosen.classes:
        for value in land_cover.values:
            other = class_of.setdefault(value, land_cover.name)
            if other is not land_cover.name:
                raise UserError(
                    f"the nomenclature {chosen.name!r} puts the mask value {value} in "
                    f"{other!r} and in {land_cover.name!r}"
                )
