"""Detection of many kinds of rasters, with a network of random weights."""

import re
from xml.etree import ElementTree as xml

import numpy as np
import pytest
import rasterio
from detecting import PLACE, detect, one_by_one, patches, random_spec, read, tile_by_tile, write
from PIL import Image
from rasterio.transform import Affine, from_origin
from rio_cogeo.cogeo import cog_validate

import flair_jax
from flair_jax.data.nomenclature import BASELINE
from flair_jax.errors import UserError
from flair_jax.viz import images


def test_classes_are_those_of_plain_tiles(detected, scene, model):
    _, pixels, valid = scene
    expected = tile_by_tile(model, pixels, apply=one_by_one, valid=valid)
    classes = read(detected[0])[0]
    np.testing.assert_array_equal(classes, np.where(valid, expected.argmax(-1) + 1, 255))
    assert len(np.unique(classes)) > 6


def test_probabilities_and_confidence_are_rounded(detected, scene, model):
    output, _ = detected
    _, pixels, valid = scene
    expected = tile_by_tile(model, pixels, valid=valid)
    found = np.moveaxis(read(output.with_name("map_probabilities.tif")), 0, -1)
    rounded = np.rint(255 * expected)[valid]
    np.testing.assert_allclose(found[valid], rounded, atol=1)
    assert (found[valid] == rounded).mean() > 0.9999
    ordered = np.sort(expected, -1)
    entropy = -(expected * np.log(np.maximum(expected, 1e-30))).sum(-1) / np.log(13)
    margin = ordered[..., -1] - ordered[..., -2]
    confidence = np.stack([ordered[..., -1], margin, entropy], -1)
    found = np.moveaxis(read(output.with_name("map_confidence.tif")), 0, -1)
    np.testing.assert_allclose(found[valid], 255 * confidence[valid], atol=0.51)
    for name, count in (("probabilities", 13), ("confidence", 3)):
        with rasterio.open(output.with_name(f"map_{name}.tif")) as raster:
            np.testing.assert_array_equal(raster.dataset_mask() > 0, valid)
            assert raster.scales == (pytest.approx(1 / 255),) * count
            assert raster.crs.to_epsg() == 2154
            assert len(set(raster.descriptions)) == count
            colours = {colour.name for colour in raster.colorinterp}
            assert not colours & {"red", "green", "blue", "alpha", "palette"}


def test_all_files_are_written_and_valid_cogs(detected):
    output, written = detected
    names = ["map.tif", "map.tif.aux.xml", "map.qml", "map.png", "map.json", "map.stac.json",
             "map_probabilities.tif", "map_probabilities.qml", "map_confidence.tif",
             "map_confidence.qml"]  # fmt: skip
    assert [path.name for path in written] == names
    assert sorted(path.name for path in output.parent.iterdir()) == sorted(names)
    for path in written:
        if path.suffix == ".tif":
            valid, errors, warnings = cog_validate(path, strict=True)
            assert (valid, errors, warnings) == (True, [], [])


def test_colours_names_and_tags(detected, checkpoint):
    output, _ = detected
    with rasterio.open(output) as raster:
        assert (raster.nodata, raster.dtypes, raster.shape) == (255, ("uint8",), (60, 100))
        assert raster.transform == PLACE
        colours, tags = raster.colormap(1), raster.tags()
    for label, rgb in enumerate(BASELINE.rgb, 1):
        assert colours[label] == (*rgb, 255)
    assert tags["FIRST_CLASS"] == "1"
    assert tags["CLASS_NAMES"].startswith("1 building; 2 pervious surface; 3")
    assert tags["FLAIR_JAX_VERSION"] == flair_jax.__version__
    assert (tags["MODEL_CHECKPOINT"], tags["MODEL_STEP"]) == (str(checkpoint), "0")
    assert tags["TILES"] == "64 x 64 pixels, margin 16, blend crop"
    names = xml.parse(f"{output}.aux.xml").findall(".//Category")
    assert [n.text or "" for n in names] == ["", *BASELINE.names]


def test_the_raster_attribute_table_has_names_and_colours(detected):
    beside = xml.parse(f"{detected[0]}.aux.xml").getroot()
    # From GDAL 3.11 on it is in the file itself.
    inside = re.search(rb"<GDALMetadata>.*?</GDALMetadata>", detected[0].read_bytes(), re.DOTALL)
    name = ".//GDALRasterAttributeTable"
    table = beside.find(name)
    if table is None:
        table = xml.fromstring(inside[0]).find(name)
    usages = [int(field.findtext("Usage")) for field in table.findall("FieldDefn")]
    assert usages == [5, 2, 6, 7, 8, 9]  # GFU_MinMax, Name, Red, Green, Blue, Alpha
    rows = [[cell.text for cell in row.findall("F")] for row in table.findall("Row")]
    assert rows == [
        [str(i), c.name, *(str(part) for part in bytes.fromhex(c.colour[1:])), "255"]
        for i, c in enumerate(BASELINE.classes, 1)
    ]


@pytest.mark.parametrize(("name", "bands"), [("probabilities", 13), ("confidence", 3)])
def test_the_qgis_styles_of_measures_are_ramps_from_0_to_1(detected, name, bands):
    renderer = xml.parse(detected[0].with_name(f"map_{name}.qml")).find(".//rasterrenderer")
    assert (renderer.get("type"), renderer.get("band")) == ("singlebandpseudocolor", "1")
    assert renderer.get("alphaBand") == str(bands + 1)  # the mask
    values = [float(item.get("value")) for item in renderer.findall(".//item")]
    assert values == [0, 0.25, 0.5, 0.75, 1]


