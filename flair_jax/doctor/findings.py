"""Data collected from a download or a built data set, on which the checks are made."""

import collections
import dataclasses
from typing import NamedTuple

import numpy as np

from tfds_builder.flair.faults import Fault
from tfds_builder.flair.patches import BANDS, Size

BUILDING = 1  # mask value


class Entry(NamedTuple):
    """Well-formed metadata of a patch."""

    file: str
    domain: str
    date: str
    camera: str
    centroid: tuple[float, float]


class Misplaced(NamedTuple):
    """An image whose centre differs from the centroid in its metadata."""

    file: str
    metres: float
    outside: bool  # the centroid is outside the image


@dataclasses.dataclass
class Pixels:
    """Counts over the files of some patches; two of them can be added.

    Attributes:
        patches: number of patches opened.
        entries: their metadata, of built data sets only: of sources it is known for all patches.
        sizes, bands, dtypes: images by rows and columns, number of bands, type.
        crs: images by coordinate system: "EPSG:2154", "unnamed", "none", ...
        resolutions: images by the width of a pixel in units of the CRS, or "none".
        odd_crs: files in neither Lambert-93, nor an unnamed system, nor none, with its name.
        misplaced: see `Misplaced`; offsets of up to one pixel are not listed.
        compared: number of images whose position could be compared with their metadata.
        images: number of images whose pixels were counted.
        values: {split: (bands, 256) int64}: how often each band has each value.
        masks: {split: (256,) int64}: how often masks have each value.
        labelled: masks by split.
        heights: (256,) int64: values of the height band on buildings.
        constant: images whose bands, but for height, all have one value each.
        flat: images by band which has one value in all of the image.
        faults: of the files.
    """

    patches: int = 0
    entries: list[Entry] = dataclasses.field(default_factory=list)
    sizes: collections.Counter[Size] = dataclasses.field(default_factory=collections.Counter)
    bands: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    dtypes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    crs: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    resolutions: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    odd_crs: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    misplaced: list[Misplaced] = dataclasses.field(default_factory=list)
    compared: int = 0
    images: int = 0
    values: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    masks: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    labelled: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    heights: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    constant: list[str] = dataclasses.field(default_factory=list)
    flat: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    faults: list[Fault] = dataclasses.field(default_factory=list)

    def __iadd__(self, other: "Pixels") -> "Pixels":
        for field in dataclasses.fields(self):
            value, added = getattr(self, field.name), getattr(other, field.name)
            if isinstance(value, dict) and not isinstance(value, collections.Counter):
                for key, counts in added.items():
                    value[key] = value[key] + counts if key in value else counts
            else:
                setattr(self, field.name, value + added)
        return self

    def count_image(self, file: str, split: str, image: np.ndarray) -> None:
        """Counts an image, (H, W, bands) uint8."""
        pixels = image.reshape(-1, BANDS)
        counts = np.stack([np.bincount(band, minlength=256) for band in pixels.T])
        self.images += 1
        self.values[split] = self.values.get(split, 0) + counts
        flat = np.flatnonzero((counts > 0).sum(1) == 1)
        self.flat.update(flat.tolist())
        if set(range(BANDS - 1)) <= set(flat.tolist()):
            self.constant.append(file)

    def count_mask(self, split: str, mask: np.ndarray, image: np.ndarray | None) -> None:
        """Counts a mask, (H, W) uint8, and the heights of the image's buildings."""
        self.labelled[split] += 1
        self.masks[split] = self.masks.get(split, 0) + np.bincount(mask.ravel(), minlength=256)
        if image is not None:
            self.heights += np.bincount(image[..., -1][mask == BUILDING], minlength=256)


@dataclasses.dataclass
class Scan:
    """Everything known of a download or a built data set.

    Attributes:
        root: its folder.
        built: whether it is a built data set.
        layouts: number of files by layout.
        patches: {split: {domain: number of patches}}; of built data sets, domains of the sample.
        total: {split: number of patches}.
        notes: the builder's notes.
        damaged: archives and metadata files that cannot be read, with the reason.
        faults: of patches that cannot be paired or whose metadata is missing or malformed.
        orphans: metadata entries without an image.
        entries: the metadata of the patches whose entry is well-formed.
        pixels: of the sampled patches.
        seed: of the sample.
    """

    root: str
    built: bool
    layouts: collections.Counter[str]
    patches: dict[str, collections.Counter[str]]
    total: dict[str, int]
    notes: list[str]
    damaged: list[str]
    faults: list[Fault]
    orphans: list[str]
    entries: list[Entry]
    pixels: Pixels
    seed: int

    @property
    def all_read(self) -> bool:
        """Whether the sample is all patches."""
        return self.pixels.patches >= sum(self.total.values())
