"""A configuration file that reads a workdir's: `--config=flair_jax/saved_config.py:WORKDIR`."""

import ml_collections

from flair_jax import config


def get_config(workdir: str) -> ml_collections.ConfigDict:
    """The configuration saved in a workdir."""
    return config.load(workdir)
