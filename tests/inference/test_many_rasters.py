"""A folder of maps: what is kept, what fails, what is refused."""

import detecting
import numpy as np
import pytest
from rasterio.transform import Affine
from rasters import PLACE, noise, write

import flair_jax
from flair_jax.cli.commands import main
from flair_jax.errors import UserError
from flair_jax.inference import detection, many_rasters
from flair_jax.runtime.preemption import Preempted

TILES = {"engine": "jax", "tile": detecting.TILE, "margin": detecting.MARGIN, "batch_size": 4}
FLAGS = [f"--{name}={value}" for name, value in TILES.items()]


@pytest.fixture(scope="module")
def rasters(tmp_path_factory):
    """Three rasters, the second of which is no raster."""
    folder = tmp_path_factory.mktemp("rasters")
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        detecting.write(folder / f"{name}.tif", detecting.patches(60, 70, seed))
    (folder / "b.tif").write_text("no raster")
    return folder


def test_each_has_the_map_of_its_own_and_the_failure_is_listed(model, rasters, tmp_path, capsys):
    outcome = flair_jax.detect_rasters(model, str(rasters / "*.tif"), tmp_path / "maps", **TILES)
    a, b, c = (str(rasters / f"{name}.tif") for name in "abc")
    assert list(outcome.maps) == [a, c]
    assert list(outcome.failed) == [b]
    assert outcome.failed[b].startswith(f"{b} cannot be opened as a raster (--input)")
    for path, written in outcome.maps.items():
        detecting.detect(model, path, tmp_path / "one.tif", overwrite=True)
        np.testing.assert_array_equal(detecting.read(tmp_path / "one.tif"), detecting.read(written))
    printed = capsys.readouterr().out
    assert f"2 of 3 rasters have a map\n1 failed:\n  {b}: {b} cannot be opened" in printed
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert names == [
        f"{n}.{suffix}"
        for n in "ac"
        for suffix in ("json", "png", "qml", "stac.json", "tif", "tif.aux.xml")
    ]


def test_what_is_finished_is_kept(model, rasters, tmp_path, monkeypatch):
    paths = [rasters / "a.tif", rasters / "c.tif"]
    flair_jax.detect_rasters(model, paths[:1], tmp_path, **TILES)
    detected = []
    plain = detection._Job._detect

    def noting(self, *arguments):
        detected.append(self.output.name)
        return plain(self, *arguments)

    monkeypatch.setattr(detection._Job, "_detect", noting)
    outcome = flair_jax.detect_rasters(model, paths, tmp_path, **TILES)
    assert (len(outcome.maps), detected) == (2, ["c.tif"])
    # With other settings, it must be said that the maps may be replaced.
    outcome = flair_jax.detect_rasters(model, paths, tmp_path, first_class=0, **TILES)
    assert all("give another --output, or --overwrite" in why for why in outcome.failed.values())
    assert (len(outcome.failed), detected) == (2, ["c.tif"])
    outcome = flair_jax.detect_rasters(
        model, paths, tmp_path, first_class=0, overwrite=True, **TILES
    )
    assert (len(outcome.maps), detected) == (2, ["c.tif", "a.tif", "c.tif"])


def test_an_interrupted_one_is_continued(model, rasters, tmp_path, monkeypatch):
    paths = [rasters / "a.tif", rasters / "c.tif"]
    plain = detection.predict_rows

    def stopping(source, *arguments, **more):
        if source.name.endswith("c.tif"):
            raise Preempted("stopped by SIGTERM")
        return plain(source, *arguments, **more)

    monkeypatch.setattr(detection, "predict_rows", stopping)
    with pytest.raises(Preempted):
        flair_jax.detect_rasters(model, paths, tmp_path, **TILES)
    assert (tmp_path / "a.tif").exists()
    assert (tmp_path / "c.tif.partial").exists()
    monkeypatch.setattr(detection, "predict_rows", plain)
    assert len(flair_jax.detect_rasters(model, paths, tmp_path, **TILES).maps) == 2
    assert not (tmp_path / "c.tif.partial").exists()


def test_a_fault_of_the_program_does_not_cost_the_others(
    model, rasters, tmp_path, monkeypatch, capsys
):
    plain = detection.predict_rows

    def failing(source, *arguments, **more):
        if source.name.endswith("a.tif"):
            raise ZeroDivisionError("a fault")
        return plain(source, *arguments, **more)

    monkeypatch.setattr(detection, "predict_rows", failing)
    paths = [str(rasters / "a.tif"), str(rasters / "c.tif")]
    outcome = flair_jax.detect_rasters(model, paths, tmp_path, **TILES)
    assert outcome.failed == {paths[0]: "ZeroDivisionError: a fault"}
    assert list(outcome.maps) == paths[1:]
    assert "Traceback" in capsys.readouterr().out


def test_the_model_is_loaded_once(checkpoint, rasters, tmp_path, monkeypatch):
    loaded = []
    plain = many_rasters.load_model

    def counting(*arguments, **more):
        loaded.append(arguments)
        return plain(*arguments, **more)

    monkeypatch.setattr(many_rasters, "load_model", counting)
    monkeypatch.setattr(detection, "load_model", counting)
    paths = [rasters / "a.tif", rasters / "c.tif"]
    flair_jax.detect_rasters(checkpoint, paths, tmp_path, **TILES)
    assert len(loaded) == 1


