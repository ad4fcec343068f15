"""Published figures of FLAIR and of its PyTorch baseline (Garioud et al. 2022, 2023)."""

import dataclasses
from collections.abc import Mapping

from tfds_builder.flair.reference import NAME, NAME_2, TEST_PATCHES, TEST_PATCHES_2
from tfds_builder.hub.reference import NAME as HUB_NAME


@dataclasses.dataclass(frozen=True)
class Score:
    """Published test mIoU by the challenge's definition: mean and standard deviation of 5 runs.

    `std` is None where one number is published.
    """

    mean: float
    std: float | None = None

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + (f" +- {self.std:.4f}" if self.std is not None else "")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A test split with published scores of the U-Net.

    Attributes:
        name: of the data set.
        patches: number of patches of the test split.
        miou: by (metadata as configured here, augmentation).
        recall: the baseline's by class; empty where it is not published.
    """

    name: str
    patches: int
    miou: Mapping[tuple[str, bool], Score]
    recall: Mapping[str, float]

    @property
    def plain(self) -> Score:
        """Without metadata and augmentation."""
        return self.miou["none", False]

    @property
    def with_metadata(self) -> Score:
        """With the reference's metadata, and augmentation."""
        return self.miou["reference, rows", True]


# The baseline's recall by class, read off the published confusion matrix: two digits.
_RECALL = {
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

# By name of the data set.
BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            NAME,
            TEST_PATCHES,
            {
                ("none", False): Score(0.5443, 0.0014),
                ("reference, rows", True): Score(0.5570, 0.0027),
            },
            _RECALL,
        ),
        Benchmark(
            NAME_2,
            TEST_PATCHES_2,
            {("none", False): Score(0.5470), ("reference, rows", True): Score(0.5593)},
            {},
        ),
    )
}

# By mask value: percentage of the pixels of train and val together, and of FLAIR #1's test; 0:
# none.
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
FLAIR_HEIGHTS = (NAME, NAME_2, HUB_NAME)  # data sets whose heights are in steps of 0.2 m

# The same of FLAIR-HUB's aerial images (Garioud et al. 2025).
HUB_BANDS = {
    "red": (105.66, 52.23),
    "green": (111.35, 45.62),
    "blue": (102.18, 44.30),
    "nir": (106.59, 39.78),
}
