"""What a map was made from and with: input files and their SHA-256, versions, the model's card."""

import hashlib
import importlib
import os
import platform
import threading
import urllib.parse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import rasterio
from etils import epath

import flair_jax
from flair_jax.inference import engines
from flair_jax.inference.input_files import is_remote

_CHUNK = 1 << 22  # bytes
_LISTED = 8  # inputs in a tag


class FileHashes:
    """Computes the SHA-256 of input files in a thread, while other things are computed.

    Used as a context manager; at its end the thread stops, finished or not.

    Args:
        names: the inputs as they were given, of which the remote ones are not hashed.
        files: the local files that they consist of.
    """

    def __init__(self, names: Sequence[str], files: Sequence[str]) -> None:
        self._remote = [name for name in names if is_remote(name)]
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, "hash")
        self._hashes = [(path, self._pool.submit(self._hash, path)) for path in files]

    def __enter__(self) -> "FileHashes":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def result(self) -> list[dict[str, Any]]:
        """Waits for the thread.

        Returns:
            For each file "path", "bytes" and "sha256"; where it is not hashed, "sha256" is None,
            and "reason" says why.
        """
        found = [{"path": path, **future.result()} for path, future in self._hashes]
        for name in self._remote:
            found.append(
                {"path": public_name(name), "bytes": None, "sha256": None, "reason": "remote"}
            )
        return found

    def _hash(self, path: str) -> dict[str, Any]:
        digest, size = hashlib.sha256(), 0
        try:
            with open(path, "rb") as file:
                while chunk := file.read(_CHUNK):
                    if self._stop.is_set():
                        return {}
                    digest.update(chunk)
                    size += len(chunk)
        except OSError as error:
            return {"bytes": None, "sha256": None, "reason": str(error)}
        return {"bytes": size, "sha256": digest.hexdigest()}


def public_name(path: str) -> str:
    """The name of an input without what may be secret: user, password and query of a URL."""
    if not is_remote(path):
        return path
    before, scheme, after = path.rpartition("/vsicurl/")
    if "://" not in after:
        return path
    parts = urllib.parse.urlsplit(after)
    host = parts.netloc.rpartition("@")[2]
    return before + scheme + urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", ""))


def in_few(names: Sequence[str]) -> str:
    """Names of inputs for a tag: the first ones, and how many there are in all."""
    shown = [_printable(public_name(name)) for name in names[:_LISTED]]
    more = [f"and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
    return "; ".join(shown + more)


def tags(begun: str, inputs: Sequence[str], data_license: str) -> dict[str, str]:
    """Tags of a GeoTIFF that tell when, with what, from what and under which licence it was made.

    Args:
        begun: when the detection was begun, see `resume.PartialJob.begin`.
        inputs: the names of the inputs.
        data_license: of the map, or "".
    """
    found = {
        "TIFFTAG_DATETIME": begun.replace("-", ":").replace("T", " ").rstrip("Z"),
        "TIFFTAG_SOFTWARE": f"flair-jax {flair_jax.__version__}",
        "INPUTS": in_few(inputs),
    }
    if data_license:
        text = _printable(data_license)
        found |= {"LICENSE": text, "TIFFTAG_COPYRIGHT": text}
    return found


def _printable(text: str) -> str:
    """A text without the characters that XML, and so a tag, cannot hold."""
    return "".join(c if c.isprintable() else "?" for c in text)


def versions(engine: str) -> dict[str, str]:
    """The versions of what computed a map.

    Args:
        engine: see `engines`.
    """
    found = {
        "flair-jax": flair_jax.__version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "rasterio": rasterio.__version__,
        "gdal": rasterio.__gdal_version__,
    }
    if engine != engines.JAX:
        found[engine] = importlib.import_module(engine).__version__
    return found


def model_card(checkpoint: str) -> str:
    """Where a model is described: its README.md, else its spec, `model.json`; "" if nowhere.

    Args:
        checkpoint: the path that it was loaded from, or hf://organisation/repository.
    """
    if checkpoint.startswith("hf://"):
        parts = checkpoint.removeprefix("hf://").split("/")
        return "https://huggingface.co/" + "/".join(parts[:2])
    folders = [epath.Path(os.path.abspath(checkpoint))]
    if folders[0].name.isdigit():  # of a step
        folders.append(folders[-1].parent)
    if folders[-1].name == "checkpoints":  # of a run
        folders.append(folders[-1].parent)
    folders.append(folders[0] / "checkpoints")
    paths = [folder / name for name in ("README.md", "model.json") for folder in folders]
    return next((os.fspath(path) for path in paths if path.exists()), "")
