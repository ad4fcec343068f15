"""Detection on a raster of any size, from the options to the GeoTIFFs that are written."""

import contextlib
import dataclasses
import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import rasterio
from etils import epath

import flair_jax
from flair_jax.errors import UserError
from flair_jax.inference import (
    engines,
    geotiff,
    mapping_unit,
    outputs,
    polygons,
    provenance,
    stac,
    summary,
)
from flair_jax.inference.adaptation import adapt_to_raster
from flair_jax.inference.areas import Areas, Feature
from flair_jax.inference.band_selection import Scaling
from flair_jax.inference.input_files import UnreadableError, expand, is_remote
from flair_jax.inference.job_lock import job_lock
from flair_jax.inference.loading import find
from flair_jax.inference.options import BUILT_LAST, Options
from flair_jax.inference.predictor import Model, load_model
from flair_jax.inference.progress import duration
from flair_jax.inference.raster_source import Source
from flair_jax.inference.resume import PartialJob
from flair_jax.inference.tile_predictor import TilePredictor
from flair_jax.inference.tile_rows import predict_rows
from flair_jax.inference.tiles import Grid
from flair_jax.models.functional import Arrays
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime import console
from flair_jax.runtime.preemption import Preempted
from flair_jax.runtime.sharding import check_batch_size, make_mesh

_MB = 1 << 20


def detect_raster(
    checkpoint: str | os.PathLike[str] | Model,
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    **options: Any,
) -> list[epath.Path]:
    """Predicts the land cover of a raster of any size, and writes it as a raster.

    Written beside `<output>.tif`: `<output>.tif.aux.xml` (class names and colours), `.qml` (QGIS
    style), `.png` (preview), `.json` (areas of the classes, inputs, settings), `.stac.json` (STAC
    item, if the raster has coordinates) and, on request, `_probabilities.tif` and
    `_confidence.tif` with their styles, and polygons. All files are moved into place when all of
    them are complete, the main one last.

    Args:
        checkpoint: a workdir (its best checkpoint is used), a folder of checkpoints, or the folder
            of one step; or a model from `load_model`, to load it once for many rasters.
        inputs: rasters that GDAL can open, of uint8 or of the type of the model's training images,
            or of any type with the option `stretch`: a path, a URL, a glob, a comma-separated list,
            or several of these; several rasters are mosaicked.
        output: a path ending in .tif.
        options: the attributes of `Options`, by name.

    Returns:
        The files written, the main one first.

    Raises:
        UserError: an argument does not fit, or a file cannot be read or written; the message
            names the cause and the remedy.
        Preempted: by Ctrl-C or SIGTERM; the same call with `resume=True` continues.
    """
    chosen = Options(**options)
    chosen.check()
    with warnings.catch_warnings():  # what they warn of is reported in the project's own words
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        warnings.simplefilter("ignore", rasterio.errors.NodataShadowWarning)
        return _Job(checkpoint, expand(inputs), output, chosen).run()


