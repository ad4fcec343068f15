"""The options of a detection, and their checks."""

import dataclasses
import datetime
import math
import os
from collections.abc import Mapping

from flair_jax.errors import UserError
from flair_jax.inference import tile_size
from flair_jax.inference.area_of_interest import check_bounds
from flair_jax.inference.band_selection import Limit
from flair_jax.inference.engines import ENGINES, PRECISIONS
from flair_jax.inference.percentiles import check_ranges
from flair_jax.models.choices import STRIDE

MARGIN = 128
BLENDS = ("crop", "hann")
Path = str | os.PathLike[str]
# What is built of the finished rows, and may be changed when a detection is resumed.
BUILT_LAST = ("polygons", "min_area", "min_area_raster", "simplify", "license", "acquired")


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of one detection.

    Attributes:
        bands: band numbers of the raster, from 1, in the order of the model's bands, without those
            that are in files of their own; empty: chosen by description, or all bands in order.
        nir, height: files that hold these bands, FILE or FILE:N for band N, aligned to the input's
            pixels; "": they are in the input. A height of floats is in metres above ground.
        stack: the same for any bands, by the name of the band.
        surface, terrain: files of altitudes in metres, whose difference is the height.
        stretch: (lowest, highest) value of each of the model's bands, or one for all, which become
            0 and 255; "p2" stands for percentile 2 of the band's valid pixels in the whole raster;
            empty: the model's own for rasters of the type that it was trained on. One for all does
            not apply to a height in a file of its own.
        aoi: a vector file, whose polygons are the area of interest: outside is NoData, and the map
            is cropped to their bounds; "": everything.
        bounds: (left, bottom, right, top) in the raster's coordinates, the same; empty: everything.
        resolution: ground sample distance in metres to resample to (bilinear); 0: no resampling.
        tile: side of square tiles in pixels, a multiple of 32; 0: the tiles that compute the
            fewest pixels within `memory`, see `tile_size`.
        margin: pixels of context between neighbouring tiles; -1: 128, or a quarter of a `tile`
            smaller than 512.
        memory: GB that the process on a CPU, or else each device, may take with the tiles that are
            chosen; 0: 2 on a CPU, half of a device's memory.
        blend: "crop" keeps the core of each tile, without its margin; "hann" averages the
            probabilities of overlapping tiles, weighted by a Hann window.
        tta: test-time augmentation: average the probabilities over the eight symmetries of the
            square.
        batch_size: tiles per batch, over all devices; 0: one per device.
        first_class: the value of the first class: 1 as in FLAIR's masks, 0 as in the challenge.
        probabilities: also write the probabilities of all classes.
        confidence: also write the probability of the class, its margin to the second most
            probable one, and the entropy.
        polygons: path of a GeoPackage of polygons to write, too, beside the output; "": none.
        min_area: minimum mapping unit in square metres: smaller patches are merged into the
            neighbour with the longest border, in the polygons; 0: none.
        min_area_raster: merge them in the raster, too.
        simplify: simplify the polygons, see `polygons.write_polygons`, in metres; 0: no.
        license: of the map, as an SPDX identifier such as "etalab-2.0"; "": not stated.
        acquired: when the images were taken, as a date (2021-06-30) or two (2021-06-01/2021-07-31);
            "": not stated.
        overwrite: replace existing output files and partial results.
        resume: continue an interrupted detection.
        adapt: re-estimate the batch statistics from the raster, see `adaptation`.
        engine: what computes the network: "jax", "openvino", "onnxruntime", or "auto", see
            `engines.choose`.
        precision: "float32" or "bfloat16"; "": that of the model's activations.
        ema: use the exponential moving average (EMA) of the weights; None: see `load_model`.
    """

    bands: tuple[int, ...] = ()
    nir: Path = ""
    height: Path = ""
    stack: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    surface: Path = ""
    terrain: Path = ""
    stretch: tuple[tuple[Limit, Limit], ...] = ()
    aoi: Path = ""
    bounds: tuple[float, ...] = ()
    resolution: float = 0.0
    tile: int = 0
    margin: int = -1
    memory: float = 0.0
    blend: str = "crop"
    tta: bool = False
    batch_size: int = 0
    first_class: int = 1
    probabilities: bool = False
    confidence: bool = False
    polygons: str = ""
    min_area: float = 0.0
    min_area_raster: bool = False
    simplify: float = 0.0
    license: str = ""
    acquired: str = ""
    overwrite: bool = False
    resume: bool = False
    adapt: bool = False
    engine: str = "auto"
    precision: str = ""
    ema: bool | None = None

    def check(self) -> None:
        """Raises a UserError for an invalid option."""
        if self.tile < 0 or self.tile % STRIDE:
            near = max(STRIDE, round(self.tile / STRIDE) * STRIDE)
            raise UserError(
                f"--tile={self.tile} is not a multiple of {STRIDE}: set it to {near}, for example"
            )
        check_ranges(self.stretch)
        if self.bounds:
            check_bounds(self.bounds)
            if self.aoi:
                raise UserError(f"give either --aoi={self.aoi} or --bounds")
        if self.blend not in BLENDS:
            raise UserError(f"--blend={self.blend!r} is unknown: {' or '.join(BLENDS)}")
        if self.engine not in ENGINES:
            raise UserError(f"--engine={self.engine!r} is unknown: {' or '.join(ENGINES)}")
        if self.precision not in ("", *PRECISIONS):
            raise UserError(f"--precision={self.precision!r} is unknown: {' or '.join(PRECISIONS)}")
        if self.first_class not in (0, 1):
            raise UserError(f"--first_class={self.first_class} is neither 0 nor 1")
        if self.margin < -1:
            raise UserError(f"--margin={self.margin} is not a number of pixels")
        if not 0 <= self.memory < math.inf:
            raise UserError(f"--memory={self.memory} is not a number of GB, such as 4")
        if self.memory and self.tile:
            raise UserError("--memory chooses the tiles, and --tile gives them: leave one out")
        if not 0 <= self.resolution < math.inf:
            raise UserError(
                f"--resolution={self.resolution} is not a ground sample distance: give metres"
            )
        self._check_products()

    def _check_products(self) -> None:
        for name in ("min_area", "simplify"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                unit = "square metres" if name == "min_area" else "metres"
                raise UserError(f"--{name}={value:g}: expected {unit}, a positive number")
        if self.simplify and not self.polygons:
            raise UserError(
                f"--simplify={self.simplify:g} is for polygons: give --polygons=NAME.gpkg, too"
            )
        if self.min_area and not (self.polygons or self.min_area_raster):
            raise UserError(
                f"--min_area={self.min_area:g} is for polygons: give --polygons=NAME.gpkg, or "
                "--min_area_raster to merge small patches in the raster"
            )
        if self.min_area_raster and not self.min_area:
            raise UserError("--min_area_raster needs --min_area=M2, the smallest area to keep")
        self.acquisition()

    def acquisition(self) -> tuple[str, ...]:
        """The first and the last date of the images, "2021-06-30"; () if not stated.

        Raises:
            UserError: `acquired` is something else.
        """
        if not self.acquired:
            return ()
        dates = self.acquired.split("/")
        try:
            parsed = [datetime.date.fromisoformat(date) for date in dates]
        except ValueError:
            parsed = []
        if len(parsed) not in (1, 2) or parsed != sorted(parsed):
            raise UserError(
                f"--acquired={self.acquired}: expected a date such as 2021-06-30, or the first and "
                "the last one, such as 2021-06-01/2021-07-31"
            )
        return dates[0], dates[-1]

    @property
    def blended(self) -> bool:
        """Whether overlapping tiles are averaged."""
        return self.blend == "hann"

    @property
    def context(self) -> int:
        """Pixels of context between neighbouring tiles: the margin, or its default."""
        if self.margin >= 0:
            return self.margin
        return min(MARGIN, self.tile // 4) if self.tile else MARGIN

    @property
    def only_classes(self) -> bool:
        """Whether a tile's classes are all that is wanted of it."""
        averaged = self.tta or self.blended
        return not (averaged or self.probabilities or self.confidence)

    def tiles(
        self, height: int, width: int, *, pixels: int, batch: int
    ) -> tuple[tuple[int, int], int]:
        """Height and width, and margin, of the tiles of a raster of this size.

        Args:
            height, width: of the raster.
            pixels: of a tile, at most, unless `tile` is given.
            batch: tiles of a row that are computed together.

        Raises:
            UserError: the margin is too large for the tile, or the memory too small for any.
        """
        blended, margin = self.blended, self.context
        if not self.tile:
            return tile_size.choose(
                height, width, margin, pixels=pixels, batch=batch, blended=blended, square=self.tta
            ), margin
        if 4 * margin > self.tile if blended else 2 * margin >= self.tile:
            bound = "at most a quarter of (--blend=hann)" if blended else "less than half"
            raise UserError(
                f"--margin={margin} must be {bound} the tile, which is {self.tile}: "
                f"set --margin={self.tile // 4}, for example, or a larger --tile"
            )
        return (self.tile, self.tile), margin
