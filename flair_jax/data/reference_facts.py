"""Published figures of FLAIR #1 and of its PyTorch baseline (Garioud et al. 2022)."""

import dataclasses

from tfds_builder.flair.reference import TEST_PATCHES as TEST_PATCHES  # of which the scores are


@dataclasses.dataclass(frozen=True)
class Score:
    """Published test mIoU by the challenge's definition: mean and standard deviation of 5 runs."""

    mean: float
    std: float


# By (metadata as configured here, augmentation).
MIOU = {
    ("none", False): Score(0.5443, 0.0014),
    ("reference, rows", True): Score(0.5570, 0.0027),
}

# The baseline's recall by class, read off the published confusion matrix: two digits.
RECALL = {
    "building": 0.89,
    "pervious surface": 0.68,
    "impervious surface": 0.81,
    "bare soil": 0.47,
    "water": 0.90,
    "coniferous": 0.36,
    "deciduous": 0.82,
    "brushwood": 0.43,
    "vineyard": 0.88,
    "herbaceous vegetation": 0.68,
    "agricultural land": 0.77,
    "plowed land": 0.44,
}

# By mask value: percentage of the pixels of train and val together, and of test; 0: none.
CLASS_PERCENT = {
    1: (8.14, 8.60),
    2: (8.25, 7.34),
    3: (13.72, 14.98),
    4: (3.47, 4.36),
    5: (4.88, 5.98),
    6: (2.74, 2.39),
    7: (15.38, 13.91),
    8: (6.95, 6.91),
    9: (3.13, 3.87),
    10: (17.84, 22.17),
    11: (10.98, 6.95),
    12: (3.88, 2.25),
    13: (0.03, 0.04),
    14: (0.15, 0.0),
    15: (0.15, 0.01),
    16: (0.05, 0.0),
    17: (0.01, 0.03),
    18: (0.12, 0.20),
    19: (0.14, 0.0),
}

# Mean and standard deviation of each band in digital numbers, as published with the weights.
BANDS = {
    "red": (105.08, 52.17),
    "green": (110.87, 45.38),
    "blue": (101.82, 44.0),
    "nir": (106.38, 39.69),
    "height": (53.26, 79.3),
}
# The height band in steps of 0.2 m: mean and standard deviation that participants of the challenge
# computed from its images and normalised with. The published 53.26 +- 79.3 can only be of heights
# that were stretched about fivefold and clipped at 255.
HEIGHT_IN_STEPS_OF_20_CM = (17.5, 30.3)

# The same of FLAIR-HUB's aerial images (Garioud et al. 2025).
HUB_BANDS = {
    "red": (105.66, 52.23),
    "green": (111.35, 45.62),
    "blue": (102.18, 44.30),
    "nir": (106.59, 39.78),
}