class _Job:
    def __init__(
        self,
        checkpoint: str | os.PathLike | Model,
        paths: list[str],
        output: str | os.PathLike[str],
        options: Options,
    ) -> None:
        self.started = time.monotonic()
        self.checkpoint, self.options = checkpoint, options
        self.adapted = ""
        self.output = _local(output)
        self.products = outputs.products(self.output, options)
        self.sidecars = outputs.sidecars(self.products)
        self.features: list[Feature] = []
        if options.polygons:
            polygons.require()
        names = [path.name for path in self.products.values()]
        self.partial = PartialJob(self.output, names)
        self.partial.check_directory()
        _check_not_read(self.products, paths)
        if not options.resume:
            self._check_not_there()
        if isinstance(checkpoint, Model):
            self.spec = checkpoint.spec
        else:  # the weights, which take longer, are loaded after all checks
            self.spec = ModelSpec.load(find(checkpoint)[0])
        if self.spec.takes_metadata:
            raise UserError(
                "this model takes metadata (position, camera, date) with each "
                "image, and a raster has none: use one trained with config.metadata.use=False"
            )
        self.source = Source(
            paths,
            self.spec.bands,
            options.bands,
            options.resolution,
            self.spec.pixel_size,
            Scaling(options.stretch, self.spec.stretch, self.spec.image_types),
        )
        _check_not_read(self.products, self.source.files)
        if options.polygons:
            polygons.check(self.source.georeference)
        if options.min_area:
            mapping_unit.known(self.source.pixel_size)
        height, width = self.source.height, self.source.width
        if not stac.is_possible(self.source.georeference, width, height):
            self.sidecars.append(self.products.pop("stac"))  # one of an earlier raster is removed
        tile, margin = options.tile_and_margin(height, width)
        self.grid = Grid.over(height, width, tile, margin, options.blend == "hann")
        self.mesh = make_mesh()
        self.engine, self.engine_note = engines.choose(options.engine, self.mesh)
        each = 1 if self.mesh.devices.flat[0].platform == "cpu" else 4
        self.batch_size = options.batch_size or each * self.mesh.size
        check_batch_size(self.batch_size, self.mesh, "--batch_size")

    def run(self) -> list[epath.Path]:
        """Runs what is not done yet, and returns the files written."""
        with job_lock(self.output):
            model = self.checkpoint
            if not isinstance(model, Model):
                model = load_model(model, ema=self.options.ema)
            if self.options.precision and self.engine == engines.JAX:
                model = model.with_dtype(self.options.precision)
            if self.options.adapt:
                model, self.adapted = adapt_to_raster(model, self.source, self.mesh)
            tags = self._tags(model)
            settings = self._settings(tags)
            tags["SETTINGS_SHA256"] = hashlib.sha256(
                json.dumps(settings, sort_keys=True).encode()
            ).hexdigest()
            if self.options.resume and self._is_complete(tags):
                console.log(f"{self.output} is complete: there is nothing to resume")
                if self.partial.exists:
                    self.partial.remove()
            else:
                if not (self.options.resume and self.partial.is_moving):
                    self._check_not_there()
                self._detect(model, settings, tags)
        return [path for path in self.products.values() if path.exists()]

    def _detect(self, model: Model, settings: dict[str, Any], tags: dict[str, str]) -> None:
        self._log_header(model)
        engine = None
        if self.engine != engines.JAX:
            engine = engines.make(self.engine, model, self.precision)
        predictor = TilePredictor(
            model, self.mesh, self.grid, tta=self.options.tta,
            probabilities=self.options.probabilities, confidence=self.options.confidence,
            engine=engine,
        )  # fmt: skip
        # If an input is stored in strips, GDAL's cache should hold one row of tiles (within
        # limits), so that no strip is read again for every tile.
        strips = self.source.strip_bytes(self.grid.vertical.tile)
        cache = min(max(64 * _MB, strips * 5 // 4), 512 * _MB)
        with (
            self._keeping_partial_results(),
            rasterio.Env(GDAL_CACHEMAX=cache),
            provenance.FileHashes(self.source.paths, self.source.files) as hashes,
        ):
            options = {k: v for k, v in settings["options"].items() if k not in BUILT_LAST}
            begun = self.partial.begin(
                settings | {"options": options},
                resume=self.options.resume,
                overwrite=self.options.overwrite,
            )
            done = self.partial.finished(self.grid.vertical.count)
            if done:
                console.log(f"resuming after {self._progress()}")
            predict_rows(
                self.source, self.grid, predictor, self.partial, bands=self._bands(),
                classes=len(self.spec.nomenclature), batch_size=self.batch_size,
            )  # fmt: skip
            self._finish(model, tags, begun, done, hashes)

    def _finish(
        self,
        model: Model,
        tags: dict[str, str],
        begun: str,
        done: int,
        hashes: provenance.FileHashes,
    ) -> None:
        """Builds the output files from the finished rows, and moves them into place."""
        count = self.grid.vertical.count
        rows = geotiff.Rows(
            [self.partial.row_path(row) for row in range(count)],
            [self._height(row) for row in range(count)],
            self.source.width,
            self.source.georeference,
            tags | provenance.tags(begun, self.source.paths, self.options.license),
        )
        built = {name: self.partial.directory / path.name for name, path in self.products.items()}
        made = outputs.build(
            built, rows, self.spec.nomenclature, self.options, begun, self.features
        )
        if "stac" in self.products:
            self._write_stac(built["stac"], model, begun)
        summary.write_json(built["summary"], {
            "map": self.output.name,
            "begun": begun,
            "seconds": round(time.monotonic() - self.started, 1),
            "rows_of_tiles": count,
            "rows_of_tiles_computed_before": done,
            **summary.of_map(
                made, self.source, self.spec.nomenclature, self.options, self.features
            ),
            "inputs": hashes.result(),
            "model": summary.of_model(model, tags),
            "tags": tags,
            "versions": provenance.versions(self.engine),
        })  # fmt: skip
        self.partial.begin_moving()
        for path in self.sidecars:
            path.unlink(missing_ok=True)
        for name in reversed(self.products):  # the classes last
            if built[name].exists():
                built[name].replace(self.products[name])
        self.partial.remove()
        self._log_summary(made.areas)

    def _write_stac(self, path: epath.Path, model: Model, begun: str) -> None:
        summary.write_json(path, stac.item(
            self.products, self.source.georeference, self.source.width, self.source.height,
            self.spec.nomenclature, self.options.first_class, created=begun,
            card=provenance.model_card(model.path), acquired=self.options.acquisition(),
            data_license=self.options.license,
        ))  # fmt: skip

    def _is_complete(self, tags: dict[str, str]) -> bool:
        """Whether the output files are there, from a detection with the same settings."""
        if not all(path.exists() for path in self.products.values()):
            return False
        try:
            with rasterio.open(self.output) as raster:
                return raster.tags().get("SETTINGS_SHA256") == tags["SETTINGS_SHA256"]
        except rasterio.errors.RasterioError:
            return False

    def _check_not_there(self) -> None:
        """Raises a UserError for an output that exists, unless it may be replaced."""
        for path in [*self.products.values(), *self.sidecars]:
            if path.is_dir():
                raise UserError(f"{path} is a folder: give another --output")
            if path.exists() and not self.options.overwrite:
                more = (
                    ", but not from an interrupted detection with these settings"
                    if self.options.resume
                    else ""
                )
                raise UserError(
                    f"{path} exists{more}: give another --output, or --overwrite to replace it"
                )

    @contextlib.contextmanager
    def _keeping_partial_results(self) -> Iterator[None]:
        """Explains how to resume after a failure; removes partial results that are of no use."""
        how = "the same command with --resume continues from there"
        try:
            yield
        except Preempted as stop:
            done = self._progress()
            raise Preempted(f"{stop} with {done}; {how}") from None
        except UnreadableError as error:
            if self.source.remote and self.partial.finished(1):
                raise UserError(f"{error}\n{self._progress()} kept; {how}.") from error
            self.partial.remove()
            raise
        except UserError:
            raise
        except (rasterio.errors.RasterioError, OSError) as error:
            damaged = self.partial.remove_damaged(self.partial.finished(self.grid.vertical.count))
            if damaged:
                raise UserError(
                    f"{', '.join(damaged)} in {self.partial.directory} cannot be read and is "
                    f"removed: {how}"
                ) from error
            reason = error.__cause__ or error
            raise UserError(
                f"{self.partial.directory} or {self.output} cannot be written: {reason}\nMake room "
                f"(or fix what the message reports): {how}."
            ) from error
        except Exception as error:
            if not self.partial.finished(1):
                self.partial.remove()
            if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError):
                raise UserError(
                    f"there is too little memory for {self.batch_size} tiles of "
                    f"{self.grid.vertical.tile}: give a smaller --tile or --batch_size"
                ) from error
            raise

    def _progress(self) -> str:
        rows = self.grid.vertical.count
        return f"{self.partial.finished(rows)} of {rows} rows of tiles in {self.partial.directory}"

    def _bands(self) -> int:
        """The number of bands of a row's file."""
        probabilities = len(self.spec.nomenclature) if self.options.probabilities else 0
        return 1 + probabilities + (len(outputs.CONFIDENCE) if self.options.confidence else 0)

    def _height(self, row: int) -> int:
        begin, end = self.grid.vertical.done(row)
        return end - begin

    @property
    def precision(self) -> str:
        """Of the activations."""
        return self.options.precision or self.spec.dtype

    def _tags(self, model: Model) -> dict[str, str]:
        first, names = self.options.first_class, self.spec.nomenclature.names
        axis, size = self.grid.horizontal, self.source.pixel_size
        return {
            "MODEL": f"unet-resnet34, nomenclature {self.spec.nomenclature.name}",
            "MODEL_CHECKPOINT": model.path,
            "MODEL_STEP": str(model.step),
            "MODEL_WEIGHTS_SHA256": _weights_digest({**model.params, **model.batch_stats}),
            **({"MODEL_ADAPTED": self.adapted} if self.adapted else {}),
            "MODEL_BANDS": ",".join(self.spec.bands),
            "MODEL_TRAINED_ON": self.spec.data_name
            + (", synthetic: not for real images" if self.spec.synthetic else ""),
            "INPUT_BANDS": self.source.bands,
            "INPUT_VALIDITY": self.source.validity,
            "GROUND_SAMPLE_DISTANCE": _metres(size) or "unknown",
            "FLAIR_JAX_VERSION": flair_jax.__version__,
            "ENGINE": f"{engines.describe(self.engine)}, {self.precision}",
            "FIRST_CLASS": str(first),
            "CLASS_NAMES": "; ".join(f"{i} {name}" for i, name in enumerate(names, first)),
            "TILES": f"{axis.tile} pixels, margin {axis.margin}, blend {self.options.blend}"
            + (", mean of 8 symmetries" if self.options.tta else ""),
        }

    def _settings(self, tags: dict[str, str]) -> dict[str, Any]:
        """Everything that the result depends on, as values that JSON keeps unchanged."""
        options = dataclasses.asdict(self.options)
        for name in ("overwrite", "resume"):
            options.pop(name)
        files = self.source.files
        settings = {
            "options": options,
            "tags": tags,
            "inputs": self.source.paths,
            "files": [[p, os.stat(p).st_size, os.stat(p).st_mtime_ns] for p in files],
            "size": [self.source.height, self.source.width],
            "batch_size": self.batch_size,
            "devices": f"{self.mesh.size} x {jax.devices()[0].device_kind}",
            "jax": jax.__version__,
        }
        return json.loads(json.dumps(settings))

    def _log_header(self, model: Model) -> None:
        source, axis = self.source, self.grid.horizontal
        size = _metres(source.pixel_size)
        trained_at = (
            f" at {getattr(self.spec, 'pixel_size', 0.0):g} m" if self.spec.pixel_size else ""
        )
        tiles = self.grid.vertical.count * axis.count
        lines = [
            f"raster   {source.name}: {source.width:,} x {source.height:,} pixels"
            + (f" of {size}" if size else "")
            + f", {source.georeference.description}",
            f"bands    {source.bands}",
            f"valid    {source.validity}",
            f"model    {model.path}, step {model.step}: {', '.join(self.spec.bands)}{trained_at} "
            f"-> {len(self.spec.nomenclature)} classes",
            f"tiles    {tiles:,} of {axis.tile} pixels, margin {axis.margin}, "
            f"{self.options.blend}, {self.batch_size} at a time on {self.mesh.size} x "
            f"{jax.devices()[0].device_kind}",
        ]
        lines.append(f"engine   {engines.describe(self.engine)}, {self.precision}")
        if self.engine_note:
            lines.append(f"         {self.engine_note}")
        if self.adapted:
            lines.append(f"adapted  {self.adapted}")
        if self.spec.synthetic:
            lines.append(
                "warning  this model was trained on synthetic data: what it finds in real images "
                "means nothing"
            )
        if "stac" not in self.products:
            lines.append(
                "note: no STAC item is written, as the raster has no geotransform in a coordinate "
                "system with longitude and latitude"
            )
        console.log("\n".join(lines + source.notes()))

    def _log_summary(self, made: Areas) -> None:
        pixels, areas = made.pixels, made.square_metres
        seconds = time.monotonic() - self.started
        total = max(int(pixels.sum()), 1)
        in_all = f"{pixels.sum():,} pixels" if areas is None else f"{areas.sum() / 1e4:,.2f} ha"
        lines = [
            f"finished in {duration(seconds)}: {self.source.width:,} x {self.source.height:,} "
            f"pixels, {in_all} with a class; {self.output.stat().length / 1e6:,.1f} MB"
        ]
        for number, name in enumerate(self.spec.nomenclature.names):
            if pixels[number]:
                amount = (
                    f"{pixels[number]:14,}" if areas is None else f"{areas[number] / 1e4:11,.2f} ha"
                )
                lines.append(f"  {name:24}{amount}{pixels[number] / total:8.1%}")
        console.log("\n".join(lines))


def _metres(size: tuple[float, float] | None) -> str:
    """A ground sample distance as text, "" if unknown."""
    if size is None:
        return ""
    sides = [f"{side:.3g}" for side in size]
    return f"{sides[0]} m" if sides[0] == sides[1] else f"{sides[0]} x {sides[1]} m"


def _local(output: str | os.PathLike[str]) -> epath.Path:
    """The absolute path of the output.

    Raises:
        UserError: it is not local, or not UTF-8.
    """
    if is_remote(os.fspath(output)):
        raise UserError(
            f"--output={output}: only local files can be written. Write to a local folder, and "
            "copy the files afterwards"
        )
    try:
        os.fspath(output).encode()
    except UnicodeEncodeError:
        raise UserError(f"--output={output} is not UTF-8, as GDAL requires") from None
    # Absolute, as GDAL drops leading spaces, and takes a name such as "file:a.tif" for a URL.
    return epath.Path(os.path.abspath(os.path.expanduser(output)))


def _check_not_read(products: dict[str, epath.Path], files: Sequence[str]) -> None:
    """Raises a UserError if an output would replace a file that is read."""
    read = {os.path.realpath(path): path for path in files}
    for path in products.values():
        if os.path.realpath(path) in read:
            raise UserError(
                f"--output={products['classes']} would replace the input "
                f"{read[os.path.realpath(path)]}: give another --output"
            )


def _weights_digest(arrays: Arrays) -> str:
    """SHA-256 of all weights, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + np.asarray(arrays[name]).tobytes())
    return digest.hexdigest()
