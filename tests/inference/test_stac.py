"""STAC items, validated by pystac, and footprints, also at the antimeridian and the poles."""

import numpy as np
import pystac
import pytest
import shapely
from etils import epath
from pyproj import Transformer
from pystac.extensions.classification import ClassificationExtension
from pystac.extensions.projection import ProjectionExtension
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import Affine, from_origin

from flair_jax.data.nomenclature import BASELINE
from flair_jax.inference import stac
from flair_jax.inference.footprint import footprint
from flair_jax.inference.georeference import Georeference

LAMBERT = Georeference(CRS.from_epsg(2154), from_origin(900_000, 6_500_000, 0.2, 0.2))
PRODUCTS = {
    "classes": epath.Path("/maps/cover 1.tif"),
    "names": epath.Path("/maps/cover 1.tif.aux.xml"),
    "preview": epath.Path("/maps/cover 1.png"),
    "summary": epath.Path("/maps/cover 1.json"),
    "polygons": epath.Path("/maps/cover 1.gpkg"),
}


def made(georeference=LAMBERT, first_class=1, **more):
    options = {"created": "2025-06-30T09:05:00Z", "card": "/models/toy/README.md"} | more
    return stac.item(PRODUCTS, georeference, 3000, 2000, BASELINE, first_class, **options)


def test_the_item_is_valid_and_complete():
    made_item = made()
    item = pystac.Item.from_dict(made_item)
    # The schemas of the extensions are on the web, that of STAC comes with pystac.
    pystac.Item.from_dict(made_item | {"stac_extensions": []}).validate()
    assert item.id == "cover 1"
    assert item.datetime.isoformat() == "2025-06-30T09:05:00+00:00"
    projection = ProjectionExtension.ext(item)
    assert (projection.code, projection.shape) == ("EPSG:2154", [2000, 3000])
    assert projection.transform == [0.2, 0, 900_000, 0, -0.2, 6_500_000]
    assert [asset.href for asset in item.assets.values()] == [
        f"./cover%201{ending}" for ending in (".tif", ".gpkg", ".png", ".json", ".tif.aux.xml")
    ]
    assert item.assets["classes"].roles == ["data"]
    classes = ClassificationExtension.ext(item.assets["classes"]).classes
    expected = [
        (value, c.name, c.colour[1:].upper()) for value, c in enumerate(BASELINE.classes, 1)
    ]
    found = [(c.value, c.description, c.color_hint) for c in classes]
    assert found == [*expected, (255, "no data", None)]
    assert classes[-1].to_dict()["nodata"] is True
    assert classes[1].name == "pervious-surface"
    (link,) = made_item["links"]
    assert (link["rel"], link["href"]) == ("describedby", "file:///models/toy/README.md")


def test_dates_of_the_images_and_the_licence():
    item = made(acquired=("2021-06-30", "2021-07-31"), data_license="etalab-2.0")
    pystac.Item.from_dict(item | {"stac_extensions": []}).validate()
    properties = item["properties"]
    assert properties["datetime"] is None
    assert properties["start_datetime"] == "2021-06-30T00:00:00Z"
    assert properties["end_datetime"] == "2021-07-31T23:59:59Z"
    assert properties["license"] == "etalab-2.0"
    assert made(data_license="Open Licence 2.0")["properties"]["license"] == "other"
    assert "license" not in made()["properties"]


def test_a_model_of_the_hub_is_linked_by_its_page():
    (link,) = made(card="https://huggingface.co/IGNF/FLAIR")["links"]
    assert link["href"] == "https://huggingface.co/IGNF/FLAIR"
    assert made(card="")["links"] == []


def test_a_coordinate_system_without_a_code_is_given_as_wkt():
    crs = CRS.from_string("+proj=laea +lat_0=47 +lon_0=3 +ellps=GRS80")
    item = made(Georeference(crs, from_origin(0, 0, 1, 1)))
    pystac.Item.from_dict(item | {"stac_extensions": []}).validate()
    assert item["properties"]["proj:code"] is None
    assert CRS.from_wkt(item["properties"]["proj:wkt2"]) == crs


@pytest.mark.parametrize(
    "georeference",
    [
        Georeference(None, LAMBERT.transform),
        Georeference(CRS.from_epsg(2154), Affine.identity()),
        Georeference(
            None, Affine.identity(), (GroundControlPoint(0, 0, 1, 1),) * 3, CRS.from_epsg(2154)
        ),
    ],
    ids=["no coordinate system", "no geotransform", "control points"],
)
def test_rasters_that_cannot_have_an_item(georeference):
    assert not stac.is_possible(georeference, 30, 20)
    assert stac.is_possible(LAMBERT, 30, 20)


def test_the_footprint_of_a_raster():
    geometry, box = footprint(LAMBERT, 3000, 2000)
    polygon = shapely.geometry.shape(geometry)
    assert polygon.is_valid
    assert polygon.exterior.is_ccw
    to_degrees = Transformer.from_crs("EPSG:2154", "EPSG:4326", always_xy=True)
    expected = to_degrees.transform_bounds(900_000, 6_499_600, 900_600, 6_500_000)
    assert box == pytest.approx(expected, abs=1e-6)
    assert polygon.bounds == pytest.approx(tuple(box))


@pytest.mark.parametrize(
    ("crs", "transform", "box"),
    [
        ("EPSG:4326", from_origin(175, -5, 0.1, 0.1), (175, -10, -175, -5)),
        ("EPSG:4326", from_origin(-185, -5, 0.1, 0.1), (175, -10, -175, -5)),
        ("EPSG:4326", from_origin(175, -5, 0.05, 0.1), (175, -10, 180, -5)),
        ("EPSG:4326", from_origin(-180, 90, 3.6, 3.6), (-180, -90, 180, 90)),
    ],
    ids=["from the west", "from the east", "up to it", "the whole Earth"],
)
def test_footprints_at_the_antimeridian(crs, transform, box):
    geometry, found = footprint(Georeference(CRS.from_user_input(crs), transform), 100, 50)
    assert found == pytest.approx(box)
    shape = shapely.geometry.shape(geometry)
    assert shape.is_valid
    west, south, east, north = box
    assert shape.area == pytest.approx(((east - west) % 360 or 360) * (north - south))
    assert (shape.bounds[0] >= -180) & (shape.bounds[2] <= 180)


@pytest.mark.parametrize(("epsg", "latitude"), [(3031, -90), (3413, 90)])
def test_the_footprint_of_a_raster_around_a_pole(epsg, latitude):
    place = Georeference(CRS.from_epsg(epsg), from_origin(-5e5, 5e5, 1e4, 1e4))
    geometry, box = footprint(place, 100, 100)
    shape = shapely.geometry.shape(geometry)
    assert shape.is_valid
    assert latitude in box
    assert box[::2] == [-180, 180]
    for longitude in np.linspace(-179, 179, 9):
        assert shape.contains(shapely.Point(longitude, latitude * 0.999))
        assert not shape.contains(shapely.Point(longitude, latitude * 0.9))
