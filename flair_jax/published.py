"""Scores that IGN published for its PyTorch baseline on FLAIR #1 (Garioud et al. 2022)."""

import dataclasses

TEST_PATCHES = 15_700  # patches of the test split that the scores are of


@dataclasses.dataclass(frozen=True)
class Score:
    """A published test mIoU by the challenge's definition: mean and deviation of five runs."""

    mean: float
    deviation: float


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
