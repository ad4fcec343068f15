"""Files that are there whole or not at all."""

from etils import epath


def atomic_write(path: epath.PathLike, content: str | bytes) -> None:
    """Writes a file under a temporary name, and gives it its own when all is written."""
    path = epath.Path(path)
    partial = path.with_name(path.name + ".tmp")
    if isinstance(content, bytes):
        partial.write_bytes(content)
    else:
        partial.write_text(content)
    partial.replace(path)
