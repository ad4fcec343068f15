"""Text files that are there whole or not at all."""

from etils import epath


def write_whole(path: epath.PathLike, text: str) -> None:
    """Writes a file under a temporary name, and gives it its own when all is written."""
    path = epath.Path(path)
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text)
    partial.replace(path)
