"""Damage to files, as disks, crashes and careless hands do it."""

import random


def cut(content, rng):
    return content[: rng.randrange(len(content))]


def zeroed_block(content, rng):
    size = min(8192, (len(content) + 1) // 2)
    start = rng.randrange(len(content) - size + 1)
    return content[:start] + bytes(size) + content[start + size :]


def flipped_bit(content, rng):
    position = rng.randrange(len(content))
    changed = bytearray(content)
    changed[position] ^= 1 << rng.randrange(8)
    return bytes(changed)


def missing(content, rng):
    return None


KINDS = {kind.__name__: kind for kind in (cut, zeroed_block, flipped_bit, missing)}


def damage(path, kind, seed=0):
    """Damages a file that is not empty; returns what it held."""
    content = path.read_bytes()
    changed = KINDS[kind](content, random.Random(f"{path.name} {seed}"))
    if changed is None:
        path.unlink()
    else:
        path.write_bytes(changed)
    return content


def files(folder):
    """All files that are not empty, in an order that does not change."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
