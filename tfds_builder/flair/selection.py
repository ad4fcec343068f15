"""Pairs the files of patches and assigns the patches to splits, by domain or by lists."""

import collections
import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from tfds_builder.flair.faults import BuildError, Fault
from tfds_builder.flair.files import File
from tfds_builder.flair.lists import read_list
from tfds_builder.flair.reference import DOMAINS_2, NAME_2, TEST_DOMAINS, VAL_DOMAINS
from tfds_builder.flair.source import Key, Location, Source, locate

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Patch:
    """One patch of a split: its files, and its entry in the metadata file.

    The elevation is a file of its own in FLAIR-HUB only; in FLAIR it is a band of the image.
    """

    split: str
    key: Key
    image: File
    mask: File | None
    metadata: Any
    elevation: File | None = None


def select(
    source: Source,
    val_domains: Iterable[str] = VAL_DOMAINS,
    lists: Mapping[str, str] | None = None,
) -> tuple[dict[str, list[Patch]], list[Fault]]:
    """Pairs the files of each patch and assigns the patches to splits.

    Args:
      source: the result of `scan`. Notes are added to it.
      val_domains: the domains of the validation split.
      lists: {split: CSV file}; takes just the listed patches instead of splitting by domain.

    Returns:
      {split: patches by domain, zone and number}, and the faults of those that cannot be paired.

    Raises:
      BuildError: if a list cannot be read.
    """
    if lists:
        split_of, faults = _by_lists(source, lists)
    else:
        split_of, faults = _by_domain(source, frozenset(val_domains)), []
    same_number = collections.defaultdict(list)
    for key in sorted(split_of):
        if key in source.images:
            same_number[key.number].append(key)
    splits: dict[str, list[Patch]] = {split: [] for split in SPLITS}
    for key in sorted(split_of, key=lambda key: (SPLITS.index(split_of[key]), key)):
        others = [source.images[other][0] for other in same_number[key.number] if other != key]
        paired = _pair(source, split_of[key], key, others)
        if isinstance(paired, Fault):
            faults.append(paired)
        else:
            splits[paired.split].append(paired)
    patches = [patch for of_split in splits.values() for patch in of_split]
    if unpacked := sum(len(source.images[patch.key]) > 1 for patch in patches):
        source.notes.append(f"took {unpacked:,} patches unpacked that are in a zip as well")
    return {split: of_split for split, of_split in splits.items() if of_split}, faults


def check_masks(source: Source, splits: Mapping[str, Sequence[Patch]]) -> None:
    """Raises a BuildError if no patch of train or of val has a mask."""
    for split, patches in splits.items():
        if split != "test" and all(patch.mask is None for patch in patches):
            raise BuildError(
                f"none of the {len(patches):,} {split} patches in {source.root} has a mask: put"
                " flair_labels_train.zip beside the images, zipped or unpacked"
            )


def split_of(domain: str, val_domains: Collection[str] = VAL_DOMAINS) -> str:
    """Returns the split of a domain."""
    if domain in TEST_DOMAINS:
        return "test"
    return "val" if domain in val_domains else "train"


def _by_domain(source: Source, val_domains: frozenset[str]) -> dict[Key, str]:
    return {
        key: "test" if key in source.test_2 else split_of(key.domain, val_domains)
        for key in source.images.keys() | source.masks.keys()
    }


def check_domains_2(source: Source) -> None:
    """Raises a BuildError for images of which it is not known if they are FLAIR #2's test set."""
    strange = [
        str(files[0])
        for key, files in sorted(source.images.items())
        if key not in source.test_2 and key.domain not in DOMAINS_2
    ]
    if strange:
        raise BuildError(
            f"{len(strange):,} images are of no domain of train or val, and in no folder or zip"
            f" that names the test set of {NAME_2}, such as 'flair#2-test' or"
            f" 'flair_2_aerial_test'; the first: {strange[0]}. Move them into one if they are of"
            " it, or else remove them"
        )


def _pair(source: Source, split: str, key: Key, same_number: Sequence[File]) -> Patch | Fault:
    """Returns a patch, or why its files cannot be paired.

    Args:
      source: the result of `scan`.
      split: the patch's split.
      key: the patch.
      same_number: images of other patches with this number, by which metadata is found.
    """
    images, masks = source.images.get(key, []), source.masks.get(key, [])
    entries = source.metadata.get(f"IMG_{key.number}", [])
    image, mask = the_one(images), the_one(masks)
    if not images:
        return Fault(split, "mask without image", str(masks[0]), "no image was found")
    if not image or same_number:
        also = ", ".join(map(str, same_number or images[1:]))
        return Fault(split, "number twice", str(images[0]), f"also {also}")
    if masks and not mask:
        also = ", ".join(map(str, masks[1:]))
        return Fault(split, "number twice", str(masks[0]), f"also {also}")
    if len(entries) > 1:
        where = " and ".join(str(file) for file, _ in entries)
        return Fault(split, "contradictory metadata", str(image), where)
    return Patch(split, key, image, mask, entries[0][1] if entries else None)


def the_one(files: Sequence[File]) -> File | None:
    """Returns the only file, or the only unpacked one, or None."""
    for candidates in (files, [file for file in files if not file.archive]):
        if len(candidates) == 1:
            return candidates[0]
    return None


def _by_lists(source: Source, lists: Mapping[str, str]) -> tuple[dict[Key, str], list[Fault]]:
    """Returns the split of each listed patch, and the faults of rows that cannot be taken."""
    by_number = collections.defaultdict(list)
    for key in source.images:
        by_number[key.number].append(key)
    faults = []
    rows: dict[Key, list[tuple[str, str]]] = {}  # the split, and where it is listed
    for split, path in lists.items():
        for line, image, mask in read_list(path):
            row = f"line {line} of {path}"
            listed = _listed(path, line, image, "IMG")
            listed_mask = _listed(path, line, mask, "MSK") if mask else listed
            keys = [key for key in by_number[listed.number] if _agrees(listed, key)]
            if not keys:
                detail = f"{row}; not in {source.root}"
                faults.append(Fault(split, "listed but not found", image, detail))
            elif not all(_agrees(listed_mask, key) for key in keys):
                faults.append(Fault(split, "listed with another mask", image, f"{row}: {mask}"))
                continue
            for key in keys:
                rows.setdefault(key, []).append((split, row))
    split_of = {}
    for key, of_key in sorted(rows.items()):
        split = of_key[0][0]
        if len(of_key) == 1:
            split_of[key] = split
        else:
            where = " and ".join(row for _, row in of_key)
            faults.append(Fault(split, "listed twice", str(source.images[key][0]), where))
    return split_of, faults


def _listed(path: str, line: int, listed: str, kind: str) -> Location:
    location = locate("", listed)
    if location.kind != kind:
        what = "an image IMG_<number>.tif" if kind == "IMG" else "a mask MSK_<number>.tif"
        raise BuildError(
            f"{path}, line {line}: {listed[:200]!r} is not the path of {what}"
            " (two columns, image and mask, no header)"
        )
    return location


def _agrees(location: Location, key: Key) -> bool:
    return (
        location.number == key.number
        and location.domain in ("", key.domain)
        and location.zone in ("", key.zone)
    )
