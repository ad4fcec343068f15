"""Atomic file writes."""

from etils import epath


def atomic_write(path: epath.PathLike, content: str | bytes) -> None:
    """Writes a file under a temporary name, then renames it: it is never seen half-written."""
    path = epath.Path(path)
    partial = path.with_name(path.name + ".tmp")
    if isinstance(content, bytes):
        partial.write_bytes(content)
    else:
        partial.write_text(content)
    partial.replace(path)
