"""The products of a detection beside the map: summary, tags, STAC item, polygons; wrong uses."""

import datetime
import hashlib
import json

import jax.numpy as jnp
import numpy as np
import pyogrio
import pystac
import pytest
import rasterio
import shapely
from detecting import TILE, detect, random_spec, undated
from rasterio.transform import from_origin
from rasters import noise, write

from flair_jax.errors import UserError
from flair_jax.inference import detection, outputs, polygons, preparation, provenance
from flair_jax.inference.areas import Feature
from flair_jax.inference.predictor import Model
from flair_jax.runtime.sharding import make_mesh


@pytest.fixture(scope="module")
def model():
    return Model("stand-in", make_mesh(), random_spec(), {"unused": jnp.zeros(())}, {}, 7)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """A network that gives the first band modulo 13."""

    class StandIn:
        def __init__(self, model, mesh, grid, **_):
            pass

        def __call__(self, images, row, columns):
            return {"classes": images[..., 0] % 13}

    monkeypatch.setattr(preparation, "TilePredictor", StandIn)


@pytest.fixture
def halves(tmp_path):
    """20 x 30 pixels of 2 m in an equal-area projection: buildings, pervious surface, no data."""
    pixels = np.full((5, 20, 30), 13, np.uint8)
    pixels[0, :, 10:] = 14
    pixels[0, 5, 5] = 15
    pixels[:, :, 25:] = 0
    return write(tmp_path / "in.tif", pixels, nodata=0, crs="EPSG:3035",
                 transform=from_origin(4e6, 3e6, 2, 2))  # fmt: skip


def summary(path):
    return json.loads(path.with_suffix(".json").read_text())


