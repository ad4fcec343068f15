"""What a detection works with, from its options: the raster, its tiles, the devices, the engine."""

import dataclasses
from collections.abc import Sequence

from jax.sharding import Mesh

from flair_jax.data.reference_facts import FLAIR_HEIGHTS
from flair_jax.errors import UserError
from flair_jax.inference import area_of_interest, engines
from flair_jax.inference.band_files import band_files
from flair_jax.inference.band_selection import Scaling
from flair_jax.inference.options import Options
from flair_jax.inference.raster_source import Source
from flair_jax.inference.tiles import Grid
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime.sharding import check_batch_size, make_mesh


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What a detection works with.

    Attributes:
        source: the raster, with the area of interest.
        grid: its tiles.
        mesh: the devices.
        engine: the name of the engine.
        engine_note: what to report of its choice, or "".
        batch_size: tiles at a time.
    """

    source: Source
    grid: Grid
    mesh: Mesh
    engine: str
    engine_note: str
    batch_size: int


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
    height, width = source.height, source.width
    tile, margin = options.tile_and_margin(height, width)
    grid = Grid.over(height, width, tile, margin, options.blend == "hann")
    mesh = make_mesh()
    engine, engine_note = engines.choose(options.engine, mesh)
    each = 1 if mesh.devices.flat[0].platform == "cpu" else 4
    batch_size = options.batch_size or each * mesh.size
    check_batch_size(batch_size, mesh, "--batch_size")
    return Preparation(source, grid, mesh, engine, engine_note, batch_size)


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
