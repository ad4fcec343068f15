"""Scan of a download or a built data set: names of all patches, pixels of a sample."""

import collections
import dataclasses
import functools
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from rasterio.errors import CRSError
from rasterio.transform import Affine
from tqdm import tqdm

from flair_jax.data.description import FLAIR_DATA, DataDescription
from flair_jax.errors import UserError
from tfds_builder.flair import source as source_lib
from tfds_builder.flair.built import Records, open_built
from tfds_builder.flair.faults import BuildError, Fault
from tfds_builder.flair.files import File
from tfds_builder.flair.patches import (
    Header,
    Size,
    by,
    common_size,
    crs_name,
    distance,
    gdal,
    is_outside,
    metadata_faults,
    pixel_width,
    read_files,
)
from tfds_builder.flair.reference import BANDS
from tfds_builder.flair.selection import Patch, select
from tfds_builder.flair.workers import available_cpus, follow_parent

BUILDING = 1  # mask value
CHUNK = 32  # patches between two updates of the progress bar
PROCESS_FROM = 256  # patches for each process at least

_LAYOUTS = (  # the first that fits any part of a path
    ("toy data set", re.compile(r"flair_1_toy_.*", re.IGNORECASE)),
    ("download", re.compile(r"flair(_1)?_(aerial|labels)_(train|test).*", re.IGNORECASE)),
    ("one folder a domain", re.compile(r"aerial|labels", re.IGNORECASE)),
)


class Entry(NamedTuple):
    """Well-formed metadata of a patch; the centroid in metres, in Lambert-93."""

    file: str
    domain: str
    date: str
    camera: str
    centroid: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Opened:
    """What was found in a patch that was opened, besides its pixels.

    Attributes:
        file: the image.
        faults: of the files.
        header: of the image; None where it cannot be opened.
        metres: from the image's centre to its centroid; None where either is not known.
        flat: bands with one value in all of the image.
        entry: the metadata, of built data sets only: of sources it is known for all patches.
    """

    file: str
    faults: Sequence[Fault]
    header: Header | None = None
    metres: float | None = None
    flat: frozenset[int] = frozenset()
    entry: Entry | None = None

    @property
    def is_misplaced(self) -> bool:
        """Whether the centroid is more than a pixel, in both directions, from the centre."""
        if self.header is None or self.metres is None:
            return False
        return self.metres > 1.5 * pixel_width(self.header.transform)

    @property
    def is_outside(self) -> bool:
        """Whether the centroid is outside the image."""
        return self.header is not None and is_outside(self.header, self.metres)


@dataclasses.dataclass
class Histograms:
    """Counts of pixel values; they can be added.

    Attributes:
        images: {split: (bands, 256) int64}: how often each band has each value.
        masks: {split: (256,) int64}: how often masks have each value.
        num_images: number of images that were counted.
        num_masks: number of masks that were counted.
        heights: (256,) int64: values of the height band on buildings.
    """

    images: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    masks: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    num_images: int = 0
    num_masks: int = 0
    heights: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))

    def __iadd__(self, other: "Histograms") -> "Histograms":
        for total, added in ((self.images, other.images), (self.masks, other.masks)):
            for split, counts in added.items():
                total[split] = total.get(split, 0) + counts
        self.num_images += other.num_images
        self.num_masks += other.num_masks
        self.heights = self.heights + other.heights
        return self

    def add(self, split: str, image: np.ndarray | None, mask: np.ndarray | None) -> frozenset[int]:
        """Counts an image (H, W, bands) and its mask (H, W); returns the bands with one value."""
        flat: frozenset[int] = frozenset()
        if image is not None:
            pixels = image.reshape(-1, image.shape[-1])
            counts = np.stack([np.bincount(band, minlength=256) for band in pixels.T])
            self.images[split] = self.images.get(split, 0) + counts
            self.num_images += 1
            flat = frozenset(np.flatnonzero((counts > 0).sum(1) == 1).tolist())
        if mask is not None:
            self.masks[split] = self.masks.get(split, 0) + np.bincount(mask.ravel(), minlength=256)
            self.num_masks += 1
        if image is not None and mask is not None and image.shape[-1] == len(BANDS):
            self.heights += np.bincount(image[..., -1][mask == BUILDING], minlength=256)
        return flat


