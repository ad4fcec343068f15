"""The TFDS builder of users' own images and masks."""

import collections
import csv
import dataclasses
import functools
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import floor

import numpy as np
import tensorflow_datasets as tfds
from rasterio.transform import Affine

from tfds_builder.flair.faults import BuildError, Fault, printable
from tfds_builder.flair.files import File, Unreadable
from tfds_builder.flair.patch_builder import PatchBuilder, Plan
from tfds_builder.flair.patches import Header, crs_name, pixel_width
from tfds_builder.flair.selection import SPLITS, Key, Patch
from tfds_builder.flair.shards import PatchFormat
from tfds_builder.own import pairs as pairs_lib
from tfds_builder.own import rasters, splits
from tfds_builder.own.classes import NO_CLASSES, read_classes

BLOCK_PATCHES = 4  # side of a block of the map
IN_PIXELS = 1e-6  # within the rounding of coordinates
LABELS = 256  # values that a mask may have
NAMED = 5


@dataclasses.dataclass(frozen=True)
class OwnSource:
    """Where the images are, and how they are cut and divided; see `tfds_builder.flags`."""

    images: str | None = None
    masks: str | None = None
    pairs: str | None = None
    classes: str | None = None
    patch_size: int = 512
    overlap: int = 0
    remainder: str = "pad"
    bands: tuple[str, ...] = ()
    stretch: tuple[tuple[float, float], ...] = ()
    unlisted: str = "error"
    masks_by: str = "auto"
    split_by: str | None = None
    block_size: float | None = None
    val_groups: tuple[str, ...] = ()
    test_groups: tuple[str, ...] = ()
    val_share: float = 0.15
    test_share: float = 0.15
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class _Image:
    """An image that can be opened, with its mask and its group."""

    pair: pairs_lib.Pair
    image: File
    mask: File | None
    header: Header
    group: str


