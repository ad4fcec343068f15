"""The FLAIR #1 baseline with metadata and geometric augmentation.

    flair-jax train --config=metadata_augmentation --config.data_dir=WHERE_YOU_BUILT_IT

Published score (IGN, PyTorch, five runs): test mIoU 0.5570 +- 0.0027, challenge definition, with
an encoder that starts from ImageNet weights. Not run here: the data set has to be downloaded.
"""

import ml_collections

from flair_jax.config import default


def get_config() -> ml_collections.ConfigDict:
    """The baseline (which is the default), and what this recipe adds to it."""
    config = default()

    config.metadata.use = True
    config.metadata.encoding = "reference"
    config.metadata.fusion = "rows"  # 512 x 512 only, as the reference's

    config.augment = True
    config.augment_probability.vertical_flip = 0.5
    config.augment_probability.horizontal_flip = 0.5
    config.augment_probability.rotation = 0.5
    return config
