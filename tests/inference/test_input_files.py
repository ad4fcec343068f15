"""Paths of inputs: lists, globs, folders, containers, files that VRTs refer to."""

import pytest
import rasterio
from rasterio.shutil import copy
from rasters import noise, write

from flair_jax.errors import UserError
from flair_jax.inference.input_files import expand, open_raster, with_sources


def test_lists_and_globs_and_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.tif", "a.tif", "a,b.tif", "[c].tif"):
        (tmp_path / name).touch()
    assert expand("b.tif,a.tif") == ["b.tif", "a.tif"]
    assert expand("?.tif") == ["a.tif", "b.tif"]
    assert expand("a,b.tif") == ["a,b.tif"]
    assert expand("[c].tif") == ["[c].tif"]
    assert expand(" b.tif, ?.tif ,") == ["b.tif", "a.tif", "b.tif"]
    assert expand("a,b.tif,b.tif,[c].tif") == ["a,b.tif", "b.tif", "[c].tif"]
    assert expand("missing.tif,b.tif") == ["missing.tif", "b.tif"]
    assert expand(["https://host/x.tif?a=*", tmp_path / "a.tif"]) == [
        "https://host/x.tif?a=*",
        str(tmp_path / "a.tif"),
    ]
    assert expand("https://host/x?box=1,2,3,https://host/y.tif,b.tif") == [
        "https://host/x?box=1,2,3", "https://host/y.tif", "b.tif",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"no file matches \*\.jp2"):
        expand("*.jp2")
    with pytest.raises(UserError, match="--input=RASTER is needed"):
        expand([])


@pytest.mark.parametrize("folder", ["[2021]", "a,b", "[x],y*z", "with space"])
def test_folders_with_odd_names(tmp_path, monkeypatch, folder):
    inside = tmp_path / folder / "tiles [1]"
    inside.mkdir(parents=True)
    names = [str(inside / f"{i}.tif") for i in range(3)]
    for name in names:
        open(name, "w").close()
    assert expand(str(inside / "*.tif")) == names
    assert expand(names[0]) == names[:1]
    assert expand(f"{names[2]},{inside / '[01].tif'}") == [names[2], *names[:2]]
    assert expand(str(tmp_path / folder / "**" / "*.tif")) == names
    monkeypatch.chdir(tmp_path)
    assert expand(f"{folder}/tiles [[]1]/2.tif") == [f"{folder}/tiles [1]/2.tif"]


@pytest.mark.parametrize("name", [" a.tif", "a.tif ", "zip:a.tif", "file:a.tif", "a\nb.tif"])
def test_names_of_existing_files_are_literal(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name, noise(3))
    assert expand(name) == [name]
    with open_raster(name) as raster:
        assert raster.count == 3


def test_a_folder_is_told_with_the_glob(tmp_path):
    folder = tmp_path / "my tiles"
    folder.mkdir()
    with pytest.raises(UserError, match=r"is a folder.* --input='.*/my tiles/\*\.tif'"):
        open_raster(str(folder))


def test_a_container_lists_its_rasters(tmp_path):
    write(tmp_path / "in.tif", noise(12))
    path = tmp_path / "my file.nc"
    copy(str(tmp_path / "in.tif"), str(path), driver="netCDF")
    with pytest.raises(UserError, match="is a container of 12 rasters") as error:
        open_raster(str(path))
    lines = str(error.value).splitlines()
    assert len(lines) == 10
    assert lines[1].startswith("  'netcdf:")
    assert lines[1].replace('"', "").endswith("my file.nc:Band1'")  # newer GDAL quotes the path
    assert lines[-1] == "  and 4 more, listed by gdalinfo"


@pytest.mark.parametrize("content", ["nothing", "<html></html>", "version https://git-lfs", ""])
def test_a_file_that_is_not_a_raster_is_named(tmp_path, content):
    path = tmp_path / "notes.tif"
    path.write_text(content)
    with pytest.raises(UserError, match=r"notes.tif cannot be opened as a raster \(--input\)"):
        open_raster(str(path))


def test_sources_of_vrts_are_found_through_other_vrts(tmp_path):
    tile = write(tmp_path / "tile.tif", noise(3))
    inner, outer = tmp_path / "inner.vrt", tmp_path / "outer.xml"
    copy(tile, str(inner), driver="VRT")
    outer.write_text(inner.read_text().replace("tile.tif", "inner.vrt"))
    with rasterio.open(outer) as raster:
        files = raster.files
    assert set(with_sources(files)) >= {tile, str(inner), str(outer)}
