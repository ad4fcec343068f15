"""FLAIR-HUB: U-Net, ResNet34, red, green, blue, near infrared and height, COSIA's 15 classes.

    flair-jax train --config=hub --config.data_dir=WHERE_YOU_BUILT_IT

The recipe of IGN's code for FLAIR-HUB. No score is published for this network. Not run here: the
data set has to be downloaded. docs/hub.md has the steps from the download to the scores.
"""

import ml_collections

from flair_jax.config import default


def get_config() -> ml_collections.ConfigDict:
    """Every value of the published recipe; flair-jax config explains all keys."""
    config = default()

    config.data_config = "hub"
    config.bands = ()  # all of the data set
    config.nomenclature = "data"  # the data set's: 15 classes, and 4 with weight 0
    config.normalization = "custom"
    # Published for the aerial bands. None are for heights above ground in steps of 0.2 m: these are
    # what participants of FLAIR #1's challenge computed of its fifth band.
    config.normalization_means = (105.66, 111.35, 102.18, 106.59, 17.5)
    config.normalization_stds = (52.23, 45.62, 44.30, 39.78, 30.3)
    config.metadata.use = False

    config.batch_size = 5
    config.crop_size = 0  # whole patches, 512 x 512
    config.augment = False
    config.dtype = "float32"

    config.loss_normalization = "weights"
    config.optimizer = "adamw"
    config.weight_decay = 0.01
    config.schedule = "one_cycle"
    config.warmup = 0.2
    config.learning_rate = 5e-5
    config.num_epochs = 150
    config.monitor = "val_miou"
    config.early_stop_patience = 20
    config.seed = 2025
    return config
