"""Detection on many rasters: one map for each, in one folder."""

import dataclasses
import os
import re
import traceback
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from etils import epath

from flair_jax.errors import UserError
from flair_jax.inference import detection, outputs
from flair_jax.inference.area_of_interest import OutsideError
from flair_jax.inference.input_files import expand
from flair_jax.inference.options import Options
from flair_jax.inference.predictor import Model, load_model
from flair_jax.runtime import console
from flair_jax.runtime.preemption import Preempted


@dataclasses.dataclass
class Outcome:
    """What became of each input.

    Attributes:
        maps: the map of each input that has one now, by the input.
        outside: inputs that the area of interest does not touch; they have no map.
        failed: why each of the others has none.
    """

    maps: dict[str, epath.Path] = dataclasses.field(default_factory=dict)
    outside: list[str] = dataclasses.field(default_factory=list)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)

    def summary(self) -> str:
        """The numbers, and the failures one by one."""
        total = len(self.maps) + len(self.outside) + len(self.failed)
        lines = [f"{len(self.maps)} of {total} rasters have a map"]
        if self.outside:
            lines.append(f"{len(self.outside)} are outside the area of interest")
        if self.failed:
            lines.append(f"{len(self.failed)} failed:")
            lines += [f"  {path}: {why}" for path, why in self.failed.items()]
        return "\n".join(lines)


def detect_rasters(
    checkpoint: str | os.PathLike[str] | Model,
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output_dir: str | os.PathLike[str],
    **options: Any,
) -> Outcome:
    """Predicts the land cover of each of many rasters, NAME.tif for the raster NAME.

    A map that is finished with the same settings is kept, and an interrupted one is continued,
    unless `overwrite` is given. After the failure of one raster, the others are still computed. The
    model is loaded once.

    Args:
        checkpoint, inputs: see `detect_raster`; each of the inputs is one raster.
        output_dir: the folder of the maps.
        options: the attributes of `Options`, by name; `resume` is of no effect.

    Returns:
        What became of each input.

    Raises:
        UserError: an option does not fit, there is no checkpoint, or two maps would have the same
            name, or that of an input.
        Preempted: by Ctrl-C or SIGTERM; the same call continues.
    """
    chosen = Options(**options)
    chosen = dataclasses.replace(chosen, resume=not chosen.overwrite)
    chosen.check()
    if chosen.polygons:
        raise UserError(
            f"--polygons={chosen.polygons} is one file, and --output_dir makes many maps: make the "
            "polygons one by one, with --output"
        )
    paths = expand(inputs)
    maps = _outputs(paths, output_dir, chosen)
    model = checkpoint if isinstance(checkpoint, Model) else load_model(checkpoint, ema=chosen.ema)
    found = Outcome()
    of_options = {f.name: getattr(chosen, f.name) for f in dataclasses.fields(chosen)}
    for number, (path, output) in enumerate(zip(paths, maps, strict=True), 1):
        console.log(f"raster {number:,} of {len(paths):,}: {path}")
        try:
            written = detection.detect_raster(model, [path], output, **of_options)
            found.maps[path] = written[0]
        except OutsideError as error:
            console.log(str(error))
            found.outside.append(path)
        except UserError as error:
            console.log(f"error: {error}")
            found.failed[path] = str(error).partition("\n")[0]
        except Preempted:
            console.log(found.summary())
            raise
        except Exception as error:  # a fault of the program must not cost the other maps
            console.log(traceback.format_exc())
            found.failed[path] = f"{type(error).__name__}: {error}".partition("\n")[0]
    console.log(found.summary())
    return found


def _outputs(
    paths: Sequence[str], output_dir: str | os.PathLike[str], options: Options
) -> list[epath.Path]:
    """The map of each input.

    Raises:
        UserError: two of them would write the same file, or one would replace an input.
    """
    folder = os.path.expanduser(os.fspath(output_dir))
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(f"--output_dir={folder} is a file: give a folder")
    paths_of_maps = [detection.local_path(os.path.join(folder, f"{_name(p)}.tif")) for p in paths]
    writer: dict[str, str] = {}  # lower case: some file systems do not tell the cases apart
    for path, output in zip(paths, paths_of_maps, strict=True):
        products = outputs.products(output, options)
        detection.check_not_read(products, paths)
        for product in products.values():
            other = writer.setdefault(str(product).lower(), path)
            if other != path or (other == path and paths.count(path) > 1):
                raise UserError(
                    f"{other} and {path} would both write {product}"
                    if other != path
                    else f"{path} is given twice"
                )
    return paths_of_maps


def _name(path: str) -> str:
    """The name of the map of an input, without its suffix.

    Raises:
        UserError: the input has none.
    """
    name = path
    if re.match(r"[a-z][\w+.-]*://", path, re.IGNORECASE):
        name = re.sub(r"[?#].*", "", path)
    stem = PurePosixPath(name.replace(":", "/").replace('"', "")).stem
    if not stem or stem == "..":
        raise UserError(f"{path} has no name that --output_dir could take: give --output")
    return stem
