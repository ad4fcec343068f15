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
    name = "" if len(path.name) == 32 else path.name  # TensorStore's names are drawn at random
    changed = KINDS[kind](content, random.Random(f"{name} {seed}"))
    if changed is None:
        path.unlink()
    else:
        path.write_bytes(changed)
    return content


def files(folder):
    """All files that are not empty, in an order that does not change."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def halve(path):
    """Cuts a file in the middle: of a file of arrays, some of them are gone for certain."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_in_the_middle(path):
    """Flips a bit: of a file of arrays, in the numbers and not in what tells where they are."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def largest_file(folder):
    """The largest file of a folder."""
    return max(files(folder), key=lambda path: path.stat().st_size)
