"""What a detection writes, and what it must not touch; resuming of finished jobs; the summary."""

import dataclasses
import logging
import os

import jax.numpy as jnp
import numpy as np
import pytest
import rasterio
from detecting import random_spec, undated
from etils import epath
from rasterio.rpc import RPC
from rasterio.shutil import copy
from rasterio.transform import Affine, from_origin
from rasters import PLACE, RGB, noise, write

import flair_jax
from flair_jax.errors import UserError
from flair_jax.inference import detection, outputs, preparation, tile_rows
from flair_jax.inference.job_lock import job_lock
from flair_jax.inference.predictor import Model
from flair_jax.runtime.sharding import make_mesh

FIVE = (*RGB, "nir", "height")


@pytest.fixture(scope="module")
def model():
    return Model("stand-in", make_mesh(), random_spec(), {"unused": jnp.zeros(())}, {}, 0)


@pytest.fixture(autouse=True)
def seen(monkeypatch):
    """A stand-in network that gives the first band modulo 13; the images that it is given."""
    images_seen = []

    class StandIn:
        def __init__(self, model, mesh, grid, **_):
            pass

        def __call__(self, images, row, columns):
            images_seen.extend(images[: len(columns)])
            return {"classes": images[..., 0] % 13}

    monkeypatch.setattr(preparation, "TilePredictor", StandIn)
    return images_seen


def detect(model, source, output, **options):
    return flair_jax.detect_raster(
        model, source, output, tile=32, margin=8, engine="jax", **options
    )


def read(path):
    with rasterio.open(path) as raster:
        return raster.read(1)


def test_the_network_sees_the_nearest_valid_pixels(model, seen, tmp_path):
    pixels = noise(5, 16, 16)
    pixels[:, 4:10, 4:10] = 0
    path = write(tmp_path / "in.tif", pixels, nodata=0)
    detect(model, path, tmp_path / "map.tif")
    (image,) = seen
    assert image.min() > 0
    assert set(map(tuple, image.reshape(-1, 5))) <= set(map(tuple, pixels.reshape(5, -1).T))
    # The tile begins 8 pixels before the raster: (4, 4) is nearest to (3, 4) and to (4, 3).
    assert image[12, 12].tolist() in (pixels[:, 3, 4].tolist(), pixels[:, 4, 3].tolist())
    assert (read(tmp_path / "map.tif") == 255).sum() == 36


def test_tiles_without_an_input_are_not_read(model, seen, tmp_path, monkeypatch):
    paths = [
        write(tmp_path / "a.tif", noise(5)),
        write(tmp_path / "b.tif", noise(5), transform=PLACE @ Affine.translation(1500, 1500)),
    ]
    reads = []
    read_window = tile_rows.Source.read
    monkeypatch.setattr(
        tile_rows.Source, "read", lambda self, *a: (reads.append(1), read_window(self, *a))[1]
    )
    detect(model, paths, tmp_path / "map.tif")
    assert len(reads) < 20  # of about 9000 tiles
    classes = read(tmp_path / "map.tif")
    np.testing.assert_array_equal(classes[:20, :30], noise(5)[0] % 13 + 1)
    np.testing.assert_array_equal(classes[1500:, 1500:], noise(5)[0] % 13 + 1)
    assert (classes != 255).sum() == 2 * 600


def test_bands_and_validity_are_printed_and_tagged(model, tmp_path, capsys):
    path = write(tmp_path / "in.tif", noise(5), descriptions=FIVE[::-1], nodata=0)
    detect(model, path, tmp_path / "map.tif")
    printed = capsys.readouterr().out
    bands = "red 5, green 4, blue 3, nir 2, height 1 (description)"
    assert f"bands    {bands}\n" in printed
    assert "valid    NoData 0\n" in printed
    with rasterio.open(tmp_path / "map.tif") as raster:
        tags = raster.tags()
    assert (tags["INPUT_BANDS"], tags["INPUT_VALIDITY"]) == (bands, "NoData 0")
    assert tags["GROUND_SAMPLE_DISTANCE"] == "0.2 m"


def test_a_model_of_synthetic_data_is_no_model_in_disguise(model, tmp_path, capsys):
    path = write(tmp_path / "in.tif", noise(5), descriptions=FIVE)
    detect(model, path, tmp_path / "real.tif")
    assert "trained on synthetic" not in capsys.readouterr().out
    spec = dataclasses.replace(model.spec, synthetic=True)
    disguised = Model(model.path, make_mesh(), spec, model.params, model.batch_stats, model.step)
    detect(disguised, path, tmp_path / "map.tif")
    assert (
        "warning  this model was trained on synthetic data: what it finds in real images means "
        "nothing\n"
    ) in capsys.readouterr().out
    found = []
    for name in ("real.tif", "map.tif"):
        with rasterio.open(tmp_path / name) as raster:
            found.append(raster.tags()["MODEL_TRAINED_ON"])
    assert found == ["FLAIR #1", "FLAIR #1, synthetic: not for real images"]


