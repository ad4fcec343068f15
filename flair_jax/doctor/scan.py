"""Scan of a download or a built data set: names of all patches, pixels of a sample."""

import collections
import functools
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
from rasterio.crs import CRS
from tqdm import tqdm

from flair_jax.doctor.findings import Entry, Misplaced, Pixels, Scan
from flair_jax.errors import UserError
from tfds_builder.flair import source as source_files
from tfds_builder.flair.faults import BuildError, Fault
from tfds_builder.flair.patches import (
    BANDS,
    Size,
    centre,
    common_size,
    gdal,
    metadata_faults,
    read_files,
)
from tfds_builder.flair.source import File, Patch, Source
from tfds_builder.flair.workers import follow_parent

UNNAMED, NONE = "unnamed", "none"
LAMBERT_93 = "EPSG:2154"
CHUNK = 32  # patches between two updates of the progress bar
PROCESS_FROM = 256  # patches for each process at least

_LAYOUTS = (  # the first that fits any part of a path
    ("toy data set", re.compile(r"flair_1_toy_.*", re.IGNORECASE)),
    ("download", re.compile(r"flair(_1)?_(aerial|labels)_(train|test).*", re.IGNORECASE)),
    ("one folder a domain", re.compile(r"aerial|labels", re.IGNORECASE)),
)


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
        source = source_files.scan(root, inspect=True)
        splits, faults = source_files.select(source, inspect=True)
    except BuildError as error:
        raise UserError(f"--source: {error}") from error
    patches = [patch for of_split in splits.values() for patch in of_split]
    entries = []
    for patch in patches:
        details = list(metadata_faults(patch))
        kind = "no metadata" if patch.metadata is None else "malformed metadata"
        faults += [Fault(patch.split, kind, str(patch.image), detail) for detail in details]
        if not details:
            entries.append(_entry(str(patch.image), patch.metadata))
        if patch.mask is None:
            faults.append(Fault(patch.split, "mask missing", str(patch.image), "no mask was found"))
    sample_patches = [patches[i] for i in sampled(len(patches), sample, seed)]
    read = functools.partial(read_source, size=common_size(patches))
    pixels = _read_all(read, _chunks(sample_patches), len(sample_patches), num_workers, progress)
    files = (*source.images.values(), *source.masks.values())
    return Scan(
        root=source.root,
        built=False,
        layouts=collections.Counter(layout(file, source.root) for one in files for file in one),
        patches={
            split: collections.Counter(patch.key.domain for patch in of_split)
            for split, of_split in splits.items()
        },
        total={split: len(of_split) for split, of_split in splits.items()},
        notes=source.notes,
        damaged=source.damaged,
        faults=faults,
        orphans=_orphans(source),
        entries=entries,
        pixels=pixels,
        seed=seed,
    )


def scan_built(
    directory: Any, sample: int, seed: int, num_workers: int, progress: bool = False
) -> Scan:
    """Scans a built data set.

    Args:
        directory: its version directory, see `input_pipeline.dataset_directory`.
        sample, seed, num_workers, progress: see `scan_source`.

    Raises:
        UserError: TFDS cannot read it.
    """
    import tensorflow_datasets as tfds

    try:
        info = tfds.builder_from_directory(directory).info
        total = {name: split.num_examples for name, split in info.splits.items()}
    except Exception as error:  # its kind depends on the damage
        raise UserError(
            f"--data_dir: {directory} is not a data set that TFDS can read ({error}): build it anew"
        ) from error
    where = [(split, index) for split, count in total.items() for index in range(count)]
    sample_patches = [where[i] for i in sampled(len(where), sample, seed)]
    built = info.metadata or {}
    size = tuple(built.get("patch_size") or ())
    read = functools.partial(read_built, str(directory), size=size)
    pixels = _read_all(read, _chunks(sample_patches), len(sample_patches), num_workers, progress)
    domains: dict[str, collections.Counter[str]] = {split: collections.Counter() for split in total}
    for entry in pixels.entries:
        domains[entry.file.split("/")[0]][entry.domain] += 1
    skipped = built.get("num_faults_skipped", 0)
    left_out = f"{skipped:,} faults were left out when it was built: see skipped.csv in it"
    return Scan(
        root=str(directory),
        built=True,
        layouts=collections.Counter({"built data set": sum(total.values())}),
        patches=domains,
        total=total,
        notes=[*([left_out] if skipped else []), *built.get("notes", [])],
        damaged=[],
        faults=[],
        orphans=[],
        entries=pixels.entries,
        pixels=pixels,
        seed=seed,
    )


def layout(file: File, root: str) -> str:
    """The layout that a file's path matches, and whether it is zipped."""
    above = os.path.dirname(root)
    parts = os.path.relpath(file.archive or file.path, above).removesuffix(".zip").split("/")
    parts += file.path.split("/") if file.archive else []
    names = (name for name, form in _LAYOUTS if any(map(form.fullmatch, parts)))
    return next(names, "folders") + (", zipped" if file.archive else ", unpacked")


def read_source(patches: Sequence[Patch], size: Size | None) -> Pixels:
    """Reads patches of a download; see `tfds_builder.flair.patches.read_files` for the size."""
    pixels = Pixels()
    with gdal():
        for patch in patches:
            raster, image, mask, faults = read_files(patch, size)
            pixels.patches += 1
            pixels.faults += faults
            name = str(patch.image)
            if raster is not None:
                pixels.sizes[raster.shape] += 1
                pixels.bands[raster.bands] += 1
                pixels.dtypes[", ".join(sorted(set(raster.dtypes)))] += 1
                crs = crs_name(raster.crs)
                known = patch.metadata is not None and not any(metadata_faults(patch))
                centroid = _entry(name, patch.metadata).centroid if known else None
                _locate(pixels, name, crs, raster.transform, raster.shape, centroid)
            if image is not None:
                pixels.count_image(name, patch.split, image)
            if mask is not None:
                pixels.count_mask(patch.split, mask, image)
    return pixels


