"""Where a result comes from: the command line, the host, the versions, the commit of the source."""

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import flair_jax

PACKAGES = ("jax", "flax", "numpy")


def provenance() -> dict[str, Any]:
    """`command`, name of the `host`, `versions`, and `git_commit`, or None outside of git."""
    return {
        "command": shlex.join(sys.orig_argv),
        "host": platform.node(),
        "versions": {
            "flair_jax": flair_jax.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "git_commit": git_commit(Path(flair_jax.__file__).parent),
    }


def git_commit(folder: Path) -> str | None:
    """The commit that a folder of source is checked out from, with "-dirty" if it was changed.

    None if git is missing, or does not track the folder: it may be an environment in a checkout of
    something else.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None