@pytest.mark.parametrize(
    ("crs", "transform", "hectares"),
    [
        # Lambert-93 is 0.16 % too small there.
        ("EPSG:2154", from_origin(900_000, 6_500_000, 10, 20), 12.0195),
        ("EPSG:2263", from_origin(0, 0, 10, 20), 600 * 200 * 0.3048006096**2 / 1e4),
        # 1e-4 degrees on the WGS 84 ellipsoid at 60 degrees: 5.580 m by 11.141 m
        ("EPSG:4326", from_origin(10, 60.001, 1e-4, 1e-4), 600 * 5.580 * 11.141 / 1e4),
        # Web Mercator: these are cos(60 degrees) times as long, with the flattening of the Earth
        ("EPSG:3857", from_origin(1e6, 8_399_738, 10, 10), 600 * 5.0126 * 5.0041 / 1e4),
    ],
    ids=["metres", "feet", "degrees", "Web Mercator"],
)
def test_areas_of_classes_are_on_the_ground(model, tmp_path, capsys, crs, transform, hectares):
    pixels = np.full((5, 20, 30), 13, np.uint8)
    pixels[0, :, 10:] = 14
    path = write(tmp_path / "in.tif", pixels, crs=crs, transform=transform)
    detect(model, path, tmp_path / "map.tif")
    summary = capsys.readouterr().out.split("finished in ")[1].splitlines()
    assert "30 x 20 pixels, " in summary[0]
    figures = {line[:26].strip(): line[26:].split() for line in summary[1:]}
    assert set(figures) == {"building", "pervious surface"}
    for name, share in (("building", 1 / 3), ("pervious surface", 2 / 3)):
        area, unit, percent = figures[name]
        assert float(area) == pytest.approx(share * hectares, rel=2e-3, abs=0.006)
        assert (unit, percent) == ("ha", f"{share:.1%}")


def test_without_a_size_pixels_are_counted(model, tmp_path, capsys):
    path = write(tmp_path / "in.tif", np.full((5, 4, 5), 13, np.uint8), crs=None, transform=None)
    detect(model, path, tmp_path / "map.tif")
    printed = capsys.readouterr().out
    assert "20 pixels with a class" in printed
    assert printed.splitlines()[-1].split() == ["building", "20", "100.0%"]


