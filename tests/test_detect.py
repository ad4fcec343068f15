"""Rasters of all kinds through the whole detection, with a network of random weights."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree as xml

import jax.numpy as jnp
import numpy as np
import pytest
import rasterio
from absl.testing import flagsaver
from PIL import Image
from rasterio.transform import Affine, from_origin
from rio_cogeo.cogeo import cog_validate

import flair_jax
from flair_jax import detect as detect_command
from flair_jax.checkpoint import save_model
from flair_jax.classes import BASELINE
from flair_jax.detection import geotiff, rows
from flair_jax.detection.partial import PartialJob
from flair_jax.errors import UserError
from flair_jax.interruption import Interrupted
from flair_jax.model_card import BANDS, ModelCard
from flair_jax.train_state import split_model

PLACE = from_origin(900_000, 6_500_000, 0.2, 0.2)
TILE, MARGIN = 64, 16


def random_card(**changes):
    return ModelCard(BANDS, BASELINE, "scaling", (0.0,) * 5, (1.0,) * 5, **changes)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights, of statistics so disturbed that many classes come out, none too surely."""
    card = random_card()
    _, params, stats = split_model(card.build_model(0))
    rng = np.random.default_rng(0)
    for name, value in stats.items():
        disturbed = (
            value + rng.normal(0, 0.3, value.shape)
            if name.endswith("mean")
            else value * rng.uniform(0.3, 1, value.shape)
        )
        stats[name] = jnp.asarray(disturbed, jnp.float32)
    params["segmentation_head.0.kernel"] = params["segmentation_head.0.kernel"] * 0.001
    folder = tmp_path_factory.mktemp("random") / "checkpoints"
    save_model(folder, card, params, stats)
    return folder


@pytest.fixture(scope="module")
def model(checkpoint):
    return flair_jax.load_model(checkpoint)


