"""What a user may choose when detecting, and its checks."""

import dataclasses

from flair_jax.errors import UserError
from flair_jax.models.choices import STRIDE

TILE = 1024  # less of it is margin than of 512, and the activations of more would not pay
MARGIN = 128
BLENDS = ("crop", "hann")


@dataclasses.dataclass(frozen=True)
class Options:
    """Choices of one detection.

    Attributes:
        bands: numbers of the raster's bands, from 1, in the order of the model's; empty: by their
            descriptions, or all of them in order.
        resolution: pixel size in metres to resample to (bilinear); 0: the raster as it is.
        tile: side of a tile in pixels, a multiple of 32; 0: 1024, or less for a small raster.
        margin: pixels at each side of a tile that give context; -1: 128, or a quarter of a tile
            smaller than 512.
        blend: "crop" takes each tile without its margin; "hann" averages the probabilities of
            overlapping tiles, weighted by raised cosines.
        tta: average the probabilities over the eight symmetries of the square.
        batch_size: tiles at a time, over all devices; 0: one a CPU, four an accelerator.
        first_class: value of the first class: 1 as in FLAIR's masks, 0 as in the challenge.
        probabilities: write the probabilities of all classes too.
        confidence: write the margin between the best two classes, and the entropy, too.
        overwrite: replace what is there of an earlier detection.
        resume: go on with an interrupted detection.
        ema: use the moving average of the weights.
    """

    bands: tuple[int, ...] = ()
    resolution: float = 0.0
    tile: int = 0
    margin: int = -1
    blend: str = "crop"
    tta: bool = False
    batch_size: int = 0
    first_class: int = 1
    probabilities: bool = False
    confidence: bool = False
    overwrite: bool = False
    resume: bool = False
    ema: bool = False

    def check(self) -> None:
        """Raises a UserError for what cannot be chosen."""
        if self.tile < 0 or self.tile % STRIDE:
            near = max(STRIDE, round(self.tile / STRIDE) * STRIDE)
            raise UserError(
                f"--tile={self.tile} is not a multiple of {STRIDE}: set it to {near}, for example"
            )
        if self.blend not in BLENDS:
            raise UserError(f"--blend={self.blend!r} is unknown: {' or '.join(BLENDS)}")
        if self.first_class not in (0, 1):
            raise UserError(f"--first_class={self.first_class} is neither 0 nor 1")
        if self.resolution < 0:
            raise UserError(f"--resolution={self.resolution} is no pixel size: give metres")

    def tile_and_margin(self, height: int, width: int) -> tuple[int, int]:
        """Side and margin of the tiles of a raster of this size, in pixels.

        Raises:
            UserError: the margin leaves nothing of a tile, or too little to blend.
        """
        margin = self.margin
        if margin < 0:
            margin = min(MARGIN, self.tile // 4) if self.tile else MARGIN
        # A raster smaller than a tile needs no more than itself and its margins.
        enough = _multiple(max(height, width) + 2 * margin)
        tile = self.tile or max(min(TILE, enough), _multiple(4 * margin))
        blended = self.blend == "hann"
        if 4 * margin > tile if blended else 2 * margin >= tile:
            bound = "at most a quarter of (--blend=hann)" if blended else "less than half"
            raise UserError(
                f"--margin={margin} must be {bound} the tile, which is {tile}: "
                f"set --margin={tile // 4}, for example, or a larger --tile"
            )
        return tile, margin


def _multiple(pixels: int) -> int:
    """The next multiple of the network's stride."""
    return -(-pixels // STRIDE) * STRIDE