def test_rpcs_are_kept(model, tmp_path):
    rpcs = RPC(
        err_bias=0.0, err_rand=0.0, height_off=100.0, height_scale=500.0, lat_off=48.8,
        lat_scale=0.1, line_den_coeff=[1.0] + [0.0] * 19, samp_den_coeff=[1.0] + [0.0] * 19,
        line_num_coeff=[0.0, 0.0, -1.0] + [0.0] * 17, line_off=9.5, line_scale=10.0, long_off=2.3,
        long_scale=0.1, samp_num_coeff=[0.0, 1.0] + [0.0] * 18, samp_off=14.5, samp_scale=15.0,
    )  # fmt: skip
    path = write(tmp_path / "in.tif", noise(5), crs=None, transform=None, rpcs=rpcs)
    detect(model, path, tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif") as raster:
        kept = raster.rpcs.to_gdal()
    expected = {k: v for k, v in rpcs.to_gdal().items() if not k.startswith("ERR")}
    assert {k: kept[k] for k in expected} == expected


def test_rasterio_prints_nothing(model, tmp_path, recwarn, capfd):
    logger = logging.getLogger("rasterio")
    before = logger.level
    pixels = noise(4)
    pixels[3] = 255
    pixels = np.insert(pixels, 3, noise(2, seed=1), 0)
    path = write(tmp_path / "in.tif", pixels, crs=None, transform=None, nodata=0,
                 colours=["undefined"] * 5 + ["alpha"])  # fmt: skip
    recwarn.clear()
    detect(model, path, tmp_path / "map.tif")
    assert [str(w.message) for w in recwarn if "rasterio" in str(w.category)] == []
    assert capfd.readouterr().err == ""
    assert logger.level == before


@pytest.mark.parametrize(
    "name", ["map.tif", "map.png", "map.tif.aux.xml", "map.json", "map.stac.json"]
)
def test_an_output_that_is_a_folder_is_noticed_first(model, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"{name} is a folder: give another --output"):
        detect(model, tmp_path / "missing.tif", tmp_path / "map.tif", overwrite=True)


@pytest.mark.parametrize("output", ["gs://bucket/map.tif", "s3://b/map.tif", "/vsigs/b/map.tif"])
def test_only_local_files_are_written(model, tmp_path, output):
    with pytest.raises(UserError, match="only local files can be written"):
        detect(model, tmp_path / "missing.tif", output)


@pytest.mark.parametrize("name", [" out.tif", "\n.tif", "file:out.tif", "a&b<c>.tif"])
def test_odd_names_of_outputs(model, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    pixels = noise(5)
    detect(model, write(tmp_path / "in.tif", pixels), name)
    np.testing.assert_array_equal(read(tmp_path / name), pixels[0] % 13 + 1)


def test_an_output_that_is_not_utf8(model, tmp_path):
    with pytest.raises(UserError, match="is not UTF-8, as GDAL requires"):
        detect(model, write(tmp_path / "in.tif", noise(5)), os.fsdecode(b"out\xff.tif"))


def test_arrays_of_coordinates_are_not_lost(model, tmp_path):
    path = write(tmp_path / "in.tif", noise(5), crs=None, transform=None)
    with rasterio.open(path, "r+") as raster:
        raster.update_tags(ns="GEOLOCATION", X_DATASET="lon.tif", Y_DATASET="lat.tif")
    with pytest.raises(UserError, match=r"arrays of coordinates, .*\n  gdalwarp -geoloc -t_srs"):
        detect(model, path, tmp_path / "out.tif")


def test_too_large_a_tile(model, tmp_path):
    path = write(tmp_path / "in.tif", noise(5))
    with pytest.raises(
        UserError, match=r"too little memory for 1 tiles of 1073741824 x 1073741824 pixels: give"
    ):
        flair_jax.detect_raster(model, path, tmp_path / "out.tif", tile=2**30, engine="jax")
    assert list(tmp_path.glob("out*")) == []


@pytest.mark.parametrize(
    "option", [{"resolution": float("nan")}, {"resolution": float("inf")}, {"margin": -2}]
)
def test_options_that_are_no_numbers(model, tmp_path, option):
    with pytest.raises(UserError, match=r"--\w+=\S+ is not a "):
        flair_jax.detect_raster(model, "in.tif", tmp_path / "out.tif", **option)


def test_a_source_of_an_input_is_not_replaced(model, tmp_path):
    tile = write(tmp_path / "tile.tif", noise(5))
    copy(tile, str(tmp_path / "all.vrt"), driver="VRT")
    os.symlink(tile, tmp_path / "link.tif")
    content = (tmp_path / "tile.tif").read_bytes()
    for output in ("tile.tif", "link.tif"):
        with pytest.raises(UserError, match=r"would replace the input .*tile.tif"):
            detect(model, tmp_path / "all.vrt", tmp_path / output, overwrite=True)
    assert (tmp_path / "tile.tif").read_bytes() == content


def test_a_folder_of_that_name_is_not_touched(model, tmp_path):
    path = write(tmp_path / "in.tif", noise(5))
    own = tmp_path / "map.tif.partial"
    own.mkdir()
    (own / "settings.json").write_text("{}")
    (own / "notes.txt").write_text("mine")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UserError, match=r"map.tif.partial is in the way"):
            detect(model, path, tmp_path / "map.tif", **options)
    assert sorted(p.name for p in own.iterdir()) == ["notes.txt", "settings.json"]
    for file in own.iterdir():
        file.unlink()
    own.rmdir()
    own.write_text("mine")
    with pytest.raises(UserError, match=r"map.tif.partial is in the way"):
        detect(model, path, tmp_path / "map.tif")
    assert own.read_text() == "mine"


def test_files_put_beside_partial_results_stay(model, tmp_path, monkeypatch):
    path = write(tmp_path / "in.tif", noise(5))
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "class_areas", _stop)
        with pytest.raises(KeyboardInterrupt):
            detect(model, path, tmp_path / "map.tif")
    (tmp_path / "map.tif.partial" / "notes.txt").write_text("mine")
    detect(model, path, tmp_path / "map.tif", overwrite=True)
    assert [p.name for p in (tmp_path / "map.tif.partial").iterdir()] == ["notes.txt"]


