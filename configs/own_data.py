"""Your own images and classes, as built by flair-jax build --images=... --name=NAME.

    flair-jax train --config=own_data --config.data_dir=WHERE_YOU_BUILT_IT --config.data_config=NAME

Bands, classes, colours, weights and ignored pixels are the data set's. docs/own_data.md has an
example, from images to a map.
"""

import ml_collections

from flair_jax.config import default


def get_config() -> ml_collections.ConfigDict:
    """The baseline's recipe with augmentation, on what the data set has."""
    config = default()

    config.data_config = ""  # to be given
    config.bands = ()  # all of the data set
    config.nomenclature = "data"
    config.normalization = "scaling"  # digital numbers / 255
    config.augment = True
    return config
