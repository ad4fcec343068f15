"""The FLAIR #1 baseline: U-Net, ResNet34, five bands, no metadata, no augmentation.

    flair-jax train --config=baseline --config.data_dir=WHERE_YOU_BUILT_IT

Published score (IGN, PyTorch, five runs): test mIoU 0.5443 +- 0.0014, challenge definition, with
an encoder that starts from ImageNet weights. Not run here: the data set has to be downloaded.

Each device gets 10 patches of a batch, as in the published runs, which had 16 GPUs.
"""

import ml_collections

from flair_jax.config import default


def get_config() -> ml_collections.ConfigDict:
    """Every value of the published recipe; flair-jax config explains all keys."""
    config = default()

    config.data_config = "published"
    config.nomenclature = "baseline"  # 12 classes, and "other" with weight 0
    config.normalization = "scaling"  # digital numbers / 255
    config.metadata.use = False

    config.batch_size = 0  # 10 for each device
    config.crop_size = 0  # whole patches, 512 x 512
    config.augment = False
    config.dtype = "float32"

    config.loss_normalization = "pixels"  # as in the challenge's code
    config.learning_rate = 0.02  # SGD, no momentum, no weight decay
    config.plateau.factor = 0.5
    config.plateau.patience = 10
    config.plateau.cooldown = 4
    config.plateau.threshold = 1e-4
    config.plateau.min_lr = 1e-7
    config.num_epochs = 200
    config.early_stop_patience = 30
    config.seed = 2022
    return config