def test_the_summary_has_areas_inputs_model_and_versions(model, halves, tmp_path):
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    detect(model, halves, tmp_path / "map.tif", license="etalab-2.0")
    found = summary(tmp_path / "map.tif")
    assert before <= datetime.datetime.fromisoformat(found["begun"])
    assert 0 <= found["seconds"] < 600
    assert (found["map"], found["width"], found["height"]) == ("map.tif", 30, 20)
    assert found["pixel_size_in_metres"] == pytest.approx([2, 2])
    by_name = {entry["name"]: entry for entry in found["classes"]}
    assert len(by_name) == 13
    assert [by_name["building"][key] for key in ("class", "pixels")] == [1, 199]
    assert by_name["building"]["hectares"] == pytest.approx(199 * 4 / 1e4, rel=1e-6)
    assert by_name["pervious surface"]["share"] == pytest.approx(300 / 500)
    assert by_name["impervious surface"]["pixels"] == 1
    assert (found["pixels"], found["nodata_pixels"]) == (500, 100)
    assert found["nodata_hectares"] == pytest.approx(0.04, rel=1e-6)
    with open(halves, "rb") as file:
        content = file.read()
    assert found["inputs"] == [
        {"path": halves, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    ]
    assert (found["model"]["checkpoint"], found["model"]["step"]) == ("stand-in", 7)
    assert found["versions"]["rasterio"] == rasterio.__version__
    assert found["settings"]["tile"] == TILE
    with rasterio.open(tmp_path / "map.tif") as raster:
        tags = raster.tags()
    assert found["model"]["weights_sha256"] == tags["MODEL_WEIGHTS_SHA256"]
    assert tags["TIFFTAG_DATETIME"] == found["begun"].replace("-", ":").replace("T", " ")[:-1]
    assert tags["TIFFTAG_SOFTWARE"] == f"flair-jax {found['versions']['flair-jax']}"
    assert (tags["INPUTS"], tags["LICENSE"]) == (halves, "etalab-2.0")
    assert tags["TIFFTAG_COPYRIGHT"] == "etalab-2.0"


def test_no_licence_is_made_up(model, halves, tmp_path):
    detect(model, halves, tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif") as raster:
        assert not {"LICENSE", "TIFFTAG_COPYRIGHT"} & set(raster.tags())
    assert summary(tmp_path / "map.tif")["license"] is None


def test_areas_of_features_are_reported(model, halves, tmp_path, monkeypatch):
    check = detection._Job.__init__

    properties = {"name": "west", "count": np.int32(4), "height": np.nan, "on": np.bool_(True),
                  "date": datetime.date(2021, 6, 30), "note": None}  # fmt: skip

    def with_features(self, *arguments):
        check(self, *arguments)
        box = shapely.box(4e6, 3e6 - 40, 4e6 + 22, 3e6)
        self.features = [Feature(box, id=np.int64(3), properties=properties)]

    monkeypatch.setattr(detection._Job, "__init__", with_features)
    detect(model, halves, tmp_path / "map.tif")
    (feature,) = summary(tmp_path / "map.tif")["features"]
    assert feature["id"] == 3
    assert feature["properties"] == {
        "name": "west", "count": 4, "height": None, "on": True, "date": "2021-06-30", "note": None,
    }  # fmt: skip
    assert [entry["pixels"] for entry in feature["classes"][:3]] == [199, 20, 1]
    assert feature["hectares"] == pytest.approx(0.088, rel=1e-6)


def test_areas_of_the_features_of_an_area_of_interest(model, halves, tmp_path):
    """The map is cropped to their bounds, and the STAC item and the polygons to the map."""
    boxes = [
        shapely.box(4e6 + 2, 3e6 - 8, 4e6 + 6, 3e6 - 2),
        shapely.box(4e6 + 8, 3e6 - 6, 4e6 + 10, 3e6 - 4),
        shapely.box(0, 0, 1, 1),
    ]  # outside of the raster
    pyogrio.raw.write(
        tmp_path / "area.gpkg", shapely.to_wkb(boxes),
        [np.array(["west", "east", "far"], object)], ["name"], geometry_type="Polygon",
        crs="EPSG:3035", driver="GPKG",
    )  # fmt: skip
    options = {"aoi": str(tmp_path / "area.gpkg"), "polygons": str(tmp_path / "map.gpkg")}
    detect(model, halves, tmp_path / "map.tif", **options)
    found = summary(tmp_path / "map.tif")
    assert [f["properties"]["name"] for f in found["features"]] == ["west", "east", "far"]
    hectares = [feature["hectares"] for feature in found["features"]]
    assert hectares == pytest.approx([24e-4, 4e-4, 0], rel=1e-5)
    assert found["hectares"] == pytest.approx(28e-4, rel=1e-5)
    with rasterio.open(tmp_path / "map.tif") as raster:
        assert (found["width"], found["height"]) == (raster.width, raster.height)
        assert raster.bounds == pytest.approx((4e6 + 2, 3e6 - 8, 4e6 + 10, 3e6 - 2))
    item = json.loads((tmp_path / "map.stac.json").read_text())
    assert item["properties"]["proj:shape"] == [found["height"], found["width"]]
    _, _, wkb, (*_, areas) = pyogrio.raw.read(tmp_path / "map.gpkg", columns=["area_m2"])
    assert areas.sum() == pytest.approx(28, rel=1e-5)
    assert shapely.total_bounds(shapely.from_wkb(wkb)) == pytest.approx(raster.bounds)


def test_without_coordinates_there_is_no_stac_item(model, tmp_path, capsys):
    path = write(tmp_path / "in.tif", noise(5), crs=None, transform=None)
    (tmp_path / "map.stac.json").write_text("of an earlier map")
    with pytest.raises(UserError, match=r"map\.stac\.json exists"):
        detect(model, path, tmp_path / "map.tif")
    written = detect(model, path, tmp_path / "map.tif", overwrite=True)
    assert "note: no STAC item is written, as the raster has no geotr" in capsys.readouterr().out
    assert "map.stac.json" not in [p.name for p in written]
    assert not (tmp_path / "map.stac.json").exists()
    found = summary(tmp_path / "map.tif")
    assert (found["hectares"], found["areas_on"], found["pixels"]) == (None, None, 600)
    assert detect(model, path, tmp_path / "map.tif", resume=True) == written


def test_the_stac_item_is_written(model, halves, tmp_path):
    (tmp_path / "README.md").write_text("card")
    described = Model(str(tmp_path), make_mesh(), model.spec, model.params, model.batch_stats, 7)
    detect(described, halves, tmp_path / "map.tif", acquired="2021-06-30")
    content = json.loads((tmp_path / "map.stac.json").read_text())
    pystac.Item.from_dict(content | {"stac_extensions": []}).validate()
    assert [link["href"] for link in content["links"]] == [(tmp_path / "README.md").as_uri()]
    assert content["properties"]["start_datetime"] == "2021-06-30T00:00:00Z"
    for asset in content["assets"].values():
        assert (tmp_path / asset["href"]).exists()


@pytest.mark.parametrize("stem", [" it's", 'a"b', "a&b<c>", "file:é 1"])
def test_odd_names(model, halves, tmp_path, stem):
    odd = tmp_path / f"{stem}\x01.tif"
    (tmp_path / "in.tif").rename(odd)
    output = tmp_path / f"{stem}.tif"
    detect(model, odd, output, polygons=str(output.with_suffix(".gpkg")), license="a\x02b")
    assert len(pyogrio.raw.read(output.with_suffix(".gpkg"), layer=stem)[2]) == 3
    with rasterio.open(output) as raster:
        assert raster.tags()["INPUTS"].endswith(f"{stem}?.tif")
    assert summary(output)["inputs"][0]["path"] == str(odd)
    content = json.loads(output.with_suffix(".stac.json").read_text())
    pystac.Item.from_dict(content | {"stac_extensions": []}).validate()


@pytest.mark.parametrize("in_raster", [False, True])
def test_polygons_and_the_minimum_mapping_unit(model, halves, tmp_path, in_raster):
    written = detect(
        model, halves, tmp_path / "map.tif", polygons=str(tmp_path / "map.gpkg"), min_area=5,
        min_area_raster=in_raster, simplify=1,
    )  # fmt: skip
    assert written[-1].name == "map.gpkg"
    _, _, geometries, fields = pyogrio.raw.read(tmp_path / "map.gpkg", layer="map")
    found = dict(zip(fields[1].tolist(), fields[2].tolist(), strict=True))
    expected = {"building": 200 * 4, "pervious surface": 300 * 4}
    assert found == pytest.approx(expected, rel=1e-6)
    assert shapely.from_wkb(geometries).size == 2
    with rasterio.open(tmp_path / "map.tif") as raster:
        assert raster.read(1)[5, 5] == (1 if in_raster else 3)
    report = summary(tmp_path / "map.tif")
    assert (report["merged_patches"], report["polygons"]) == (1, 2)
    assert report["classes"][0]["pixels"] == (200 if in_raster else 199)


def test_polygons_of_a_resumed_job_are_the_same_bytes(model, tmp_path, monkeypatch):
    path = write(tmp_path / "in.tif", noise(5, 60, 40))
    contents = []
    for interrupted in (False, True):
        options = {"polygons": str(tmp_path / "map.gpkg"), "min_area": 1}
        if interrupted:
            with monkeypatch.context() as patch:
                patch.setattr(outputs, "build", _stop)
                with pytest.raises(KeyboardInterrupt):
                    detect(model, path, tmp_path / "map.tif", **options)
        written = detect(model, path, tmp_path / "map.tif", resume=interrupted, **options)
        contents.append({p.name: undated(p) for p in written})
        for file in written:
            file.unlink()
    assert contents[0] == contents[1]
    assert list(tmp_path.glob("map*")) == []


def test_too_many_corners_do_not_cost_the_map(model, halves, tmp_path, monkeypatch):
    monkeypatch.setattr(polygons, "MOST_CORNERS", 12)
    options = {"polygons": str(tmp_path / "map.gpkg")}
    with pytest.raises(
        UserError, match=r"more than 12 corners, .*--resume and a larger --min_area"
    ):
        detect(model, halves, tmp_path / "map.tif", **options)
    assert not (tmp_path / "map.tif").exists()
    written = detect(model, halves, tmp_path / "map.tif", resume=True, **options, min_area=5)
    assert written[-1].name == "map.gpkg"
    found = summary(tmp_path / "map.tif")
    assert found["rows_of_tiles_computed_before"] == found["rows_of_tiles"]
    assert not (tmp_path / "map.tif.partial").exists()
    message = "exists, but not from an interrupted detection with these settings"
    with pytest.raises(UserError, match=message):
        detect(model, halves, tmp_path / "map.tif", resume=True, **options, min_area=6)


def _stop(*_):
    raise KeyboardInterrupt


def test_the_date_is_that_of_the_first_start(model, halves, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "build", _stop)
        with pytest.raises(KeyboardInterrupt):
            detect(model, halves, tmp_path / "map.tif")
    state = tmp_path / "map.tif.partial" / "settings.json"
    content = json.loads(state.read_text()) | {"started": "2001-02-03T04:05:06Z"}
    state.write_text(json.dumps(content))
    detect(model, halves, tmp_path / "map.tif", resume=True)
    with rasterio.open(tmp_path / "map.tif") as raster:
        assert raster.tags()["TIFFTAG_DATETIME"] == "2001:02:03 04:05:06"
    found = summary(tmp_path / "map.tif")
    assert found["begun"] == "2001-02-03T04:05:06Z"
    assert found["rows_of_tiles_computed_before"] == found["rows_of_tiles"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"polygons": "map.shp"}, r"--polygons=map.shp must end in .gpkg"),
        ({"polygons": "elsewhere/map.gpkg"}, r"must be in the folder of --output, .*: give /"),
        ({"min_area": 5}, r"--min_area=5 is for polygons: give --polygons=NAME.gpkg, or --min"),
        ({"simplify": 1}, r"--simplify=1 is for polygons: give --polygons=NAME.gpkg, too"),
        ({"min_area_raster": True}, r"--min_area_raster needs --min_area=M2"),
        ({"min_area": -1}, r"--min_area=-1: expected square metres, a positive number"),
        ({"simplify": float("nan")}, r"--simplify=nan: expected metres, a positive number"),
        ({"acquired": "June"}, r"--acquired=June: expected a date such as 2021-06-30"),
        ({"acquired": "2021-07-01/2021-06-01"}, r"--acquired=2021-07-01/2021-06-01: expected a d"),
    ],
)
def test_wrong_uses(model, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        detect(model, tmp_path / "missing.tif", tmp_path / "map.tif", **options)
    assert list(tmp_path.iterdir()) == []


def test_products_that_need_a_place_or_a_size(model, tmp_path):
    path = write(tmp_path / "in.tif", noise(5), crs=None, transform=None)
    with pytest.raises(UserError, match="--polygons needs a raster with a coordinate system"):
        detect(model, path, tmp_path / "map.tif", polygons=str(tmp_path / "map.gpkg"))
    with pytest.raises(UserError, match="--min_area needs the ground sample distance"):
        detect(model, path, tmp_path / "map.tif", min_area=5, min_area_raster=True)
    assert [p.name for p in tmp_path.iterdir()] == ["in.tif"]


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("a/b.tif", "a/b.tif"),
        ("https://u:p@host/a.tif?sig=secret#x", "https://host/a.tif"),
        ("/vsicurl/https://host/a.tif?token=1", "/vsicurl/https://host/a.tif"),
        ("/vsis3/bucket/a.tif", "/vsis3/bucket/a.tif"),
        ("s3://bucket/a.tif", "s3://bucket/a.tif"),
    ],
)
def test_secrets_of_urls_are_not_published(name, public):
    assert provenance.public_name(name) == public


