"""Files of a source, in folders and in zips: finding and reading them."""

import functools
import os
import stat
import zipfile
from collections.abc import Iterator
from typing import NamedTuple

from tfds_builder.flair.faults import BuildError

# What Python's zipfile reads.
_COMPRESSIONS = (
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
    zipfile.ZIP_BZIP2,
    zipfile.ZIP_LZMA,
)


class Unreadable(Exception):
    """A file cannot be read; the message gives the reason, without the file's name."""


class File(NamedTuple):
    """A file in a folder (`archive` is empty) or in a zip.

    Attributes:
      archive: the path of the zip.
      path: the path in the zip, or in the file system.
      size: in bytes.
      crc: CRC-32 of the content, as the zip has it; None in folders.
      time: of modification in ns since 1970; 0 in zips.
    """

    archive: str
    path: str
    size: int = 0
    crc: int | None = None
    time: int = 0

    def __str__(self) -> str:
        return f"{self.archive}/{self.path}" if self.archive else self.path

    def read(self) -> bytes:
        """Returns the content; of a file in a zip, it is checked against the zip's CRC-32.

        Raises:
          Unreadable: if it is damaged or gone.
        """
        if not self.archive:
            try:
                with open(self.path, "rb") as file:
                    return file.read()
            except OSError as error:
                raise Unreadable(error.strerror or str(error)) from error
        try:
            return _opened(self.archive, os.stat(self.archive).st_mtime_ns).read(self.path)
        except Exception as error:  # its kind depends on compression and damage
            raise Unreadable(f"damaged in the zip: {error}") from error


@functools.lru_cache(maxsize=4)
def _opened(archive: str, time: int) -> zipfile.ZipFile:
    del time  # of modification: a zip that was replaced is opened anew
    return zipfile.ZipFile(archive)


class Damage(NamedTuple):
    """A zip or a metadata file that cannot be read, with the reason."""

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


class Listing:
    """The files below a folder and in its zips, in a fixed order, without hidden ones.

    Attributes:
      damage: zips that cannot be listed or read, known after the iteration.
      nested: zips in zips, which are not looked into.
      special: pipes, sockets and devices, which are not files to read.
    """

    def __init__(self, root: str) -> None:
        """Takes the folder; links are followed."""
        self._root = root
        self.damage: list[Damage] = []
        self.nested: list[str] = []
        self.special: list[str] = []

    def __iter__(self) -> Iterator[File]:
        seen = set()

        def fail(error: OSError) -> None:
            raise BuildError(f"cannot list {error.filename}: {error.strerror}")

        for folder, subfolders, names in os.walk(self._root, onerror=fail, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # a link to a parent, or a second one to the same folder
                subfolders.clear()
                continue
            seen.add(real)
            subfolders[:] = sorted(name for name in subfolders if not _hidden(name))
            for name in sorted(names):
                if not _hidden(name):
                    yield from self._file(os.path.join(folder, name))

    def _file(self, path: str) -> Iterator[File]:
        try:
            status = os.stat(path)
        except OSError:  # a broken link: reading it will fail
            yield File("", path)
            return
        if not stat.S_ISREG(status.st_mode):
            self.special.append(path)
            return
        yield File("", path, status.st_size, time=status.st_mtime_ns)
        if path.lower().endswith(".zip"):
            try:
                yield from self._zipped(path)
            # Names may be no text, lengths beyond the file, the version unknown.
            except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
                self.damage.append(Damage(path, str(error)))

    def _zipped(self, path: str) -> Iterator[File]:
        with zipfile.ZipFile(path) as archive:
            members = sorted(archive.infolist(), key=lambda member: member.filename)
        for member in members:
            name = member.filename
            if member.is_dir() or any(map(_hidden, name.split("/"))):
                continue
            if reason := _obstacle(member):
                self.damage.append(Damage(path, f"{reason}; unpack it"))
                return
            if name.lower().endswith(".zip"):
                self.nested.append(f"{path}/{name}")
            yield File(path, name, member.file_size, crc=member.CRC)


def _obstacle(member: zipfile.ZipInfo) -> str:
    """Returns why an image, mask or metadata file in a zip cannot be read, or ""."""
    if not member.filename.lower().endswith((".tif", ".tiff", ".json")):
        return ""
    if member.flag_bits & 0x1:
        return "it is encrypted"
    if member.compress_type not in _COMPRESSIONS:
        return f"its compression (method {member.compress_type}) is not supported"
    return ""


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
