"""The packages that read and write vector files: pyogrio and shapely, of the extra `vector`."""

import importlib
import importlib.util
from types import ModuleType

from flair_jax.errors import UserError


def packages(flag: str) -> tuple[ModuleType, ModuleType]:
    """pyogrio and shapely.

    Args:
        flag: the option that needs them, for the message.

    Raises:
        UserError: they are not installed.
    """
    names = "pyogrio", "shapely"
    if not all(map(importlib.util.find_spec, names)):
        raise UserError(f"{flag} needs pyogrio and shapely: pip install 'flair-jax[vector]'")
    pyogrio, shapely = map(importlib.import_module, names)
    return pyogrio, shapely
