"""The bands of FLAIR's images, by name."""

from collections.abc import Sequence

from flair_jax.errors import UserError
from tfds_builder.flair.reference import BANDS


def band_indices(bands: Sequence[str]) -> list[int]:
    """Indices of bands in FLAIR's images, from 0.

    Raises:
        UserError: `bands` is empty, or has one twice or one that FLAIR does not have.
    """
    wrong = [band for band in bands if band not in BANDS or list(bands).count(band) > 1]
    if wrong or not bands:
        raise UserError(
            f"the bands {', '.join(bands) or '(none)'} are not a choice from {', '.join(BANDS)}"
            + (f": {wrong[0]!r} is unknown or given twice" if wrong else "")
        )
    return [BANDS.index(band) for band in bands]
