"""Challenge submission: one flat zip of PRED_<number>.tif files, checked."""

import re
import warnings
import zipfile

import numpy as np
import rasterio
from etils import epath
from rasterio.io import MemoryFile

from flair_jax.data.nomenclature import BASELINE, Nomenclature
from flair_jax.errors import UserError
from flair_jax.runtime import console

_NAME = re.compile(r"PRED_\d+\.tif")
# Of all files in the zip, so that equal predictions give an equal zip.
_DATE = (2022, 11, 21, 0, 0, 0)


def check_submittable(path: epath.PathLike, split: str, nomenclature: Nomenclature) -> None:
    """Checks, before anything is predicted, that the predictions can be submitted.

    Args:
        path: the zip to write.
        split: name of the split to predict.
        nomenclature: of the model.

    Raises:
        UserError: the challenge does not take this split or these classes, or the path cannot be
            written.
    """
    path = epath.Path(path).expanduser()
    if path.suffix != ".zip" or path.is_dir() or not path.parent.is_dir():
        raise UserError(f"--submission={path}: expected a .zip file in a folder that exists")
    if split != "test":
        raise UserError(f"--submission is of the test split, not of {split!r} (--split)")
    classes = [(c.name, c.values) for c in nomenclature.classes]
    if classes != [(c.name, c.values) for c in BASELINE.classes]:
        raise UserError(
            f"--submission: the challenge has the {len(BASELINE)} classes of the nomenclature "
            f"'baseline', and this model has the {len(nomenclature)} of {nomenclature.name!r}: "
            "predict with a model that was trained on those"
        )


def write_submission(
    predictions: epath.PathLike, path: epath.PathLike, count: int, size: tuple[int, int]
) -> None:
    """Writes the predictions of a split as a zip, atomically.

    Args:
        predictions: folder of `PRED_<number>.tif` files.
        path: the zip; one of that name is replaced.
        count: how many patches the split has.
        size: (height, width) of every patch in pixels.

    Raises:
        UserError: there are too many or too few files, or one has another name or format.
    """
    path = epath.Path(path).expanduser()
    files = sorted(epath.Path(predictions).iterdir(), key=lambda file: file.name)
    misnamed = [file.name for file in files if not _NAME.fullmatch(file.name)]
    if misnamed or len(files) != count:
        raise UserError(
            f"no submission: {predictions} has {len(files):,} files for the split's {count:,} "
            "patches" + (f", and one is {misnamed[0]}, not PRED_<number>.tif" if misnamed else "")
        )
    partial = path.with_name(path.name + ".partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in console.progress_bar(files, count, "submission", "file"):
                check_file(file, size)
                entry = zipfile.ZipInfo(file.name, _DATE)
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_file(path: epath.PathLike, size: tuple[int, int]) -> None:
    """Checks that a file has the challenge's format.

    Args:
        path: a GeoTIFF.
        size: (height, width) in pixels.

    Raises:
        UserError: it cannot be read, or is not one band of uint8, LZW, of this size, with classes
            from 0 to 12.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            memory = MemoryFile(epath.Path(path).read_bytes())
            raster = memory.open()
        with memory, raster:
            profile = {
                "driver": raster.driver,
                "bands": raster.count,
                "type": raster.dtypes[0],
                "compression": str(raster.profile.get("compress")).lower(),
                "size": raster.shape,
            }
            highest = int(np.max(raster.read()))
    except rasterio.errors.RasterioError as error:
        raise UserError(f"no submission: {path} cannot be read ({error})") from error
    expected = {
        "driver": "GTiff", "bands": 1, "type": "uint8", "compression": "lzw", "size": tuple(size)
    }  # fmt: skip
    wrong = [f"{k} {profile[k]}, not {expected[k]}" for k in expected if profile[k] != expected[k]]
    if highest >= len(BASELINE):
        wrong.append(f"class {highest}, where the highest is {len(BASELINE) - 1}")
    if wrong:
        raise UserError(f"no submission: {path} has {'; '.join(wrong)}")
