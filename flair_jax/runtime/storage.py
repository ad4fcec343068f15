"""Storage locations of data and runs: local folders and Google Cloud Storage (gs://)."""

import importlib.util
import os

from etils import epath

from flair_jax.errors import UserError


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is a URL, such as gs://bucket/folder, and no local folder."""
    return "://" in os.fspath(path)


def check_reachable(path: epath.PathLike, flag: str) -> None:
    """Raises a UserError if a path is a URL that cannot be worked with from here.

    Args:
        path: a local path or a URL; it need not exist.
        flag: what sets it.
    """
    if not is_remote(path):
        return
    if not os.fspath(path).startswith("gs://"):
        raise UserError(
            f"{flag}={path}: of remote storage, only gs:// is supported. Mount it (s3fs, "
            "blobfuse, rclone mount), or copy what is needed to a local disk"
        )
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(
            f'{flag}={path} needs gcsfs, which is not installed: pip install -e ".[gcs]"; or mount '
            "the bucket with gcsfuse, and give the folder"
        )
    try:
        epath.Path(path).exists()
    except Exception as error:  # of gcsfs, google.auth or aiohttp: no bucket, no rights, no network
        raise UserError(
            f"{flag}={path} cannot be reached ({error or type(error).__name__}): check the name of "
            "the bucket and the rights of this account (gcloud auth application-default login), or "
            "mount the bucket with gcsfuse"
        ) from error
