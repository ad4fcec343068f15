"""Published figures of FLAIR #1 and of its PyTorch baseline (Garioud et al. 2022)."""

import dataclasses

TEST_PATCHES = 15_700  # patches of the test split, of which the scores are


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

# Patches of the domains by split, from the published path lists; for train only the sum is known,
# TRAIN_PATCHES.
# fmt: off
DOMAIN_PATCHES = {
    "val": {
        "D004_2021": 1800, "D014_2020": 1750, "D029_2021": 1800, "D031_2019": 1725,
        "D058_2020": 1800, "D066_2021": 1750, "D067_2021": 1725, "D070_2020": 1775,
    },
    "test": {
        "D012_2019": 1750, "D022_2021": 500, "D026_2020": 1825, "D064_2021": 1775,
        "D068_2021": 1775, "D071_2020": 1800, "D075_2021": 750, "D076_2019": 1750,
        "D083_2020": 2025, "D085_2019": 1750,
    },
}
TRAIN_DOMAINS = frozenset({
    "D006_2020", "D007_2020", "D008_2019", "D009_2019", "D013_2020", "D016_2020", "D017_2018",
    "D021_2020", "D023_2020", "D030_2021", "D032_2019", "D033_2021", "D034_2021", "D035_2020",
    "D038_2021", "D041_2021", "D044_2020", "D046_2019", "D049_2020", "D051_2019", "D052_2019",
    "D055_2018", "D060_2021", "D063_2019", "D072_2019", "D074_2020", "D077_2021", "D078_2021",
    "D080_2021", "D081_2020", "D086_2020", "D091_2021",
})
# fmt: on
TRAIN_PATCHES = 47_587
PATCHES = 77_412  # of all splits

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
