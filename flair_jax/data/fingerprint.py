"""The fingerprint of a built data set: tells other data, wherever the folder lies."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath

from flair_jax.errors import UserError

BLOCK = 1 << 18  # bytes
BLOCKS = 64  # of a split that are read: all of one of up to 16 MiB


def fingerprint(directory: epath.PathLike) -> dict[str, Any]:
    """What a data set is recognised by, as plain values for JSON.

    Sizes say little, since shards are padded: blocks of the files are read, evenly spaced over each
    split. `fingerprint.json`, which the builder writes since version 0.2, covers every patch.

    Args:
        directory: of the data set's version, with its `dataset_info.json`.

    Returns:
        `splits`: by name the number of `patches`, of `bytes`, and `sample`, a hash of the blocks;
        `features`: a hash; `source`: the builder's hash of all patches in their order, or None.

    Raises:
        UserError: a file of the data set cannot be read.
    """
    import tensorflow_datasets as tfds

    directory = epath.Path(directory)
    try:
        info = tfds.builder_from_directory(directory).info
        source = directory / "fingerprint.json"
        return {
            "splits": {name: _split(split) for name, split in info.splits.items()},
            "features": _hash([json.dumps(info.features.to_json(), sort_keys=True).encode()]),
            "source": json.loads(source.read_text())["content"] if source.exists() else None,
        }
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"the data set {directory} cannot be read ({error}): flair-jax doctor "
            f"--data_dir={directory} finds what is damaged"
        ) from error


def _split(split: Any) -> dict[str, Any]:
    files = [epath.Path(path) for path in split.filepaths]
    sizes = [file.stat().length for file in files]
    ends = np.cumsum(sizes)
    total = int(ends[-1])

    def read(start: int) -> bytes:
        """A block of the files one after the other, as far as it lies in one of them."""
        number = int(np.searchsorted(ends, start, side="right"))
        with files[number].open("rb") as file:
            file.seek(start - int(ends[number]) + sizes[number])
            return file.read(BLOCK)

    starts = np.unique(np.linspace(0, max(total - BLOCK, 0), BLOCKS).astype(np.int64))
    if total <= BLOCK * BLOCKS:
        starts = np.concatenate(
            [np.arange(end - size, end, BLOCK) for end, size in zip(ends, sizes, strict=True)]
        )
    with ThreadPoolExecutor(16) as threads:  # for the latency of remote storage
        sample = _hash(threads.map(read, starts.tolist()))
    return {"patches": sum(split.shard_lengths), "bytes": total, "sample": sample}


def _hash(parts: Any) -> str:
    value = hashlib.blake2b(digest_size=16)
    for part in parts:
        value.update(part)
    return value.hexdigest()


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines that tell how the data set of one fingerprint differs from that of another.

    With the builder's hash in both, it makes no difference how the patches are stored; but files of
    the same sizes must have the same content, or they have been changed since.
    """
    lines = []
    same_source = old["source"] is not None and old["source"] == new["source"]
    for name in sorted(old["splits"].keys() | new["splits"].keys()):
        before, after = old["splits"].get(name), new["splits"].get(name)
        if before is None or after is None:
            lines.append(
                f"{name}: a split {'now, and not then' if before is None else 'then, and not now'}"
            )
        elif before["patches"] != after["patches"]:
            lines.append(f"{name}: {before['patches']:,} patches then, {after['patches']:,} now")
        elif not same_source and before["bytes"] != after["bytes"]:
            lines.append(f"{name}: {before['bytes']:,} bytes then, {after['bytes']:,} now")
        elif before["bytes"] == after["bytes"] and before["sample"] != after["sample"]:
            lines.append(f"{name}: the same number of patches, with other content")
    if not lines and not same_source:
        if old["source"] is not None and new["source"] is not None:
            lines.append("single patches have other content")
        elif old["features"] != new["features"]:
            lines.append("other features")
    return lines