class OwnData(PatchBuilder):
    """Images and masks of a user, cut into patches."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Bands and classes of the user."}  # noqa: RUF012
    BUILDER_CONFIGS: list[tfds.core.BuilderConfig] = []  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        is_built = (self.data_path / "features.json").exists()
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images and masks of a user, cut into patches by flair-jax.",
            features=tfds.features.FeaturesDict.from_config(self.data_dir)
            if is_built
            else PatchFormat(None).features(),
            supervised_keys=("image", "mask"),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _make_plan(self, source: OwnSource) -> Plan:
        if source.pairs:
            found = pairs_lib.from_csv(source.pairs)
        else:
            assert source.images is not None
            found = pairs_lib.from_folders(source.images, source.masks)
        has_masks = any(pair.mask for pair in found.pairs)
        if has_masks and not source.classes:
            raise BuildError("the masks need --classes=classes.csv, which names their values")
        classes = read_classes(source.classes) if source.classes else NO_CLASSES
        images, faults, names, is_synthetic = _open(found, source)
        if not images:
            raise BuildError(f"no image can be built from\n{_listed_faults(faults)}")
        stretch = source.stretch * len(names) if len(source.stretch) == 1 else source.stretch
        recipe = rasters.Recipe(names, stretch, classes, source.unlisted, source.masks_by)
        if not recipe.stored_bands:
            raise BuildError("--bands leaves no band to store")
        notes = [*found.notes, *classes.notes]
        patches = _cut(images, source, recipe, notes)
        by_split, crossing = _divide(patches, images, source)
        if crossing:
            notes.append(f"left out {crossing:,} patches on the border between two splits")
        if not any(by_split.values()):
            raise BuildError("no patch is left to build")
        for path in found.unpaired:
            faults.append(Fault("", "mask without image", path, "no image has its name"))
        notes += _remarks(by_split, images)
        folder = found.root
        return Plan(
            folders=[folder],
            splits=by_split,
            faults=faults,
            notes=[printable(note) for note in notes],
            format=PatchFormat(
                (source.patch_size, source.patch_size),
                recipe.stored_bands,
                LABELS,
                functools.partial(rasters.read_own_patch, recipe=recipe),
            ),
            options={
                "file_format": self.info.file_format.value,
                "shard_mb": self._shard_mb,
                "bands": list(names),
                "classes": classes.facts(),
                **{
                    name: value if not isinstance(value, tuple) else [*value]
                    for name, value in dataclasses.asdict(source).items()
                    if name not in ("images", "masks", "pairs", "classes", "bands", "stretch")
                },
                "stretch": [list(limits) for limits in source.stretch],
            },
            facts={
                "name": self.builder_config.name,
                "synthetic": is_synthetic,
                "grouped_by": "group",
                "source": os.path.basename(folder),
                "overlap": source.overlap,
                "remainder": source.remainder,
                "crs": sorted({crs_name(image.header.crs) for image in images}),
                "pixel_size": sorted(
                    {
                        float(f"{pixel_width(image.header.transform):.6g}")
                        for image in images
                        if image.header.has_position
                    }
                ),
                "image_types": sorted({dtype for image in images for dtype in image.header.dtypes}),
                **rasters.facts_of(recipe),
            },
            files={
                "patches.csv": _patch_list(by_split, folder),
                **_pair_list(by_split, folder),
            },
        )


def _open(
    found: pairs_lib.Pairs, source: OwnSource
) -> tuple[list[_Image], list[Fault], tuple[str, ...], bool]:
    """Reads the headers of all images; returns them, faults, names of bands, and if synthetic."""
    images: list[_Image] = []
    faults: list[Fault] = []
    names = source.bands
    first = ""
    is_synthetic = False
    column = source.split_by if source.split_by not in (None, "folder", "blocks") else "group"
    if column != "group" and not any(column in pair.columns for pair in found.pairs):
        raise BuildError(
            f"--split_by={column}: expected 'folder', 'blocks', or a column of --pairs=pairs.csv"
        )
    for pair in found.pairs:
        try:
            image = rasters.file_of(pair.image)
            mask = rasters.file_of(pair.mask) if pair.mask else None
            read = rasters.read_header(pair.image)
        except Unreadable as error:
            faults.append(Fault("", "image unreadable", pair.image, str(error)))
            continue
        if not names:
            of_file = rasters.band_names(read)
            if isinstance(of_file, str):
                raise BuildError(_unnamed(pair.image, of_file, len(read.descriptions)))
            names, first = of_file, pair.image
        header = read.header
        if header.bands != len(names):
            wanted = f"as in {first}" if first else f"--bands={','.join(names)}"
            detail = f"{header.bands} bands, and expected are {len(names)}, {wanted}"
            faults.append(Fault("", "image of other bands", pair.image, detail))
            continue
        if first and (of_file := rasters.band_names(read)) != names:
            text = of_file if isinstance(of_file, str) else ", ".join(of_file)
            detail = f"{text}, where {first} has {', '.join(names)}"
            faults.append(Fault("", "image of other bands", pair.image, detail))
            continue
        if set(header.dtypes) != {"uint8"} and not source.stretch:
            raise BuildError(
                f"{pair.image} has pixels of {', '.join(sorted(set(header.dtypes)))}, and uint8 is"
                " stored: give the values that become 0 and 255 as --stretch=MIN,MAX, for all"
                " bands, or one for each: --stretch=MIN,MAX MIN,MAX ..."
            )
        if any(np.issubdtype(np.dtype(dtype), np.complexfloating) for dtype in header.dtypes):
            raise BuildError(f"{pair.image} has complex pixels, which are no images")
        is_synthetic |= read.is_synthetic
        group = pair.columns.get(column, "") if source.split_by != "folder" else ""
        if column != "group" and not group:
            raise BuildError(f"--split_by={column}: {pair.image} has none")
        images.append(_Image(pair, image, mask, header, group or pair.folder or "all"))
    if len(source.stretch) > 1 and names and len(source.stretch) != len(names):
        raise BuildError(
            f"--stretch has {len(source.stretch)} ranges, and the images have {len(names)} bands"
        )
    return images, faults, names, is_synthetic


def _unnamed(path: str, why: str, count: int) -> str:
    example = ("red", "green", "blue", "nir", *(f"band{i}" for i in range(5, count + 1)))[:count]
    return (
        f"the bands of {path} are not clear: {why}. Name all {count} in the order of the files,"
        f" such as --bands={','.join(example)}; '{rasters.LEFT_OUT}' leaves one out, and"
        f" '{rasters.ALPHA}' is transparency"
    )


def _listed_faults(faults: Sequence[Fault]) -> str:
    lines = [f"  {fault.file}: {fault.detail}" for fault in faults[:NAMED]]
    more = [f"  ... and {len(faults) - NAMED} more"] if len(faults) > NAMED else []
    return "\n".join([*lines, *more])


def _cut(
    images: Sequence[_Image], source: OwnSource, recipe: rasters.Recipe, notes: list[str]
) -> list[Patch]:
    """Cuts all images; the patches have no split yet."""
    # Patches of equal files that are made in another way are others.
    made = zlib.crc32(json.dumps([*recipe.bands, rasters.facts_of(recipe)]).encode())
    patches: list[Patch] = []
    too_small = []
    taken: dict[str, str] = {}
    for image in images:
        name = re.sub(r"[^\w.-]+", "_", image.pair.key.replace("/", "_"), flags=re.ASCII)
        if other := taken.get(name):
            raise BuildError(
                f"{other} and {image.pair.image} have the same name in the data set, {name}: rename"
                " one of them"
            )
        taken[name] = image.pair.image
        rows, columns = (
            rasters.starts(length, source.patch_size, source.overlap, source.remainder)
            for length in image.header.shape
        )
        if not rows or not columns:
            too_small.append(image.pair.image)
        zone = os.path.basename(image.pair.key) if image.group == image.pair.folder else name
        for row, column in itertools.product(rows, columns):
            entry = {
                "window": [row, column],
                "date": image.pair.columns.get("date", ""),
                "camera": image.pair.columns.get("camera", ""),
                "recipe": made,
            }
            key = Key(image.group, zone, f"{name}_{row}_{column}")
            patches.append(Patch("", key, image.image, image.mask, entry))
    if too_small:
        notes.append(
            f"left out {len(too_small):,} images that are smaller than a patch of"
            f" {source.patch_size} (--remainder=drop), the first: {too_small[0]}"
        )
    if not patches:
        raise BuildError(
            f"all images are smaller than a patch of {source.patch_size}: give a smaller"
            " --patch_size, or --remainder=pad"
        )
    return patches


def _divide(
    patches: Sequence[Patch], images: Sequence[_Image], source: OwnSource
) -> tuple[dict[str, list[Patch]], int]:
    """Assigns patches to splits; returns them, and how many were left out between two splits."""
    by_file = {image.image.path: image for image in images}
    given = {image.image.path: image.pair.columns.get("split", "") for image in images}
    options = {
        name: getattr(source, name)
        for name in ("val_groups", "test_groups", "val_share", "test_share", "seed")
    }
    touched: dict[str, set[str]] = {}
    if source.split_by == "blocks":
        blocks = _Blocks(images, source)
        placed = []
        for patch in patches:
            own, all_of_patch = blocks.of(by_file[patch.image.path], patch.metadata["window"])
            placed.append(dataclasses.replace(patch, key=patch.key._replace(domain=own)))
            touched[patch.key.number] = all_of_patch
        patches = placed
    if any(given.values()) and (source.split_by or source.val_groups or source.test_groups):
        raise BuildError(
            f"{source.pairs} has a column `split`, and another split is asked for: leave the column"
            " out, or --split_by, --val_groups and --test_groups"
        )
    if any(given.values()):
        chosen = {patch.key.number: given[patch.image.path] for patch in patches}
    elif not any(patch.mask for patch in patches):
        chosen = dict.fromkeys((patch.key.number for patch in patches), "test")
    else:
        counts = collections.Counter(patch.key.domain for patch in patches)
        of_group = splits.assign(counts, **options)
        chosen = {patch.key.number: of_group[patch.key.domain] for patch in patches}
        crossing = {
            number
            for number, names in touched.items()
            if len({of_group[name] for name in names if name in of_group}) > 1
        }
        patches = [patch for patch in patches if patch.key.number not in crossing]
        return _sorted(patches, chosen), len(crossing)
    return _sorted(patches, chosen), 0


def _sorted(patches: Iterable[Patch], chosen: Mapping[str, str]) -> dict[str, list[Patch]]:
    def order(patch: Patch) -> tuple[str, str, list[int]]:
        return patch.key.domain, patch.image.path, patch.metadata["window"]

    by_split: dict[str, list[Patch]] = {split: [] for split in SPLITS}
    for patch in sorted(patches, key=order):
        split = chosen[patch.key.number]
        by_split[split].append(dataclasses.replace(patch, split=split))
    return {split: of_split for split, of_split in by_split.items() if of_split}


class _Blocks:
    """Blocks of the map; of images without coordinates, blocks of each image."""

    def __init__(self, images: Sequence[_Image], source: OwnSource) -> None:
        self._side = source.patch_size
        placed = [image.header.has_position for image in images]
        systems = {crs_name(image.header.crs) for image in images}
        if any(placed) and (not all(placed) or len(systems) > 1):
            raise BuildError(
                "--split_by=blocks: the images are not all in one coordinate system"
                f" ({', '.join(sorted(systems))}); bring them into one, or give groups"
            )
        self._on_map = all(placed)
        width = max(pixel_width(image.header.transform) for image in images)
        self._block = source.block_size or BLOCK_PATCHES * self._side * width
        corners = [corner for image in images for corner in _corners(image.header)]
        self._left = min(x for x, _ in corners)
        self._top = max(y for _, y in corners)

    def of(self, image: _Image, window: Sequence[int]) -> tuple[str, set[str]]:
        """Returns the block of a patch's centre, and all that it touches."""
        row, column = window
        rows, columns = (
            min(self._side, length - start)
            for length, start in zip(image.header.shape, window, strict=True)
        )
        inset = IN_PIXELS * self._side
        transform = image.header.transform if self._on_map else Affine.scale(1, -1)
        # Every point of a grid, as fine as the blocks, since a patch may be larger than one.
        steps = max(2, 2 + floor(self._side * pixel_width(transform) / self._block))
        ys, xs = (
            np.linspace(start + inset, start + count - inset, steps)
            for start, count in ((row, rows), (column, columns))
        )
        names = {self._name(image, transform @ (x, y)) for x in xs for y in ys}
        centre = transform @ (column + columns / 2, row + rows / 2)
        return self._name(image, centre), names

    def _name(self, image: _Image, point: tuple[float, float]) -> str:
        x, y = point
        if not self._on_map:
            return f"{image.pair.key}:x{floor(x / self._block)}_y{floor(-y / self._block)}"
        column, row = (x - self._left) / self._block, (self._top - y) / self._block
        return f"x{floor(column)}_y{floor(row)}"