def read_built(directory: str, where: Sequence[tuple[str, int]], size: Size) -> Pixels:
    """Reads patches of a built data set, given as (split, index)."""
    import tensorflow_datasets as tfds

    pixels = Pixels()
    records: dict[str, Any] = {}
    builder = tfds.builder_from_directory(directory)
    for split, index in where:
        pixels.patches += 1
        try:
            if split not in records:
                records[split] = builder.as_data_source(split=split)
            record = records[split][index]
        except Exception as error:  # its kind depends on the damage
            name = f"{split}, record {index}"
            pixels.faults.append(Fault(split, "record unreadable", name, str(error).split("\n")[0]))
            continue
        text = {
            key: record[key].decode()
            for key in ("id", "domain", "zone", "date", "time", "camera", "crs")
        }
        name = f"{split}/{text['domain']}/{text['zone']}/IMG_{text['id']}"
        image, mask = record["image"], record["mask"]
        centroid = (float(record["centroid"][0]), float(record["centroid"][1]))
        pixels.entries.append(Entry(name, text["domain"], text["date"], text["camera"], centroid))
        pixels.sizes[image.shape[:2]] += 1
        pixels.bands[image.shape[2]] += 1
        pixels.dtypes[str(image.dtype)] += 1
        if size and image.shape[:2] != size:
            detail = f"{image.shape[:2]}, where the data set has {size}"
            pixels.faults.append(Fault(split, "size not the data set's", name, detail))
        crs = text["crs"] or NONE
        crs = crs if crs == NONE else crs_name(CRS.from_user_input(crs))
        _locate(pixels, name, crs, record["transform"], image.shape, centroid)
        if image.shape[2] == BANDS:
            pixels.count_image(name, split, image)
        if record["has_mask"]:
            pixels.count_mask(split, mask, image)
    return pixels


@functools.lru_cache(maxsize=64)
def crs_name(crs: CRS | None) -> str:
    """`EPSG:<code>`, the name of another one, `unnamed` for a local one, or `none`."""
    if not crs:
        return NONE
    code = crs.to_epsg()
    if code:
        return f"EPSG:{code}"
    if not (crs.is_projected or crs.is_geographic):
        return UNNAMED
    name = re.search(r'"([^"]+)"', crs.to_wkt())
    return name[1] if name else "other"


def _locate(
    pixels: Pixels,
    name: str,
    crs: str,
    transform: Sequence[float],
    shape: Sequence[int],
    centroid: Sequence[float] | None,
) -> None:
    """Records the position of an image and its distance to the centroid of the metadata."""
    pixels.crs[crs] += 1
    if crs not in (LAMBERT_93, UNNAMED, NONE):
        pixels.odd_crs.append((name, crs))
    width = float(np.hypot(transform[0], transform[3]))
    if tuple(transform[:6]) == (1, 0, 0, 0, 1, 0):
        pixels.resolutions[NONE] += 1
        return
    pixels.resolutions[f"{width:.6g}"] += 1
    if centroid is not None and crs in (LAMBERT_93, UNNAMED, NONE):
        pixels.compared += 1
        x, y = centre(transform, shape)
        metres = float(np.hypot(x - centroid[0], y - centroid[1]))
        if metres > 1.5 * width:  # a pixel in both directions, as the builder allows
            outside = metres > width * min(shape[:2]) / 2
            pixels.misplaced.append(Misplaced(name, metres, outside))


def _entry(file: str, entry: dict[str, Any]) -> Entry:
    centroid = (float(entry["patch_centroid_x"]), float(entry["patch_centroid_y"]))
    return Entry(file, entry["domain"], entry["date"], entry["camera"], centroid)


def _orphans(source: Source) -> list[str]:
    numbers = {f"IMG_{key.number}" for key in source.images}
    return sorted(source.metadata.keys() - numbers)


def _chunks(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[i : i + CHUNK] for i in range(0, len(items), CHUNK)]


def _read_all(
    read: Callable[[Sequence[Any]], Pixels],
    chunks: Sequence[Sequence[Any]],
    total: int,
    num_workers: int,
    progress: bool,
) -> Pixels:
    """Sums the counts of all chunks, in worker processes if there are many patches."""
    pixels = Pixels()
    workers = min(num_workers or os.cpu_count() or 1, total // PROCESS_FROM)
    hidden = not (progress and sys.stderr.isatty())
    bar = tqdm(total=total, desc="reading", unit="patch", disable=hidden, leave=False)
    with bar:
        if workers < 2:
            for chunk in chunks:
                pixels += read(chunk)
                bar.update(len(chunk))
            return pixels
        # Not fork: the caller may hold threads, GDAL or an accelerator.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, initializer=follow_parent)
        try:
            results: list[Pixels] = [Pixels()] * len(chunks)
            futures = {pool.submit(read, chunk): i for i, chunk in enumerate(chunks)}
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                bar.update(len(chunks[futures[future]]))
        except BrokenProcessPool as error:
            raise UserError(
                "a process that read patches was killed (out of memory?) or could not start; try "
                "with fewer, down to --num_workers=1"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    for result in results:  # in order, so that examples do not depend on timing
        pixels += result
    return pixels
