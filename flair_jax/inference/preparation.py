"""What a detection works with, from its options: the raster, its tiles, the devices, the engine."""

import dataclasses
import functools
from collections.abc import Sequence

from jax.sharding import Mesh

from flair_jax.data.reference_facts import FLAIR_HEIGHTS
from flair_jax.errors import UserError
from flair_jax.inference import area_of_interest, engines, tile_size
from flair_jax.inference.adaptation import adapt_to_raster
from flair_jax.inference.band_files import band_files
from flair_jax.inference.band_selection import Scaling
from flair_jax.inference.options import Options
from flair_jax.inference.predictor import Model
from flair_jax.inference.raster_source import Source
from flair_jax.inference.tile_predictor import TilePredictor
from flair_jax.inference.tiles import Grid
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime.sharding import check_batch_size, make_mesh


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What a detection works with.

    Attributes:
        source: the raster, with the area of interest.
        grid: its tiles.
        margin: pixels of context between neighbouring tiles.
        mesh: the devices.
        engine: the name of the engine.
        engine_note: what to report of its choice, or "".
        precision: of the activations.
        batch_size: tiles at a time.
        options: of the detection.
    """

    source: Source
    grid: Grid
    margin: int
    mesh: Mesh
    engine: str
    engine_note: str
    precision: str
    batch_size: int
    options: Options

    @property
    def tile(self) -> str:
        """Height and width of a tile."""
        return f"{self.grid.vertical.tile} x {self.grid.horizontal.tile}"

    @property
    def tiling(self) -> str:
        """The tiles and what is done with them, for people."""
        options = self.options
        symmetries = ", mean of 8 symmetries" if options.tta else ""
        return f"{self.tile} pixels, margin {self.margin}, blend {options.blend}{symmetries}"

    @property
    def computation(self) -> str:
        """The engine with its version, and the precision."""
        return f"{engines.describe(self.engine)}, {self.precision}"

    def adapted(self, model: Model) -> tuple[Model, str]:
        """The model with the precision, and adapted to the raster if asked; with a note of that."""
        if self.engine == engines.JAX and self.precision != model.spec.dtype:
            model = model.with_dtype(self.precision)
        return adapt_to_raster(model, self.source, self.mesh) if self.options.adapt else (model, "")

    def predictor(self, model: Model) -> TilePredictor:
        """What computes tiles with a model that `adapted` gave."""
        options, engine = self.options, None
        if self.engine != engines.JAX:
            result = "classes" if options.only_classes else "logits"
            engine = _engine(self.engine, model, self.precision, result)
        return TilePredictor(
            model, self.mesh, self.grid, tta=options.tta, probabilities=options.probabilities,
            confidence=options.confidence, engine=engine,
        )  # fmt: skip


_engine = functools.lru_cache(maxsize=1)(engines.make)  # for many rasters with one model


def prepare(spec: ModelSpec, paths: Sequence[str], options: Options) -> Preparation:
    """Opens the raster, and checks that it fits the model and the options.

    Args:
        spec: of the model.
        paths: the inputs, see `input_files.expand`.
        options: that are checked.

    Raises:
        UserError: something does not fit, or a file cannot be opened.
    """
    if spec.takes_metadata:
        raise UserError(
            "this model takes metadata (position, camera, date) with each "
            "image, and a raster has none: use one trained with config.metadata.use=False"
        )
    source = open_source(spec, paths, options)
    mesh = make_mesh()
    precision = options.precision or spec.dtype
    engine, engine_note = engines.choose(options.engine, mesh, precision)
    batch_size = options.batch_size or mesh.size
    check_batch_size(batch_size, mesh, "--batch_size")
    height, width = source.height, source.width
    if mesh.devices.flat[0].platform == "cpu":
        pixels = _pixels_on_cpu(engine, precision, options, len(spec.nomenclature), width)
    else:
        pixels = tile_size.on_accelerator(mesh, options.memory) * mesh.size
    tile, margin = options.tiles(height, width, pixels=pixels // batch_size, batch=batch_size)
    grid = Grid.over(height, width, tile, margin, options.blended)
    return Preparation(
        source, grid, margin, mesh, engine, engine_note, precision, batch_size, options
    )


def _pixels_on_cpu(engine: str, precision: str, options: Options, classes: int, width: int) -> int:
    """Pixels of a batch of tiles that keep within the memory; see `engines.pixels_within`."""
    # Of each class four bytes for logits, probabilities, sums, of this batch and the last one.
    of_classes = 0 if options.only_classes else 28 * classes
    # The overlap with the row of tiles above, of int32, see `tiles.Blender`; it takes twice its
    # size, as measured on a raster of 30,000 pixels.
    above = 2 * (2 * options.context * width * classes * 4) if options.blended else 0
    memory = (options.memory or tile_size.MEMORY) - above / 1e9
    pixels = engines.pixels_within(memory, engine, precision, of_classes)
    # A limit that was not asked for does not forbid to detect on a wide raster.
    smallest = tile_size.shortest(options.context, options.blended) ** 2
    return pixels if options.memory else max(pixels, smallest)


def open_source(spec: ModelSpec, paths: Sequence[str], options: Options) -> Source:
    """The raster with the area of interest; see `prepare`."""
    files = band_files(
        spec.bands, nir=options.nir, height=options.height, stack=options.stack,
        surface=options.surface, terrain=options.terrain,
    )  # fmt: skip
    source = Source(
        paths,
        spec.bands,
        options.bands,
        options.resolution,
        spec.pixel_size,
        Scaling(options.stretch, spec.stretch, spec.image_types),
        files,
        spec.data_name in FLAIR_HEIGHTS and not spec.stretch,
    )
    if options.bounds:
        source.area = area_of_interest.within_bounds(options.bounds, source.pixels)
    elif options.aoi:
        source.area = area_of_interest.of_file(options.aoi, source.pixels)
    return source
