"""Detection on a raster of any size, from the options to the GeoTIFFs that are written."""

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import rasterio
from etils import epath

import flair_jax
from flair_jax.errors import UserError
from flair_jax.inference import (
    geotiff,
    mapping_unit,
    outputs,
    polygons,
    provenance,
    stac,
    summary,
    vector,
)
from flair_jax.inference.areas import Areas
from flair_jax.inference.input_files import (
    UnreadableError,
    expand,
    is_remote,
    without_warnings,
)
from flair_jax.inference.job_lock import job_lock
from flair_jax.inference.loading import find
from flair_jax.inference.options import BUILT_LAST, Options
from flair_jax.inference.predictor import Model, load_model
from flair_jax.inference.preparation import prepare
from flair_jax.inference.progress import duration
from flair_jax.inference.resume import PartialJob
from flair_jax.inference.tile_rows import predict_rows
from flair_jax.models.functional import Arrays
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime import console
from flair_jax.runtime.preemption import Preempted
from flair_jax.weights.published import is_published

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
        checkpoint: what `load_model` takes, or a model from it, to load it once for many rasters.
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
    with without_warnings():
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
        self.output = local_path(output)
        self.products = outputs.products(self.output, options)
        self.sidecars = outputs.sidecars(self.products)
        if options.polygons:
            vector.packages("--polygons")
        names = [path.name for path in self.products.values()]
        self.partial = PartialJob(self.output, names)
        self.partial.check_directory()
        check_not_read(self.products, paths)
        if not options.resume:
            self._check_not_there()
        if not isinstance(checkpoint, Model) and is_published(checkpoint):
            checkpoint = self.checkpoint = load_model(checkpoint, ema=options.ema)
        if isinstance(checkpoint, Model):
            self.spec = checkpoint.spec
        else:  # the weights, which take longer, are loaded after all checks
            self.spec = ModelSpec.load(find(checkpoint)[0])
        self.prepared = prepare(self.spec, paths, options)
        self.source, self.grid = self.prepared.source, self.prepared.grid
        self.features = self.source.area.features if self.source.area else ()
        check_not_read(self.products, self.source.files)
        if options.polygons:
            polygons.check(self.source.georeference)
        if options.min_area:
            mapping_unit.known(self.source.pixel_size)
        *_, height, width = self.source.window
        if not stac.is_possible(self.source.map_georeference, width, height):
            self.sidecars.append(self.products.pop("stac"))  # one of an earlier raster is removed

    def run(self) -> list[epath.Path]:
        """Runs what is not done yet, and returns the files written."""
        with job_lock(self.output):
            model = self.checkpoint
            if not isinstance(model, Model):
                model = load_model(model, ema=self.options.ema)
            model, self.adapted = self.prepared.adapted(model)
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
        predictor = self.prepared.predictor(model)
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
                classes=len(self.spec.nomenclature), batch_size=self.prepared.batch_size,
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
            self.source.map_georeference,
            tags | provenance.tags(begun, self.source.paths, self.options.license),
            self.source.window,
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
            "versions": provenance.versions(self.prepared.engine),
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
        *_, height, width = self.source.window
        summary.write_json(path, stac.item(
            self.products, self.source.map_georeference, width, height, self.spec.nomenclature,
            self.options.first_class, created=begun, card=provenance.model_card(model.path),
            acquired=self.options.acquisition(), data_license=self.options.license,
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
                    f"there is too little memory for {self.prepared.batch_size} tiles of "
                    f"{self.prepared.tile} pixels: give a smaller --memory, --tile or --batch_size"
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

    def _tags(self, model: Model) -> dict[str, str]:
        first, names = self.options.first_class, self.spec.nomenclature.names
        size, area = self.source.pixel_size, self.source.area
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
            **({"AREA_OF_INTEREST": area.description} if area else {}),
            "GROUND_SAMPLE_DISTANCE": _metres(size) or "unknown",
            "FLAIR_JAX_VERSION": flair_jax.__version__,
            "ENGINE": self.prepared.computation,
            "FIRST_CLASS": str(first),
            "CLASS_NAMES": "; ".join(f"{i} {name}" for i, name in enumerate(names, first)),
            "TILES": self.prepared.tiling,
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
            "batch_size": self.prepared.batch_size,
            "devices": f"{self.prepared.mesh.size} x {jax.devices()[0].device_kind}",
            "jax": jax.__version__,
        }
        return json.loads(json.dumps(settings, default=os.fspath))

    def _log_header(self, model: Model) -> None:
        source, tiles = self.source, f"{self.grid.count:,}"
        size = _metres(source.pixel_size)
        trained_at = (
            f" at {getattr(self.spec, 'pixel_size', 0.0):g} m" if self.spec.pixel_size else ""
        )
        together = console.counted(self.prepared.batch_size, "tile")
        devices = console.counted(self.prepared.mesh.size, "device")
        devices += f" ({jax.devices()[0].device_kind})"
        area = []
        if source.area:
            top, left, height, width = source.window
            area = [
                f"area     {source.area.description}; the map is {width:,} x {height:,} pixels "
                f"from column {left:,}, row {top:,}"
            ]
            tiles = f"at most {source.area.tiles(self.grid):,} of the {tiles}"
        lines = [
            f"raster   {source.name}: {source.width:,} x {source.height:,} pixels"
            + (f" of {size}" if size else "")
            + f", {source.georeference.description}",
            f"bands    {source.bands}",
            f"valid    {source.validity}",
            *area,
            f"model    {model.path}, step {model.step}: {', '.join(self.spec.bands)}{trained_at} "
            f"-> {len(self.spec.nomenclature)} classes",
            f"tiles    {tiles} of {self.prepared.tiling}; {self.grid.repeated:.0%} of the computed "
            "pixels are margin",
            f"engine   {self.prepared.computation}; {together} at a time on {devices}",
        ]
        if self.prepared.engine_note:
            lines.append(f"         {self.prepared.engine_note}")
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
        *_, height, width = self.source.window
        lines = [
            f"finished in {duration(seconds)}: {width:,} x {height:,} pixels, "
            f"{in_all} with a class; {self.output.stat().length / 1e6:,.1f} MB"
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


def local_path(output: str | os.PathLike[str]) -> epath.Path:
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


def check_not_read(products: dict[str, epath.Path], files: Sequence[str]) -> None:
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
