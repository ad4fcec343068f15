"""JAX's persistent compilation cache, so that later starts need not compile again."""

import os

import jax
from etils import epath


def use(folder: str) -> None:
    """Keeps compiled programs in a folder that only its user may read, unless JAX has one set.

    Args:
        folder: made if missing; "default" is one in the user's cache; "" is none.
    """
    if not folder or jax.config.values["jax_compilation_cache_dir"]:
        return
    if folder == "default":
        folder = os.environ.get("XDG_CACHE_HOME", "~/.cache") + "/flair_jax/compiled"
    path = epath.Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:  # a home that cannot be written to is no reason not to train
        return
    jax.config.update("jax_compilation_cache_dir", os.fspath(path))
    # By default JAX keeps nothing that compiles within a second: the initial weights are made by
    # about seventy such programs, which together take longer than the training step.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