def test_rasters_outside_the_area_are_no_failures(model, rasters, tmp_path):
    pixels = detecting.patches(60, 70, 1)
    beside = PLACE @ Affine.translation(70, 0)
    detecting.write(tmp_path / "beside.tif", pixels, transform=beside)
    bounds = 900_000, 6_499_990, 900_009, 6_500_000
    paths = [str(rasters / "a.tif"), str(tmp_path / "beside.tif")]
    outcome = flair_jax.detect_rasters(model, paths, tmp_path / "maps", bounds=bounds, **TILES)
    assert (list(outcome.maps), outcome.outside, outcome.failed) == (paths[:1], paths[1:], {})
    assert "1 are outside the area of interest" in outcome.summary()


def test_one_file_of_infrared_for_all(model, tmp_path):
    """Which each raster takes its part of."""
    pixels = detecting.patches(60, 140)
    whole = [0, 1, 2, 4]
    infrared = detecting.write(tmp_path / "nir.tif", pixels[3:4])
    paths, expected = [], []
    for name, left in (("w", 0), ("e", 70)):
        place = PLACE @ Affine.translation(left, 0)
        part = pixels[:, :, left : left + 70]
        paths.append(detecting.write(tmp_path / f"{name}.tif", part[whole], transform=place))
        all_bands = detecting.write(tmp_path / f"all_{name}.tif", part, transform=place)
        detecting.detect(model, all_bands, tmp_path / f"map_{name}.tif")
        expected.append(detecting.read(tmp_path / f"map_{name}.tif"))
    outcome = flair_jax.detect_rasters(model, paths, tmp_path / "maps", nir=infrared, **TILES)
    assert outcome.failed == {}
    for written, of_one in zip(outcome.maps.values(), expected, strict=True):
        np.testing.assert_array_equal(detecting.read(written), of_one)


@pytest.mark.parametrize(
    ("names", "output_dir", "options", "message"),
    [
        (["x/a.tif", "y/a.tif"], "maps", {}, r"x/a.tif and y/a.tif would both write .*maps/a.tif"),
        (["x/a.tif", "x/A.tif"], "maps", {}, r"x/a.tif and x/A.tif would both write .*/A.tif"),
        (["x/a.tif", "x/a.tif"], "maps", {}, "x/a.tif is given twice"),
        (["x/a.tif", "x/a_confidence.tif"], "maps", {"confidence": True}, "would both write"),
        (["x/a.tif"], "x", {}, r"would replace the input x/a.tif: give another --output"),
        (["y/b.tif", "x/b.png"], "x", {}, r"would replace the input x/b.png"),
        (["x/a.tif"], "x/a.tif", {}, "--output_dir=x/a.tif is a file: give a folder"),
        (["x/a.tif"], "maps", {"polygons": "a.gpkg"}, "--polygons=a.gpkg is one file"),
        (["x/a.tif"], "maps", {"tile": 5}, "--tile=5 is not a multiple of 32"),
        (["x/a.tif"], "gs://bucket/maps", {}, "only local files can be written"),
        ([], "maps", {}, "--input=RASTER is needed"),
    ],
)
def test_what_is_refused_before_anything_is_done(
    tmp_path, monkeypatch, names, output_dir, options, message
):
    monkeypatch.chdir(tmp_path)
    for name in ("x/a.tif", "x/A.tif", "y/a.tif", "x/a_confidence.tif", "y/b.tif", "x/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, noise(5))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        flair_jax.detect_rasters("no/checkpoint", names, output_dir, **options)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b.c.tif", "b.c"),
        ("https://example.org/x/ortho.tif?token=a/b", "ortho"),
        ('NETCDF:"a/b.nc":colour', "colour"),
        ("/vsizip/a.zip/b.jp2", "b"),
    ],
)
def test_names_of_maps(path, name):
    assert many_rasters._name(path) == name


def test_the_command(checkpoint, rasters, tmp_path, capsys):
    flags = [f"--checkpoint={checkpoint}", f"--output_dir={tmp_path}", *FLAGS]
    assert main(["detect", *flags, f"--input={rasters}/*.tif"]) == 1
    printed = capsys.readouterr()
    assert "2 of 3 rasters have a map\n1 failed:\n" in printed.out
    assert main(["detect", *flags, f"--input={rasters}/a.tif"]) == 0
    assert "is complete: there is nothing to resume" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "one of the arguments --output --output_dir is required"),
        (["--output=a.tif", "--output_dir=b"], "--output_dir: not allowed with argument --output"),
        (["--output=a.tif", "--stack=nir"], "'nir' is not BAND=FILE or BAND=FILE:N"),
        (["--output=a.tif", "--stack", "nir=a.tif", "nir=b.tif"],
         "--stack gives nir twice: a.tif and b.tif"),
        (["--output=a.tif", "--bounds=1,2,3"], "'1,2,3' is not LEFT,BOTTOM,RIGHT,TOP"),
    ],
)  # fmt: skip
def test_flags_that_contradict(flags, message, capsys):
    assert main(["detect", "--checkpoint=x", "--input=a.tif", *flags]) == 2
    assert message in capsys.readouterr().err
