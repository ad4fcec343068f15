"""Choices of a model's configuration, and image sizes of the U-Net; does not import JAX."""

from flair_jax.errors import UserError

FUSIONS = ("rows", "channels")
ROW_FUSION_SIZE = 512  # pixels: a bottleneck of 16 rows for the metadata's 16 numbers
STRIDE = 32  # of the bottleneck: image sizes must be multiples of it
LOSS_NORMALIZATIONS = ("pixels", "weights")


def check_size(height: int, width: int, *, by_rows: bool) -> None:
    """Raises a UserError unless the U-Net takes images of this size.

    Args:
        height, width: in pixels.
        by_rows: whether metadata is fused along the rows.
    """
    if height % STRIDE or width % STRIDE:
        raise UserError(
            f"the U-Net takes heights and widths that are multiples of {STRIDE}, not "
            f"{height} x {width}; set config.crop_size to a multiple of {STRIDE}"
        )
    if by_rows and {height, width} != {ROW_FUSION_SIZE}:
        raise UserError(
            f"the metadata's row fusion is defined for {ROW_FUSION_SIZE} x {ROW_FUSION_SIZE} "
            f"pixels (16 numbers, 16 rows), not {height} x {width}: set config.crop_size=0 (whole "
            "patches of 512), or config.metadata.fusion='channels'"
        )