def patches(height, width, seed=0, side=8):
    """(5, height, width) uint8: squares of one value, so that the network sees structure."""
    rng = np.random.default_rng(seed)
    small = rng.integers(1, 256, (5, -(-height // side), -(-width // side)), dtype=np.uint8)
    return small.repeat(side, 1).repeat(side, 2)[:, :height, :width]


def write(path, pixels, **profile):
    count, height, width = pixels.shape
    profile = {
        "driver": "GTiff", "crs": "EPSG:2154", "transform": PLACE, "photometric": "minisblack",
        "dtype": pixels.dtype.name,
    } | profile  # fmt: skip
    with rasterio.open(path, "w", height=height, width=width, count=count, **profile) as raster:
        raster.write(pixels)
    return path


def detect(model, source, output, **options):
    # A batch takes little longer than one of these small tiles: most of it is the weights' way.
    options = {"tile": TILE, "margin": MARGIN, "batch_size": 4} | options
    return flair_jax.detect_raster(model, source, output, **options)


def read(path):
    with rasterio.open(path) as raster:
        return raster.read()


def in_batches(model, images):
    """Probabilities of many images, the last batch filled up so that one compilation will do."""
    images = np.stack(images)
    filled = np.concatenate([images, images[: -len(images) % 8]])
    batches = [np.asarray(model(filled[i : i + 8])) for i in range(0, len(filled), 8)]
    return np.concatenate(batches)[: len(images)]


def one_by_one(model, images):
    return np.concatenate([np.asarray(model(image[None])) for image in images])


def tile_by_tile(model, pixels, tile=TILE, margin=MARGIN, apply=in_batches):
    """Probabilities (H, W, classes) of tiles computed by themselves and put side by side."""
    core = tile - 2 * margin
    height, width = pixels.shape[1:]
    spare = [-(-side // core) * core - side for side in (height, width)]
    before = [margin + s // 2 for s in spare]
    after = [margin + s - s // 2 for s in spare]
    padding = [(0, 0), (before[0], after[0]), (before[1], after[1])]
    padded = np.moveaxis(np.pad(pixels, padding, mode="symmetric"), 0, -1)
    places = [
        (top, left)
        for top in range(0, height + spare[0], core)
        for left in range(0, width + spare[1], core)
    ]
    tiles = apply(model, [padded[y : y + tile, x : x + tile] for y, x in places])
    found = np.empty((height + spare[0], width + spare[1], 13), np.float32)
    for (top, left), of_tile in zip(places, tiles, strict=True):
        inner = of_tile[margin : tile - margin, margin : tile - margin]
        found[top : top + core, left : left + core] = inner
    return found[spare[0] // 2 :, spare[1] // 2 :][:height, :width]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """100 x 60 pixels of noise with holes, and where they lie."""
    pixels = patches(60, 100)
    valid = np.ones((60, 100), bool)
    valid[20:35, 40:70] = False
    valid[:, 98:] = False
    pixels[:, ~valid] = 0
    path = write(tmp_path_factory.mktemp("scene") / "scene.tif", pixels, nodata=0)
    return path, pixels, valid


@pytest.fixture(scope="module")
def detected(model, scene, tmp_path_factory):
    output = tmp_path_factory.mktemp("detected") / "map.tif"
    written = detect(model, scene[0], output, probabilities=True, confidence=True)
    return output, written


def test_classes_are_those_of_plain_tiles(detected, scene, model):
    _, pixels, valid = scene
    expected = tile_by_tile(model, pixels, apply=one_by_one)
    classes = read(detected[0])[0]
    np.testing.assert_array_equal(classes, np.where(valid, expected.argmax(-1) + 1, 255))
    assert len(np.unique(classes)) > 6


def test_probabilities_and_confidence_are_rounded(detected, scene, model):
    output, _ = detected
    _, pixels, valid = scene
    expected = tile_by_tile(model, pixels)
    found = np.moveaxis(read(output.with_name("map_probabilities.tif")), 0, -1)
    rounded = np.rint(255 * expected)[valid]
    np.testing.assert_allclose(found[valid], rounded, atol=1)
    assert (found[valid] == rounded).mean() > 0.9999
    ordered = np.sort(expected, -1)
    entropy = -(expected * np.log(np.maximum(expected, 1e-30))).sum(-1) / np.log(13)
    confidence = np.stack([ordered[..., -1] - ordered[..., -2], entropy], -1)
    found = np.moveaxis(read(output.with_name("map_confidence.tif")), 0, -1)
    np.testing.assert_allclose(found[valid], 255 * confidence[valid], atol=0.51)
    for name, count in (("probabilities", 13), ("confidence", 2)):
        with rasterio.open(output.with_name(f"map_{name}.tif")) as raster:
            np.testing.assert_array_equal(raster.dataset_mask() > 0, valid)
            assert raster.scales == (pytest.approx(1 / 255),) * count
            assert raster.crs.to_epsg() == 2154
            assert len(set(raster.descriptions)) == count


def test_everything_is_there_and_a_valid_cog(detected):
    output, written = detected
    names = ["map.tif", "map.tif.aux.xml", "map.qml", "map.png", "map_probabilities.tif",
             "map_confidence.tif"]  # fmt: skip
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
    assert tags["TILES"] == "64 pixels, margin 16, blend crop"
    names = xml.parse(f"{output}.aux.xml").findall(".//Category")
    assert [n.text or "" for n in names] == ["", *BASELINE.names]


def test_the_qgis_style_has_all_classes(detected):
    entries = xml.parse(detected[0].with_suffix(".qml")).findall(".//paletteEntry")
    assert [(e.get("value"), e.get("color"), e.get("label")) for e in entries] == [
        (str(i), c.colour, c.name) for i, c in enumerate(BASELINE.classes, 1)
    ]


def test_the_quick_look_shows_the_classes(detected):
    classes = read(detected[0])[0]
    picture = np.asarray(Image.open(detected[0].with_suffix(".png")))
    assert picture.shape[1] > 200  # twice as large, and the legend
    shown = picture[:120:2, :200:2]
    for label, rgb in enumerate(BASELINE.rgb, 1):
        np.testing.assert_array_equal((shown == rgb).all(-1), classes == label)


def test_first_class_0_and_unasked_products(model, scene, detected, tmp_path):
    written = detect(model, scene[0], tmp_path / "zero.tif", first_class=0)
    assert len(written) == 4
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
    ids=["degrees", "rotated", "south up", "nowhere"],
)
def test_the_place_is_kept(model, detected, scene, tmp_path, crs, transform):
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
        (lambda p: p[:4], r"model takes 5 bands .* has 1 .*--bands=1,2,3,4,5"),
        (lambda p: p.astype(np.uint16), "uint16.*(.|\n)*gdal_translate"),
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
    random_card(metadata_encoding="corrected", metadata_fusion="channels").save(tmp_path)
    with pytest.raises(UserError, match=r"takes metadata .*config\.metadata\.use=False"):
        detect(tmp_path, scene[0], tmp_path / "map.tif")


def test_nothing_is_replaced_unasked(model, scene, detected, tmp_path):
    output = tmp_path / "map.tif"
    for name in ("map.png", "map.tif"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(UserError, match=rf"{name} exists: .*--overwrite"):
            detect(model, scene[0], output)
    assert output.read_text() == "mine"
    with pytest.raises(UserError, match="would replace the input"):
        detect(model, output, output, overwrite=True)
    detect(model, scene[0], output, overwrite=True)
    np.testing.assert_array_equal(read(output), read(detected[0]))
    with pytest.raises(UserError, match=r"--output=.*map.jp2 must end in .tif"):
        detect(model, scene[0], tmp_path / "map.jp2")


def interrupt_after(monkeypatch, row):
    """Ctrl-C as soon as a row of tiles is begun."""
    begin = PartialJob.writing

    def writing(self, number, *args):
        if number == row:
            os.kill(os.getpid(), signal.SIGINT)
        return begin(self, number, *args)

    monkeypatch.setattr(PartialJob, "writing", writing)


@pytest.mark.parametrize("blend", ["crop", "hann"])
def test_an_interrupted_job_goes_on_to_the_same_bytes(model, tmp_path, monkeypatch, blend):
    path = write(tmp_path / "in.tif", patches(200, 30))
    options = {"blend": blend, "probabilities": True, "batch_size": 1}
    detect(model, path, tmp_path / "whole.tif", **options)
    output = tmp_path / "map.tif"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4)
        with pytest.raises(Interrupted, match=r"SIGINT with 4 of 7 rows .*--resume goes on"):
            detect(model, path, output, **options)
    assert not output.exists()
    with pytest.raises(UserError, match="interrupted detection: go on with it with --resume"):
        detect(model, path, output, **options)
    with pytest.raises(UserError, match=r"another detection:(.|\n)*'tta': True"):
        detect(model, path, output, **options, tta=True, resume=True)
    done = []
    compute = rows.RowOfTiles.__init__
    monkeypatch.setattr(
        rows.RowOfTiles, "__init__",
        lambda self, grid, row, *rest: (done.append(row), compute(self, grid, row, *rest))[1],
    )  # fmt: skip
    written = detect(model, path, output, **options, resume=True)
    assert done == ([4, 5, 6] if blend == "crop" else [3, 4, 5, 6])
    for file in written:
        whole = file.with_name(file.name.replace("map", "whole"))
        assert file.read_bytes() == whole.read_bytes(), file.name
    assert not list(tmp_path.glob("*.partial"))


def test_a_left_over_job_can_be_started_afresh(model, scene, detected, tmp_path, monkeypatch):
    output = tmp_path / "map.tif"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(Interrupted):
            detect(model, scene[0], output)
    detect(model, scene[0], output, overwrite=True)
    np.testing.assert_array_equal(read(output), read(detected[0]))


def test_an_error_at_the_end_keeps_the_rows(model, scene, detected, tmp_path, monkeypatch):
    output = tmp_path / "map.tif"

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(geotiff, "_write", full)
        with pytest.raises(UserError, match=r"No space left on device(.|\n)*--resume"):
            detect(model, scene[0], output)
    assert [p.name for p in tmp_path.iterdir()] == ["map.tif.partial"]
    detect(model, scene[0], output, resume=True)
    np.testing.assert_array_equal(read(output), read(detected[0]))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """96 x 130 pixels: several tiles each way, and a rim of the last ones beyond the raster."""
    pixels = patches(96, 130)
    return write(tmp_path_factory.mktemp("large") / "large.tif", pixels), pixels


def steps(probabilities, axis, at):
    """Mean difference of neighbouring pixels across some borders, by that across all others."""
    difference = np.abs(np.diff(probabilities.astype(float), axis=axis)).mean((0, 3 - axis))
    across = np.isin(np.arange(1, len(difference) + 1), at)
    return difference[across].mean() / difference[~across].mean()


def test_hann_has_no_step_at_tile_borders(model, tmp_path):
    path = write(tmp_path / "in.tif", patches(200, 220, side=1))
    # Of this margin, borders lie at all phases of the network's strides, which show in its output.
    margin = 11
    core = TILE - 2 * margin
    for blend in ("crop", "hann"):
        output = tmp_path / f"{blend}.tif"
        detect(model, path, output, blend=blend, margin=margin, probabilities=True)
    cropped = read(tmp_path / "crop_probabilities.tif")
    blended = read(tmp_path / "hann_probabilities.tif")
    for axis, length in ((1, 200), (2, 220)):
        spare = -(-length // core) * core - length
        cores = np.arange(core, length + spare, core) - spare // 2
        ends_of_tiles = np.concatenate([cores - margin, cores + margin])
        assert steps(cropped, axis, cores) > 3
        assert steps(blended, axis, cores) < 1.3
        assert steps(blended, axis, ends_of_tiles) < 1.3


def test_hann_is_the_weighted_mean_of_plain_tiles(model, large, tmp_path):
    path, pixels = large
    detect(model, path, tmp_path / "map.tif", blend="hann", probabilities=True)
    height, width = pixels.shape[1:]
    core = TILE - 2 * MARGIN
    rise = np.sin(np.pi * (np.arange(TILE) + 0.5) / TILE) ** 2
    total = np.zeros((height + 2 * TILE, width + 2 * TILE, 13))
    weights = np.zeros((height + 2 * TILE, width + 2 * TILE, 1))
    starts = [
        range(-((-(-n // core) * core - n) // 2) - MARGIN, n - MARGIN, core)
        for n in (height, width)
    ]
    padded = np.moveaxis(np.pad(pixels, [(0, 0), (TILE, TILE), (TILE, TILE)], "symmetric"), 0, -1)
    places = [(top, left) for top in starts[0] for left in starts[1]]
    windows = [np.s_[y + TILE : y + 2 * TILE, x + TILE : x + 2 * TILE] for y, x in places]
    tiles = in_batches(model, [padded[window] for window in windows])
    for place, window, of_tile in zip(places, windows, tiles, strict=True):
        sides = []
        for start, along in zip(place, starts, strict=True):
            side = rise.copy()
            if start == along[0]:
                side[: TILE // 2] = 1
            if start == along[-1]:
                side[TILE // 2 :] = 1
            sides.append(side)
        weight = np.outer(*sides)[..., None]
        total[window] += weight * of_tile
        weights[window] += weight
    inside = np.s_[TILE:-TILE, TILE:-TILE]
    np.testing.assert_allclose(weights[inside], 1, atol=1e-6)
    mean = total[inside]
    found = np.moveaxis(read(tmp_path / "map_probabilities.tif"), 0, -1)
    np.testing.assert_allclose(found, 255 * mean, atol=0.51)
    assert (read(tmp_path / "map.tif")[0] == mean.argmax(-1) + 1).mean() > 0.999


# Larger tiles: at this size, one takes little longer than one of 64 pixels.
TTA = {"tta": True, "probabilities": True, "tile": 128, "margin": 16, "batch_size": 1}


@pytest.fixture(scope="module")
def averaged(model, tmp_path_factory):
    """130 x 140 pixels detected with --tta: the pixels, and the folder with the maps."""
    folder = tmp_path_factory.mktemp("averaged")
    pixels = patches(130, 140)
    path = write(folder / "in.tif", pixels)
    for blend in ("crop", "hann"):
        detect(model, path, folder / f"{blend}.tif", blend=blend, **TTA)
    return pixels, folder


@pytest.mark.parametrize(
    ("blend", "turn"),
    [
        ("crop", lambda x: x[:, :, ::-1]),
        ("crop", lambda x: np.rot90(x, axes=(1, 2))),
        ("hann", lambda x: np.rot90(x, axes=(1, 2))[:, ::-1]),
    ],
    ids=["crop flipped", "crop turned", "hann transposed"],
)
def test_with_tta_a_turned_raster_gives_the_turned_result(model, averaged, tmp_path, blend, turn):
    pixels, folder = averaged
    path = write(tmp_path / "in.tif", np.ascontiguousarray(turn(pixels)))
    detect(model, path, tmp_path / f"{blend}.tif", blend=blend, **TTA)
    for product in (f"{blend}.tif", f"{blend}_probabilities.tif"):
        np.testing.assert_array_equal(read(tmp_path / product), turn(read(folder / product)))


def test_tta_is_the_mean_of_eight_views(averaged, model):
    pixels, folder = averaged
    mean = np.zeros((*pixels.shape[1:], 13))
    for turns in range(4):
        for flip in (1, -1):
            turned = np.rot90(pixels, turns, (1, 2))[:, :, ::flip]
            of_view = tile_by_tile(model, turned, 128, 16, one_by_one)
            mean += np.rot90(of_view[:, ::flip], -turns) / 8
    found = np.moveaxis(read(folder / "crop_probabilities.tif"), 0, -1)
    np.testing.assert_allclose(found, 255 * mean, atol=0.51)
    ordered = np.sort(mean, -1)
    clear = ordered[..., -1] - ordered[..., -2] > 1e-5  # with equal votes, either class is right
    assert clear.mean() > 0.95
    classes = read(folder / "crop.tif")[0]
    np.testing.assert_array_equal(classes[clear], mean.argmax(-1)[clear] + 1)


def command(*flags, devices=1, **more):
    """Starts the command as a user does."""
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.Popen(
        [sys.executable, "-m", "flair_jax.detect", *map(str, flags)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, **more,
    )  # fmt: skip


def test_the_command_on_several_devices(checkpoint, scene, detected, tmp_path):
    run = command(
        f"--checkpoint={checkpoint}", f"--input={scene[0]}", f"--output={tmp_path / 'map.tif'}",
        f"--tile={TILE}", f"--margin={MARGIN}", "--bands=1,2,3,4,5", "--batch_size=4", devices=2,
    )  # fmt: skip
    said, _ = run.communicate()
    assert run.returncode == 0, said
    assert "8 of 64 pixels, margin 16, crop, 4 at a time on 2 x cpu" in said
    assert f"written  {tmp_path / 'map.tif'}" in said
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(detected[0]))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output=a.tif"], "error: --checkpoint is needed"),
        (["--checkpoint=x", "--output=a.tif", "--bands=red"], "error: --bands=red are not numbers"),
        (["--checkpoint=x", "--output=a.tif"], "error: --input=RASTER is needed"),
        (["--input=a.tif", "b.tif"], "error: unexpected argument 'b.tif': .*quote a glob"),
        (["--colour=red"], "error: Unknown command line flag 'colour'"),
    ],
)
def test_wrong_flags_are_one_message(flags, message, monkeypatch):
    saved = flagsaver.save_flag_values()
    monkeypatch.setattr(sys, "argv", ["detect", *flags])
    try:
        with pytest.raises(SystemExit, match=message):
            detect_command.run()
    finally:
        flagsaver.restore_flag_values(saved)


@pytest.mark.slow
def test_a_killed_job_goes_on_to_the_same_bytes(checkpoint, tmp_path):
    path = write(tmp_path / "in.tif", patches(2500, 250))
    flags = [f"--checkpoint={checkpoint}", f"--input={path}", "--tile=256"]
    run = command(*flags, f"--output={tmp_path / 'whole.tif'}")
    said, _ = run.communicate()
    assert run.returncode == 0, said
    output = tmp_path / "map.tif"
    run = command(*flags, f"--output={output}")
    partial = pathlib.Path(f"{output}.partial")
    while len(list(partial.glob("row_*.tif"))) < 5:
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert not output.exists()
    finished = len(list(partial.glob("row_*.tif")))
    assert 5 <= finished < 20
    run = command(*flags, f"--output={output}", "--resume")
    said, _ = run.communicate()
    assert run.returncode == 0, said
    assert f"goes on after {finished} of 20 rows of tiles" in said
    for name in ("map.tif", "map.tif.aux.xml", "map.qml", "map.png"):
        whole = tmp_path / name.replace("map", "whole")
        assert (tmp_path / name).read_bytes() == whole.read_bytes()


MEASURED = """
import json, resource, runpy, sys
sys.argv = json.loads(sys.argv[1])
try:
    runpy.run_module("flair_jax.detect", run_name="__main__")
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("blend", ["crop", "hann"])
def test_a_huge_raster_needs_little_memory(checkpoint, tmp_path, blend):
    path, side = tmp_path / "huge.tif", 30_000
    profile = {
        "driver": "GTiff", "dtype": "uint8", "count": 5, "height": side, "width": side,
        "tiled": True, "nodata": 0, "sparse_ok": True, "crs": "EPSG:2154", "transform": PLACE,
        "photometric": "minisblack", "bigtiff": "yes",
    }  # fmt: skip
    islands = [(0, 0), (12_345, 23_456), (29_000, 14_000)]
    with rasterio.open(path, "w", **profile) as raster:
        for row, column in islands:
            window = rasterio.windows.Window(column, row, 1000, 1000)
            raster.write(patches(1000, 1000, side=16), window=window)
    output = tmp_path / "map.tif"
    flags = ["detect", f"--checkpoint={checkpoint}", f"--input={path}", f"--output={output}",
             f"--blend={blend}"]  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, json.dumps(flags)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    peak = int(run.stdout.split("peak")[1]) * 1024
    print(f"peak memory with --blend={blend}: {peak / 2**20:.0f} MiB")
    assert peak < 2e9
    assert cog_validate(output)[0]
    with rasterio.open(output) as raster:
        valid = 0
        for _, window in raster.block_windows():
            valid += int((raster.read(1, window=window) != 255).sum())
        assert valid == 3_000_000
        for row, column in islands:
            window = rasterio.windows.Window(column, row, 1000, 1000)
            assert (raster.read(1, window=window) != 255).all()