@dataclasses.dataclass(frozen=True)
class Scan:
    """Everything known of a download or a built data set, on which the checks are made.

    Attributes:
        root: its folder.
        built: whether it is a built data set.
        seed: of the sample.
        layouts: number of files by layout.
        total: {split: number of patches}.
        domains: {split: {domain: number of patches}}; of built data sets, those of the sample.
        notes: the builder's notes.
        damage: archives and other files that cannot be read, with the reason.
        faults: of patches that cannot be paired or whose metadata is missing or malformed.
        orphans: metadata entries without an image.
        entries: the metadata of the patches whose entry is well-formed.
        opened: the sampled patches.
        histograms: of their pixels.
        data: the description of the data set.
    """

    root: str
    built: bool
    seed: int
    layouts: collections.Counter[str]
    total: dict[str, int]
    domains: dict[str, collections.Counter[str]]
    notes: Sequence[str]
    damage: Sequence[str]
    faults: Sequence[Fault]
    orphans: Sequence[str]
    entries: Sequence[Entry]
    opened: Sequence[Opened]
    histograms: Histograms
    data: DataDescription = FLAIR_DATA

    @property
    def num_patches(self) -> int:
        """Number of patches of all splits."""
        return sum(self.total.values())

    @property
    def headers(self) -> list[tuple[Opened, Header]]:
        """The sampled patches whose image could be opened, with its header."""
        return [(patch, patch.header) for patch in self.opened if patch.header is not None]

    @property
    def all_opened(self) -> bool:
        """Whether the sample is all patches."""
        return len(self.opened) >= self.num_patches


def sampled(total: int, count: int, seed: int) -> np.ndarray:
    """Stratified sample: a random index from each of `count` equal parts of 0..total - 1.

    Patches are in the order of domains and zones, so that each is represented. A count of 0,
    or one above the total, takes all.
    """
    if not 0 < count < total:
        return np.arange(total)
    edges = np.arange(count + 1) * total // count
    return np.random.default_rng(seed).integers(edges[:-1], edges[1:])


def scan_source(
    root: str, sample: int, seed: int, num_workers: int, progress: bool = False
) -> Scan:
    """Scans a download, in any layout that the builder knows.

    Args:
        root: its folder.
        sample: how many patches to open; 0 for all.
        seed: of the sample.
        num_workers: processes at most.
        progress: whether to show a bar.

    Raises:
        UserError: there are no FLAIR patches in the folder.
    """
    try:
        source = source_lib.scan(root)
        if not source.images:
            source_lib.check_buildable(source)
        splits, faults = select(source)
    except BuildError as error:
        raise UserError(f"--source: {error}") from error
    patches = [patch for of_split in splits.values() for patch in of_split]
    entries = []
    for patch in patches:
        kind = "no metadata" if patch.metadata is None else "malformed metadata"
        of_patch = [
            Fault(patch.split, kind, str(patch.image), detail) for detail in metadata_faults(patch)
        ]
        faults += of_patch
        if not of_patch:
            entries.append(_entry_of(patch))
        if patch.mask is None:
            faults.append(Fault(patch.split, "mask missing", str(patch.image), "no mask was found"))
    chosen = [patches[i] for i in sampled(len(patches), sample, seed)]
    read = functools.partial(_read_source, size=common_size(patches))
    opened, histograms = _read_all(read, chosen, num_workers, progress)
    numbers = {f"IMG_{key.number}" for key in source.images}
    files = (*source.images.values(), *source.masks.values())
    return Scan(
        root=source.root,
        built=False,
        seed=seed,
        layouts=collections.Counter(layout(file, source.root) for one in files for file in one),
        total={split: len(of_split) for split, of_split in splits.items()},
        domains={
            split: collections.Counter(patch.key.domain for patch in of_split)
            for split, of_split in splits.items()
        },
        notes=source.notes,
        damage=[str(damaged) for damaged in source.damage],
        faults=faults,
        orphans=sorted(source.metadata.keys() - numbers),
        entries=entries,
        opened=opened,
        histograms=histograms,
    )


def scan_built(
    directory: epath.PathLike, sample: int, seed: int, num_workers: int, progress: bool = False
) -> Scan:
    """Scans a built data set.

    Args:
        directory: its version directory, see `dataset.dataset_directory`.
        sample, seed, num_workers, progress: see `scan_source`.

    Raises:
        UserError: TFDS cannot read it.
    """
    try:
        built = open_built(directory)
        damage = [message for split in built.num_patches for message in built.damage(split)]
        for split in built.num_patches:
            Records(built, split)  # raises, if they are in another format
        data = DataDescription.from_metadata(built.metadata)
    except (BuildError, ValueError) as error:
        raise UserError(f"--data_dir: {error}: build it anew") from error
    indices = [(split, i) for split, count in built.num_patches.items() for i in range(count)]
    chosen = [indices[i] for i in sampled(len(indices), sample, seed)]
    size = tuple(built.metadata.get("patch_size") or ())
    read = functools.partial(_read_built, directory=str(directory), size=size)
    opened, histograms = _read_all(read, chosen, num_workers, progress)
    domains: dict[str, collections.Counter[str]] = {
        split: collections.Counter() for split in built.num_patches
    }
    entries = [patch.entry for patch in opened if patch.entry is not None]
    for entry in entries:
        domains[entry.file.split("/")[0]][entry.domain] += 1
    if not data.is_flairs:  # which alone has such metadata
        entries = []
    notes = [str(note) for note in built.metadata.get("notes", [])]
    if count := built.metadata.get("num_faults_skipped", 0):
        notes.append(f"{count:,} faults were left out when it was built: see skipped.csv in it")
    if count := built.metadata.get("num_warnings", 0):
        notes.append(f"{count:,} warnings were given when it was built")
    return Scan(
        root=str(directory),
        built=True,
        seed=seed,
        layouts=collections.Counter({"built data set": len(indices)}),
        total=built.num_patches,
        domains=domains,
        notes=notes,
        damage=damage,
        faults=[],
        orphans=[],
        entries=entries,
        opened=opened,
        histograms=histograms,
        data=data,
    )