def test_the_qgis_style_has_all_classes(detected):
    entries = xml.parse(detected[0].with_suffix(".qml")).findall(".//paletteEntry")
    assert [(e.get("value"), e.get("color"), e.get("label")) for e in entries] == [
        (str(i), c.colour, c.name) for i, c in enumerate(BASELINE.classes, 1)
    ]


def test_the_preview_shows_the_classes(detected):
    classes = read(detected[0])[0]
    preview = np.asarray(Image.open(detected[0].with_suffix(".png")))
    assert preview.shape[1] > 200  # twice as large, and the legend
    top = images.TITLE_HEIGHT
    shown = preview[top : top + 120 : 2, :200:2]
    for label, rgb in enumerate(BASELINE.rgb, 1):
        np.testing.assert_array_equal((shown == rgb).all(-1), classes == label)


def test_first_class_0_and_only_the_default_products(model, scene, detected, tmp_path):
    written = detect(model, scene[0], tmp_path / "zero.tif", first_class=0)
    assert len(written) == 6
    classes, before = read(tmp_path / "zero.tif")[0], read(detected[0])[0]
    np.testing.assert_array_equal(classes, np.where(before == 255, 255, before - np.uint8(1)))
    with rasterio.open(tmp_path / "zero.tif") as raster:
        assert raster.tags()["FIRST_CLASS"] == "0"
        assert raster.colormap(1)[0] == (*BASELINE.rgb[0], 255)


def test_one_pixel(model, tmp_path):
    pixels = np.array([10, 200, 30, 40, 250], np.uint8).reshape(5, 1, 1)
    path = write(tmp_path / "one.tif", pixels)
    for blend in ("crop", "hann"):
        output = tmp_path / f"{blend}.tif"
        detect(model, path, output, blend=blend)
        expected = tile_by_tile(model, pixels).argmax() + 1
        assert read(output).tolist() == [[[expected]]]
        assert cog_validate(output)[0]


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:4326", from_origin(2.35, 48.85, 1.8e-6, 1.8e-6)),
        ("EPSG:2154", PLACE @ Affine.rotation(30)),
        ("EPSG:2154", Affine(0.2, 0, 900_000, 0, 0.2, 6_500_000)),  # from the south
        (None, Affine.identity()),
    ],
    ids=["degrees", "rotated", "south up", "not georeferenced"],
)
def test_georeferencing_is_kept(model, detected, scene, tmp_path, crs, transform):
    path = write(tmp_path / "moved.tif", scene[1], nodata=0, crs=crs, transform=transform)
    detect(model, path, tmp_path / "map.tif")
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(detected[0]))
    with rasterio.open(tmp_path / "map.tif") as raster:
        assert raster.transform.almost_equals(transform, 1e-12)
        assert raster.crs == (crs and rasterio.crs.CRS.from_string(crs))
    assert cog_validate(tmp_path / "map.tif")[0]


def test_bands_in_another_order(model, detected, scene, tmp_path):
    order = [3, 0, 4, 2, 1]
    path = write(tmp_path / "shuffled.tif", scene[1][order], nodata=0)
    numbers = tuple(order.index(band) + 1 for band in range(5))
    detect(model, path, tmp_path / "map.tif", bands=numbers)
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(detected[0]))


def test_a_mosaic_is_detected_as_one(model, detected, scene, tmp_path):
    for left in (0, 37):
        part = scene[1][:, :, left : 37 if left == 0 else None]
        place = PLACE @ Affine.translation(left, 0)
        write(tmp_path / f"part_{left}.tif", part, nodata=0, transform=place)
    detect(model, str(tmp_path / "part_*.tif"), tmp_path / "map.tif")
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(detected[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[:4], r"model takes 5 bands .* has 1 .*: too few for this model"),
        (lambda p: p.astype(np.uint16), r"pixels of uint16, .* --stretch=MIN,MAX"),
    ],
    ids=["4 bands", "uint16"],
)
def test_rasters_that_are_refused(model, scene, tmp_path, change, message):
    path = write(tmp_path / "wrong.tif", change(scene[1]))
    with pytest.raises(UserError, match=message):
        detect(model, path, tmp_path / "map.tif")
    assert [p.name for p in tmp_path.iterdir()] == ["wrong.tif"]


def test_a_truncated_raster_leaves_nothing(model, tmp_path):
    path = write(tmp_path / "cut.tif", patches(200, 70, side=3), compress="deflate", blockysize=8)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"cut.tif cannot be read at columns .* rows "):
        detect(model, path, tmp_path / "map.tif")
    assert [p.name for p in tmp_path.iterdir()] == ["cut.tif"]


def test_a_model_with_metadata_is_refused(scene, tmp_path):
    random_spec(metadata_encoding="corrected", metadata_fusion="channels").save(tmp_path)
    with pytest.raises(UserError, match=r"takes metadata .*config\.metadata\.use=False"):
        detect(tmp_path, scene[0], tmp_path / "map.tif")


def test_nothing_is_replaced_without_overwrite(model, scene, detected, tmp_path):
    output = tmp_path / "map.tif"
    for name in ("map.png", "map.tif"):
        (tmp_path / name).write_text("other")
        with pytest.raises(UserError, match=rf"{name} exists: .*--overwrite"):
            detect(model, scene[0], output)
    assert output.read_text() == "other"
    with pytest.raises(UserError, match="would replace the input"):
        detect(model, output, output, overwrite=True)
    detect(model, scene[0], output, overwrite=True)
    np.testing.assert_array_equal(read(output), read(detected[0]))
    with pytest.raises(UserError, match=r"--output=.*map.jp2 must end in .tif"):
        detect(model, scene[0], tmp_path / "map.jp2")
