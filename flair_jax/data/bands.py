"""The bands of FLAIR's images, and the selection of bands by name."""

from collections.abc import Sequence

from flair_jax.errors import UserError
from tfds_builder.flair.reference import BANDS


def band_indices(bands: Sequence[str], available: Sequence[str] = BANDS) -> list[int]:
    """Indices of bands in images, from 0.

    Args:
        bands: names of the bands that are wanted.
        available: names of the images' bands, in order.

    Raises:
        UserError: `bands` is empty, or has one twice or one that is not available.
    """
    wrong = [band for band in bands if band not in available or list(bands).count(band) > 1]
    if wrong or not bands:
        raise UserError(
            f"the bands {', '.join(bands) or '(none)'} are not a choice from "
            f"{', '.join(available)}"
            + (f": {wrong[0]!r} is unknown or given twice" if wrong else "")
        )
    return [list(available).index(band) for band in bands]