def _corners(header: Header) -> list[tuple[float, float]]:
    rows, columns = header.shape
    return [header.transform @ (x, y) for x in (0, columns) for y in (0, rows)]


def _remarks(by_split: Mapping[str, Sequence[Patch]], images: Sequence[_Image]) -> Iterator[str]:
    """Yields what the user should know of the splits."""
    for split in SPLITS:
        if split not in by_split:
            yield f"no patches of {split}: it is not built"
    unlabelled = sum(patch.mask is None for patch in by_split.get("test", ()))
    if unlabelled:
        yield f"{unlabelled:,} test patches have no mask; has_mask is false"
    for split, patches in by_split.items():
        groups = sorted({patch.key.domain for patch in patches})
        shown = ", ".join(groups[:NAMED])
        more = f" and {len(groups) - NAMED} more" if len(groups) > NAMED else ""
        yield f"groups of {split}: {shown}{more}"
    yield from _overlaps(by_split, images)


def _overlaps(by_split: Mapping[str, Sequence[Patch]], images: Sequence[_Image]) -> Iterator[str]:
    """Yields the images of one split that cover ground of another's, as far as that is known."""
    split_of = collections.defaultdict(set)
    for split, patches in by_split.items():
        for patch in patches:
            split_of[patch.image.path].add(split)
    known = [i for i in images if i.header.has_position and len(split_of[i.image.path]) == 1]
    if not known:
        return
    boxes = np.array([
        [min(xs), min(ys), max(xs), max(ys)]
        for xs, ys in (zip(*_corners(image.header), strict=True) for image in known)
    ])  # fmt: skip
    labels = np.array([min(split_of[image.image.path]) for image in known])
    crs = np.array([crs_name(image.header.crs) for image in known])
    for number, image in enumerate(known):
        pixel = pixel_width(image.header.transform)
        low = np.maximum(boxes[:, :2], boxes[number, :2])
        high = np.minimum(boxes[:, 2:], boxes[number, 2:])
        shared = (high - low > pixel).all(1) & (labels != labels[number]) & (crs == crs[number])
        if shared.any():
            other = known[int(np.argmax(shared))]
            yield (
                f"warning: images of {labels[number]} and of {min(split_of[other.image.path])} show"
                f" the same ground, such as {image.pair.image} and {other.pair.image}: scores will"
                " be too high"
            )
            return


def _patch_list(by_split: Mapping[str, Sequence[Patch]], folder: str) -> str:
    rows = [("id", "split", "group", "image", "mask", "row", "column")]
    for split, patches in by_split.items():
        for patch in patches:
            row, column = patch.metadata["window"]
            image, mask = _relative(patch, folder)
            rows.append(
                (patch.key.number, split, patch.key.domain, image, mask, str(row), str(column))
            )
    return _csv(rows)


def _pair_list(by_split: Mapping[str, Sequence[Patch]], folder: str) -> dict[str, str]:
    """Returns the list of images with their splits, unless an image is in several."""
    rows = {("image", "mask", "split", "group", "date", "camera"): None}
    for split, patches in by_split.items():
        for patch in patches:
            entry = patch.metadata
            paths = _relative(patch, folder)
            rows[*paths, split, patch.key.domain, entry["date"], entry["camera"]] = None
    if len({row[0] for row in rows}) < len(rows):
        return {}
    return {"pairs.csv": _csv(rows)}


def _relative(patch: Patch, folder: str) -> tuple[str, str]:
    mask = os.path.relpath(patch.mask.path, folder) if patch.mask else ""
    return os.path.relpath(patch.image.path, folder), mask


def _csv(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