def layout(file: File, root: str) -> str:
    """The layout that a file's path matches, and whether it is zipped."""
    above = os.path.dirname(root)
    parts = os.path.relpath(file.archive or file.path, above).removesuffix(".zip").split("/")
    parts += file.path.split("/") if file.archive else []
    names = (name for name, form in _LAYOUTS if any(map(form.fullmatch, parts)))
    return next(names, "folders") + (", zipped" if file.archive else ", unpacked")


def _entry_of(patch: Patch) -> Entry:
    entry = patch.metadata
    centroid = (float(entry["patch_centroid_x"]), float(entry["patch_centroid_y"]))
    return Entry(str(patch.image), entry["domain"], entry["date"], entry["camera"], centroid)


Read = tuple[list[Opened], Histograms]


def _read_source(patches: Sequence[Patch], size: Size | None) -> Read:
    """Reads patches of a download; see `tfds_builder.flair.patches.read_files` for the size."""
    opened, histograms = [], Histograms()
    with gdal():
        for patch in patches:
            read = read_files(patch, size)
            metres = None
            if read.header is not None and not any(metadata_faults(patch)):
                metres = distance(read.header, _entry_of(patch).centroid)
            flat = histograms.add(patch.split, read.image, read.mask)
            opened.append(Opened(str(patch.image), read.faults, read.header, metres, flat))
    return opened, histograms


@functools.lru_cache(maxsize=8)
def _records(directory: str, split: str) -> Records:
    return Records(open_built(directory), split)


def _read_built(indices: Sequence[tuple[str, int]], directory: str, size: tuple[int, ...]) -> Read:
    """Reads patches of a built data set, given as (split, index)."""
    opened, histograms = [], Histograms()
    for split, index in indices:
        try:
            record = _records(directory, split)[index]
            text = {key: value.decode() for key, value in record.items() if type(value) is bytes}
            crs_name(text["crs"])  # raises, if it is none
        except (BuildError, UnicodeDecodeError, CRSError) as error:
            name = f"{split}, record {index}"
            opened.append(Opened(name, [Fault(split, "record unreadable", name, str(error))]))
            continue
        name = f"{split}/{text['domain']}/{text['zone']}/IMG_{text['id']}"
        rows, columns, bands = record["image"].shape
        faults = []
        if size and (rows, columns) != size:
            detail = f"{rows} x {columns}, where the data set has {by(size)}"
            faults.append(Fault(split, "size not the data set's", name, detail))
        transform, dtype = Affine(*record["transform"]), str(record["image"].dtype)
        header = Header((rows, columns), bands, (dtype,), transform, text["crs"])
        x, y = record["centroid"][:2].tolist()
        entry = Entry(name, text["domain"], text["date"], text["camera"], (x, y))
        mask = record["mask"] if record["has_mask"] else None
        flat = histograms.add(split, record["image"], mask)
        opened.append(Opened(name, faults, header, distance(header, (x, y)), flat, entry))
    return opened, histograms


def _read_all(
    read: Callable[[Sequence[Any]], Read], patches: Sequence[Any], num_workers: int, progress: bool
) -> Read:
    """Reads patches in chunks, in worker processes if there are many."""
    chunks = [patches[i : i + CHUNK] for i in range(0, len(patches), CHUNK)]
    results: dict[int, Read] = {}
    workers = min(num_workers or available_cpus(), len(patches) // PROCESS_FROM)
    hidden = not (progress and sys.stderr.isatty())
    with tqdm(total=len(patches), desc="reading", unit="patch", disable=hidden, leave=False) as bar:
        if workers < 2:
            for i, chunk in enumerate(chunks):
                results[i] = read(chunk)
                bar.update(len(chunk))
        else:
            # Not fork: the caller may hold threads, GDAL or an accelerator.
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(workers, context, initializer=follow_parent)
            try:
                futures = {pool.submit(read, chunk): i for i, chunk in enumerate(chunks)}
                for future in as_completed(futures):
                    results[futures[future]] = future.result()
                    bar.update(len(chunks[futures[future]]))
            except BrokenProcessPool as error:
                raise UserError(
                    "a process that read patches was killed (out of memory?) or could not start; "
                    "try with fewer, down to --num_workers=1"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)
    opened: list[Opened] = []
    histograms = Histograms()
    for i in range(len(chunks)):  # in order, so that examples do not depend on timing
        opened += results[i][0]
        histograms += results[i][1]
    return opened, histograms
