"""Bands of the model that are in files of their own: near infrared, height; and which they are."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flair_jax.errors import UserError
from flair_jax.inference.input_files import is_remote
from tfds_builder import bands

_NUMBERED = re.compile(r"(.+):(\d+)", re.DOTALL)
HEIGHT = "height"


@dataclasses.dataclass(frozen=True)
class BandFile:
    """A file that holds a band of the model, as the user names it.

    Attributes:
        flag: the option, such as "--nir".
        path: of the file.
        number: of its band from 1; 0 if it is not said.
    """

    flag: str
    path: str
    number: int

    @classmethod
    def parse(cls, flag: str, text: str | os.PathLike[str]) -> "BandFile":
        """Reads FILE or FILE:N; an existing file with such a name is that file.

        Raises:
            UserError: there is no such file.
        """
        text = os.fspath(text)
        whole = os.path.expanduser(text.strip())
        match = _NUMBERED.fullmatch(whole)
        path, number = whole, 0
        if match and not os.path.exists(whole):
            path, number = match[1], int(match[2])
            if number < 1:
                raise UserError(f"{flag}={text}: bands are numbered from 1")
        if not path:
            raise UserError(f"{flag} needs a file: {flag}=FILE or {flag}=FILE:N")
        if not is_remote(path) and not os.path.exists(path) and ":" not in path:
            several = (
                ": one file is expected; combine several of one system, such as\n"
                "  gdalbuildvrt all.vrt FILES"
                if "*" in path or "," in path
                else ""
            )
            raise UserError(f"there is no file {path} ({flag}){several}")
        return cls(flag, path, number)


def band_files(
    wanted: Sequence[str],
    *,
    nir: Any = "",
    height: Any = "",
    stack: Mapping[str, Any] | None = None,
    surface: Any = "",
    terrain: Any = "",
) -> dict[str, tuple[BandFile, ...]]:
    """The bands of a model that are in files of their own.

    Args:
        wanted: names of the model's bands.
        nir, height, stack, surface, terrain: see `Options`.

    Returns:
        The file of each of these bands; of a height, possibly surface and terrain.

    Raises:
        UserError: the options contradict each other or the model, or there is no such file.
    """
    given: list[tuple[str, str, Any]] = [
        (name, f"--stack {name}", file) for name, file in (stack or {}).items()
    ]
    given += [(n, f"--{n}", f) for n, f in (("nir", nir), (HEIGHT, height)) if os.fspath(f)]
    surface, terrain = os.fspath(surface), os.fspath(terrain)
    if bool(surface) != bool(terrain):
        one, other = ("surface", "terrain") if surface else ("terrain", "surface")
        raise UserError(
            f"--{one} needs --{other}: the height above ground is surface less terrain. If "
            "the file holds the height above ground itself, give it as --height"
        )
    if surface:
        given.append((HEIGHT, "--surface", surface))
    names = dict(zip(bands.names_of(wanted), wanted, strict=True))
    found: dict[str, tuple[BandFile, ...]] = {}
    for name, flag, text in given:
        known = name if name in names else bands.name_of(name)
        if known not in names:
            raise UserError(
                f"{flag} gives {name}, and the model takes {', '.join(wanted)}: leave it out"
            )
        if known in found:
            raise UserError(
                f"{names[known]} is given twice, by {found[known][0].flag} and by {flag}: give one "
                "of them"
            )
        files = [BandFile.parse(flag, text)]
        if flag == "--surface":
            files.append(BandFile.parse("--terrain", terrain))
        found[known] = tuple(files)
    if len(found) == len(names):
        raise UserError(
            f"all bands of the model ({', '.join(wanted)}) are given by files of their own: give "
            "at least one of them as --input, whose pixels are those of the map"
        )
    return {names[known]: files for known, files in found.items()}
