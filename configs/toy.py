"""A first run of everything: synthetic data, small patches, a few epochs, minutes on a laptop.

flair-jax train --config=toy
"""

import ml_collections

from flair_jax.config import default


def get_config() -> ml_collections.ConfigDict:
    """The baseline's recipe on synthetic data; the data set is made and built on first use."""
    config = default()
    config.synthetic.use = True
    config.synthetic.patch_size = 96

    config.batch_size = 8
    config.augment = True
    config.learning_rate = 0.05
    config.num_epochs = 4
    config.log_every_steps = 8
    config.predict_after_training = True
    return config