def test_remote_and_lost_inputs_are_not_hashed(tmp_path):
    with provenance.FileHashes(["https://host/a.tif?key=1"], [str(tmp_path / "lost")]) as hashes:
        lost, remote = hashes.result()
    assert (lost["sha256"], remote["sha256"]) == (None, None)
    assert "No such file" in lost["reason"]
    assert (remote["path"], remote["reason"]) == ("https://host/a.tif", "remote")


def test_many_inputs_are_named_in_few_words():
    assert provenance.in_few(["a", "b"]) == "a; b"
    assert provenance.in_few([*"abcdefghij"]) == "a; b; c; d; e; f; g; h; and 2 more"


def test_the_card_of_a_model(tmp_path):
    run = tmp_path / "runs" / "toy"
    (run / "checkpoints" / "96").mkdir(parents=True)
    (tmp_path / "runs" / "README.md").write_text("of something else")
    (run / "checkpoints" / "model.json").write_text("{}")
    spec = str(run / "checkpoints" / "model.json")
    for path in (run, run / "checkpoints", run / "checkpoints" / "96"):
        assert provenance.model_card(str(path)) == spec
    (run / "README.md").write_text("card")
    for path in (run, run / "checkpoints", run / "checkpoints" / "96"):
        assert provenance.model_card(str(path)) == str(run / "README.md")
    hub = "hf://organisation/repository/file"
    assert provenance.model_card(hub) == "https://huggingface.co/organisation/repository"
    assert provenance.model_card(str(tmp_path / "nowhere")) == ""
