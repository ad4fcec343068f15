"""The files of a map: their names, and how they are built from the finished rows."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

from etils import epath

from flair_jax.data.nomenclature import Nomenclature
from flair_jax.errors import UserError
from flair_jax.inference import geotiff, mapping_unit, polygons, qgis_style
from flair_jax.inference.areas import Areas, Feature, class_areas
from flair_jax.inference.options import Options
from flair_jax.viz import images

CONFIDENCE = (
    "probability of the class",
    "margin: best less second probability",
    "entropy: 1 if all are equal",
)


def products(output: epath.Path, options: Options) -> dict[str, epath.Path]:
    """The output files by content, the main one first.

    Raises:
        UserError: a name does not fit.
    """
    if output.suffix.lower() not in (".tif", ".tiff"):
        raise UserError(f"--output={output} must end in .tif")
    paths = {
        "classes": output,
        "names": output.with_name(output.name + ".aux.xml"),
        "style": output.with_suffix(".qml"),
        "preview": output.with_suffix(".png"),
        "summary": output.with_suffix(".json"),
        "stac": output.with_suffix(".stac.json"),
    }
    for name in ("probabilities", "confidence"):
        if getattr(options, name):
            paths[name] = output.with_name(f"{output.stem}_{name}.tif")
            paths[f"{name}_style"] = output.with_name(f"{output.stem}_{name}.qml")
    if options.polygons:
        paths["polygons"] = _polygons(output, options.polygons)
    return paths


def _polygons(output: epath.Path, name: str) -> epath.Path:
    path = epath.Path(os.path.abspath(os.path.expanduser(name)))
    if path.suffix.lower() != ".gpkg":
        raise UserError(f"--polygons={name} must end in .gpkg")
    if path.parent != output.parent:
        raise UserError(
            f"--polygons={name} must be in the folder of --output, as all files are moved into "
            f"place together: give {output.parent / path.name}"
        )
    return path


def sidecars(paths: Mapping[str, epath.Path]) -> list[epath.Path]:
    """Files from which GDAL would take masks, overviews or statistics of an earlier raster."""
    rasters = [path for path in paths.values() if path.suffix.lower() in (".tif", ".tiff")]
    beside = [p.with_name(p.name + suffix) for p in rasters for suffix in (".msk", ".ovr")]
    beside += [path.with_name(path.name + ".aux.xml") for path in rasters[1:]]
    if "polygons" in paths:  # journals of SQLite
        database = paths["polygons"]
        beside += [database.with_name(database.name + s) for s in ("-wal", "-shm", "-journal")]
    return [path for path in beside if path not in paths.values()]


@dataclasses.dataclass(frozen=True)
class Built:
    """What is known of a map when its files are built.

    Attributes:
        areas: of the whole map.
        of_features: of each polygon.
        merged: small patches that were merged into others; None if that was not asked for.
        polygons: their number; None if they were not asked for.
    """

    areas: Areas
    of_features: list[Areas]
    merged: int | None = None
    polygons: int | None = None


def build(
    built: Mapping[str, epath.Path],
    rows: geotiff.Rows,
    nomenclature: Nomenclature,
    options: Options,
    date: str,
    features: Sequence[Feature] = (),
) -> Built:
    """Builds all files but the summary and the STAC item.

    Args:
        built: where to, by content, see `products`.
        rows: the finished rows.
        nomenclature: the classes.
        options: what is wanted.
        date: when the detection was begun.
        features: polygons to take the areas in.
    """
    first_class, folder = options.first_class, built["classes"].parent
    source, merged, count = rows, None, None
    height, width = rows.map_size
    if options.min_area:
        plain, target = folder / "rows.vrt", folder / "merged.tif"
        geotiff.write_virtual(plain, rows)
        merged = mapping_unit.merge_small_patches(
            plain, target, options.min_area, rows.georeference
        )
        source = geotiff.Rows([target], [height], width, rows.georeference, rows.tags)
    of_raster = source if options.min_area_raster else rows
    geotiff.write_classes(built["classes"], of_raster, nomenclature, first_class)
    band = 2
    if "probabilities" in built:
        names = [f"probability of {name}" for name in nomenclature.names]
        geotiff.write_measures(built["probabilities"], rows, band, names)
        built["probabilities_style"].write_text(qgis_style.measure_style(len(names)))
        band += len(names)
    if "confidence" in built:
        geotiff.write_measures(built["confidence"], rows, band, CONFIDENCE)
        built["confidence_style"].write_text(qgis_style.measure_style(len(CONFIDENCE)))
    built["style"].write_text(qgis_style.qgis_style(nomenclature, first_class))
    title = f"Land cover: {built['classes'].stem}"
    preview = qgis_style.preview(built["classes"], nomenclature, first_class, title)
    images.write_png(built["preview"], preview)
    if "polygons" in built:
        plain = folder / "rows.vrt"
        geotiff.write_virtual(plain, source)
        count = polygons.write_polygons(
            plain, built["polygons"], rows.georeference, nomenclature, first_class,
            simplify=options.simplify, layer=built["classes"].stem, date=date,
        )  # fmt: skip
    areas, of_features = class_areas(built["classes"], len(nomenclature), first_class, features)
    return Built(areas, of_features, merged, count)