def _stop(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: b""])
def test_a_damaged_row_is_computed_again(model, tmp_path, monkeypatch, damage):
    pixels = noise(5, 60, 20)
    path, output = write(tmp_path / "in.tif", pixels), tmp_path / "map.tif"
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "class_areas", _stop)
        with pytest.raises(KeyboardInterrupt):
            detect(model, path, output)
    row = tmp_path / "map.tif.partial" / "row_000001.tif"
    row.write_bytes(damage(row.read_bytes()))
    with pytest.raises(UserError, match=r"row_000001.tif in .* is removed: the same command with"):
        detect(model, path, output, resume=True)
    detect(model, path, output, resume=True)
    np.testing.assert_array_equal(read(output), pixels[0] % 13 + 1)


def test_what_differs_from_the_interrupted_job(model, tmp_path, monkeypatch):
    paths = [write(tmp_path / f"{i}.tif", noise(5)) for i in range(30)]
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "class_areas", _stop)
        with pytest.raises(KeyboardInterrupt):
            detect(model, paths, tmp_path / "map.tif")
    os.utime(paths[7], ns=(1, 1))
    with pytest.raises(UserError) as error:
        detect(model, paths[::-1], tmp_path / "map.tif", resume=True)
    lines = str(error.value).splitlines()[1:-1]
    assert len(lines) == 2
    assert lines[0].startswith(f"  files: 30 then, 30 now, the first that differs: ['{paths[7]}'")
    assert lines[1] == "  inputs: 30 then, 30 now, in another order"


def test_sidecars_of_an_earlier_raster_do_not_stay(model, tmp_path):
    pixels = noise(5)
    path, output = write(tmp_path / "in.tif", pixels), tmp_path / "map.tif"
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        with rasterio.open(write(output, noise(1)), "r+") as earlier:
            earlier.write_mask(np.zeros(pixels.shape[1:], np.uint8))
        output.unlink()
    with pytest.raises(UserError, match=r"map\.tif\.msk exists: give another --output"):
        detect(model, path, output)
    detect(model, path, output, overwrite=True)
    with rasterio.open(output) as raster:
        assert raster.dataset_mask().all()


def test_two_jobs_do_not_write_to_one_output(model, tmp_path):
    path = write(tmp_path / "in.tif", noise(5))
    output = epath.Path(tmp_path) / "map.tif"
    with job_lock(output), pytest.raises(UserError, match=rf"process {os.getpid()} on .* holds"):
        detect(model, path, output)
    detect(model, path, output)
    assert not (tmp_path / "map.tif.lock").exists()


def test_resuming_a_finished_job_says_so(model, seen, tmp_path, capsys):
    path = write(tmp_path / "in.tif", noise(5))
    output = tmp_path / "map.tif"
    written = detect(model, path, output)
    before = {p: (p.read_bytes(), p.stat().mtime) for p in written}
    seen.clear()
    capsys.readouterr()
    assert detect(model, path, output, resume=True) == written
    assert capsys.readouterr().out == f"{output} is complete: there is nothing to resume\n"
    assert {p: (p.read_bytes(), p.stat().mtime) for p in written} == before
    assert seen == []
    message = "exists, but not from an interrupted detection with these settings: give another"
    with pytest.raises(UserError, match=message):
        detect(model, path, output, resume=True, first_class=0)
    (tmp_path / "map.png").unlink()
    with pytest.raises(UserError, match=message):
        detect(model, path, output, resume=True)
    detect(model, path, output, resume=True, overwrite=True)
    assert (tmp_path / "map.png").exists()


@pytest.mark.parametrize("moved", range(7))
def test_a_kill_between_the_last_renames(model, tmp_path, monkeypatch, moved):
    path = write(tmp_path / "in.tif", noise(5))
    (tmp_path / "reference").mkdir()
    written = detect(model, path, tmp_path / "reference" / "map.tif")
    expected = {p.name: undated(p) for p in written}
    replace, count = type(epath.Path(tmp_path)).replace, 0

    def killed(self, target):
        nonlocal count
        if self.parent.name == "map.tif.partial" and not str(target).startswith(str(self.parent)):
            if count == moved:
                raise KeyboardInterrupt
            count += 1
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(epath.Path(tmp_path)), "replace", killed)
        if moved == len(expected):  # all are moved, and the folder is left
            patch.setattr(detection.PartialJob, "remove", _stop_second())
        with pytest.raises(KeyboardInterrupt):
            detect(model, path, tmp_path / "map.tif")
    assert sum((tmp_path / name).exists() for name in expected) == moved
    detect(model, path, tmp_path / "map.tif", resume=True)
    assert {name: undated(tmp_path / name) for name in expected} == expected
    assert not (tmp_path / "map.tif.partial").exists()


def _stop_second():
    calls = []

    def remove(self):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    return remove
