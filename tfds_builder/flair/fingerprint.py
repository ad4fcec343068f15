"""What a data set was built from, stored beside it, and how a source differs from that."""

import collections
import dataclasses
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from tfds_builder.flair.faults import BuildError
from tfds_builder.flair.files import File, Unreadable
from tfds_builder.flair.selection import Patch

FILE = "fingerprint.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What a data set was built from.

    Attributes:
      options: those of the build that change the data set.
      patches: {split: {"domain/zone/number": [image, mask, entry]}} in stored order, with those
        that were left out; in FLAIR-HUB [image, mask, entry, elevation]. Files are [bytes, CRC-32,
        time of modification in ns], with 0 for the time in a zip, None for the CRC of an unreadable
        file, and None for no mask; the entry is the CRC-32 of the patch's metadata.
      skipped: {split: keys of the patches that were left out for faults}.
      shards: {split: {file name: [number of records, bytes]}}.
    """

    options: Mapping[str, Any]
    patches: Mapping[str, Mapping[str, Sequence[Any]]]
    skipped: Mapping[str, Sequence[str]]
    shards: Mapping[str, Mapping[str, Sequence[int]]]

    def content(self) -> str:
        """Returns a SHA-256 of the stored patches and their order.

        It depends neither on how the source was packed nor on file format and shards.
        """
        stored = [
            [split, key, image[1], mask and mask[1], entry, *(file[1] for file in more)]
            for split, of_split in sorted(self.patches.items())
            for key, (image, mask, entry, *more) in of_split.items()
            if key not in self.skipped.get(split, ())
        ]
        return hashlib.sha256(json.dumps([FORMAT, stored]).encode()).hexdigest()


def entry_of(patch: Patch, crcs: Sequence[int | None]) -> list[Any]:
    """Returns a patch's value in `Fingerprint.patches`, given the CRC-32 of its files."""
    files = [patch.image, patch.mask, *([patch.elevation] if patch.elevation else [])]
    image, mask, *more = (
        file and [file.size, crc, file.time] for file, crc in zip(files, crcs, strict=True)
    )
    return [image, mask, _metadata_crc(patch), *more]


def _metadata_crc(patch: Patch) -> int:
    return zlib.crc32(json.dumps(patch.metadata, sort_keys=True).encode())


def save(fingerprint: Fingerprint, folder: epath.Path) -> None:
    """Writes a fingerprint into a data set's folder."""
    content = {"format": FORMAT, "content": fingerprint.content()}
    content |= dataclasses.asdict(fingerprint)
    (folder / FILE).write_text(json.dumps(content))


def load(folder: epath.Path) -> Fingerprint | None:
    """Returns the fingerprint in a data set's folder; None if there is none.

    Raises:
      BuildError: if it is damaged.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text())
        names = [field.name for field in dataclasses.fields(Fingerprint)]
        fingerprint = Fingerprint(**{name: content[name] for name in names})
        intact = content["format"] == FORMAT and content["content"] == fingerprint.content()
        sizes = [int(size) for shards in fingerprint.shards.values() for _, size in shards.values()]
    except FileNotFoundError:
        return None
    except Exception as error:  # its kind depends on the damage
        raise BuildError(f"{path} is damaged: {error!r}") from error
    if not intact or not sizes:
        raise BuildError(f"{path} is damaged: its content is not that of its checksum")
    return fingerprint


def damaged_shards(folder: epath.Path, shards: Mapping[str, Sequence[int]]) -> list[str]:
    """Returns a message for each shard that is missing or has not the size that was written.

    Args:
      folder: of the data set.
      shards: one split of `Fingerprint.shards`.
    """
    messages = []
    for name, (_, size) in sorted(shards.items()):
        try:
            actual = (folder / name).stat().length
        except OSError as error:
            messages.append(f"{folder / name}: {error.strerror}")
            continue
        if actual != size:
            messages.append(f"{folder / name}: {actual:,} bytes, where {size:,} were written")
    return messages


def differences(
    stored: Fingerprint, options: Mapping[str, Any], splits: Mapping[str, Iterable[Patch]]
) -> list[str]:
    """Returns how a source and options differ from those that a data set was built from.

    Files in folders whose time has changed, but not their size, are read to compare the CRC.

    Args:
      stored: of the built data set.
      options: as in `Fingerprint`.
      splits: the patches of the source as it is now.
    """
    lines = [
        f"{name} is {options.get(name)!r}, was {stored.options.get(name)!r}"
        for name in sorted(stored.options.keys() | options.keys())
        if stored.options.get(name) != options.get(name)
    ]
    was = {key: split for split, of_split in stored.patches.items() for key in of_split}
    now = {str(patch.key): patch for of_split in splits.values() for patch in of_split}
    kinds: dict[str, list[str]] = collections.defaultdict(list)
    for key, patch in now.items():
        if key not in was:
            kinds[f"new patches of {patch.split}"].append(str(patch.image))
            continue
        if was[key] != patch.split:
            kinds[f"patches moved from {was[key]} to {patch.split}"].append(str(patch.image))
        image, mask, entry, *more = stored.patches[was[key]][key]
        if _changed(image, patch.image):
            kinds["changed images"].append(str(patch.image))
        if not mask or not patch.mask:
            if mask or patch.mask:
                kinds["masks added" if patch.mask else "masks removed"].append(str(patch.image))
        elif _changed(mask, patch.mask):
            kinds["changed masks"].append(str(patch.mask))
        if patch.elevation and (not more or _changed(more[0], patch.elevation)):
            kinds["changed elevations"].append(str(patch.elevation))
        if entry != _metadata_crc(patch):
            name = patch.key.number if patch.elevation else f"IMG_{patch.key.number}"
            kinds["changed metadata entries"].append(name)
    for key in was.keys() - now.keys():
        kinds[f"patches of {was[key]} that are gone"].append(key)
    return lines + [
        f"{kind}: {len(names):,}, the first: {min(names)}" for kind, names in sorted(kinds.items())
    ]


def _changed(stored: Sequence[int | None], file: File) -> bool:
    size, crc, time = stored
    if size != file.size:
        return True
    if file.crc is not None:
        return crc != file.crc
    if time == file.time:
        return False
    try:
        return crc != zlib.crc32(file.read())
    except Unreadable:
        return True
