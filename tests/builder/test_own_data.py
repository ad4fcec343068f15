import csv
import json
import shutil

import numpy as np
import own_images as own
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tfds_builder.build import build_own, main
from tfds_builder.flair.built import Records, open_built
from tfds_builder.flair.faults import BuildError
from tfds_builder.own import rasters, splits
from tfds_builder.own.classes import read_classes


def build(source, data_dir, name="mine", **options):
    return build_own(name, data_dir=data_dir, num_workers=1, progress=False, **source | options)


def records(folder, split):
    return list(Records(open_built(folder), split))


def metadata(folder):
    return json.loads((folder / "metadata.json").read_text())


def test_images_of_places(tmp_path, capfd):
    """Patches and masks are the files' pixels, cut; nothing is stated that is not known."""
    source = own.places(tmp_path / "in")
    folder = build(source, tmp_path / "out")
    assert folder == tmp_path / "out/own_data/mine/1.0.0"
    for seed, split in enumerate(("train", "val", "test")):
        pixels, values = own.image(64, 100, seed=seed), own.mask(64, 100, seed=seed)[0]
        first, second = records(folder, split)
        name = "abc"[seed]
        assert (first["id"], second["id"]) == (f"{name}_1_0_0".encode(), f"{name}_1_0_64".encode())
        np.testing.assert_array_equal(first["image"], np.moveaxis(pixels[:, :, :64], 0, -1))
        np.testing.assert_array_equal(first["mask"], values[:, :64])
        # The rest of the image, 36 columns wide, is padded and ignored.
        np.testing.assert_array_equal(second["image"][:, :36], np.moveaxis(pixels, 0, -1)[:, 64:])
        np.testing.assert_array_equal(second["mask"][:, :36], values[:, 64:])
        assert (second["image"][:, 36:] == 0).all()
        assert (second["mask"][:, 36:] == 255).all()
        for record in (first, second):
            texts = [record[field] for field in ("domain", "zone", "date", "time", "camera", "crs")]
            assert texts == [name.encode(), b"1", b"", b"", b"", b""]
            assert np.isnan(record["centroid"]).all()
            assert record["transform"].tolist() == [1, 0, 0, 0, 1, 0]  # none
            assert record["has_mask"]
    facts = metadata(folder)
    assert (facts["name"], facts["bands"]) == ("mine", ["red", "green", "blue"])
    assert facts["classes"] == [
        {"value": 1, "name": "water", "colour": "#0000ff", "weight": 1.0},
        {"value": 4, "name": "land", "colour": "#00ff00", "weight": 0.5},
    ]
    assert facts["ignored_colours"] == ["#000000"]
    assert (facts["stored_for_ignored"], facts["stretch"], facts["pixel_size"]) == (255, None, [])
    assert (facts["synthetic"], facts["grouped_by"], facts["crs"]) == (False, "group", ["none"])
    assert (folder / "pairs.csv").read_text().splitlines()[:2] == [
        "image,mask,split,group,date,camera",
        "a/images/1.png,a/masks/1.png,train,a,,",
    ]
    patches = list(csv.DictReader((folder / "patches.csv").open()))
    assert [(row["id"], row["split"], row["column"]) for row in patches[2:4]] == [
        ("b_1_0_0", "val", "0"), ("b_1_0_64", "val", "64"),
    ]  # fmt: skip


def test_the_command_tells_how_to_train(tmp_path, capfd):
    source = own.places(tmp_path / "in")
    flags = [f"--{name}={value}" for name, value in source.items() if "groups" not in name]
    flags += ["--name=mine", f"--data_dir={tmp_path}/a b", "--num_workers=1"]
    flags += ["--val_groups=b", "--test_groups=c"]
    assert main(flags) == 0
    out = capfd.readouterr().out.splitlines()
    assert "found 2 train, 2 val, 2 test patches of 64 x 64 pixels" in out
    assert "note: groups of test: c" in out
    assert out[-1] == (
        f"  flair-jax train --config=own_data --config.data_dir='{tmp_path}/a b'"
        " --config.data_config=mine --config.batch_size=2"
    )
    assert main(flags) == 0
    assert "Nothing was done." in capfd.readouterr().out
    assert main([*flags, "--overlap=32"]) == 1
    assert "overlap is 32, was 0" in capfd.readouterr().err
    assert main([*flags, "--config=published"]) == 1
    assert "--config is for FLAIR, and --classes for your own" in capfd.readouterr().err


def test_the_lists_that_are_written_build_the_same(tmp_path):
    source = own.places(tmp_path / "in")
    first = build(source, tmp_path / "out")
    shutil.copy(first / "pairs.csv", tmp_path / "in/pairs.csv")
    again = {"pairs": tmp_path / "in/pairs.csv", "classes": source["classes"], "patch_size": 64}
    second = build(again, tmp_path / "again")
    for split in ("train", "val", "test"):
        for a, b in zip(records(first, split), records(second, split), strict=True):
            assert a["domain"] == b["domain"]
            np.testing.assert_array_equal(a["image"], b["image"])
            np.testing.assert_array_equal(a["mask"], b["mask"])


def test_four_bands_with_coordinates(tmp_path):
    root = tmp_path / "in"
    for seed, name in enumerate("abc"):
        place = own.at(1000 + 1000 * seed, 500)
        own.write(root / f"i/{name}/x.tif", own.image(64, 128, 4, seed), **place)
        own.write(root / f"m/{name}/x.tif", own.mask(64, 128, seed), **place)
    (root / "classes.csv").write_text(own.CLASSES)
    source = {"images": root / "i", "masks": root / "m", "classes": root / "classes.csv"}
    source |= {"patch_size": 64}
    with pytest.raises(BuildError, match=r"band 4 is tagged alpha.*--bands=red,green,blue,nir"):
        build(source, tmp_path / "out")
    folder = build(source, tmp_path / "out", bands=("nir", "-", "green", "red"))
    facts = metadata(folder)
    assert (facts["bands"], facts["pixel_size"]) == (["nir", "green", "red"], [0.5])
    found = {r["domain"].decode(): r for s in facts["num_patches"] for r in records(folder, s)}
    assert set(found) == set("abc")
    record = found["b"]  # the second patch of its row
    np.testing.assert_array_equal(
        record["image"], np.moveaxis(own.image(64, 128, 4, 1)[[0, 2, 3], :, 64:], 0, -1)
    )
    assert record["transform"].tolist() == [0.5, 0, 2032, 0, -0.5, 500]
    assert record["crs"] == b"EPSG:2154"
    with pytest.raises(BuildError, match="4 bands, and expected are 2"):
        build(source, tmp_path / "out", "other", bands=("red", "green"))


def test_names_of_bands_by_description(tmp_path):
    path = own.write(tmp_path / "x.tif", own.image(8, 8, 2))
    assert "band 1 has neither a description" in rasters.band_names(rasters.read_header(str(path)))
    with rasterio.open(path, "r+") as raster:
        raster.descriptions = ("Near Infrared", "Height")
    assert rasters.band_names(rasters.read_header(str(path))) == ("nir", "height")


def test_other_types_are_stretched(tmp_path):
    source = own.places(tmp_path / "in", shape=(64, 64))
    pixels = np.full((1, 64, 64), 1000, np.uint16)
    pixels[0, :3, 0] = 0, 2000, 9000
    path = own.write(tmp_path / "in/a/images/1.png", pixels, "PNG")
    for name in "bc":
        shutil.copy(path, tmp_path / f"in/{name}/images/1.png")
    with pytest.raises(BuildError, match=r"pixels of uint16, and uint8 is stored.*--stretch="):
        build(source, tmp_path / "out")
    folder = build(source, tmp_path / "out", stretch=((500, 2000),))
    (record,) = records(folder, "train")
    assert record["image"][:4, 0, 0].tolist() == [0, 255, 255, 85]
    assert metadata(folder)["stretch"] == {"gray": [500, 2000]}
    with pytest.raises(BuildError, match="2 ranges, and the images have 1 bands"):
        build(source, tmp_path / "out", "other", stretch=((0, 1), (0, 1)))


def test_missing_pixels_are_ignored(tmp_path):
    source = own.places(tmp_path / "in", shape=(64, 64))
    pixels, place = own.image(64, 64), own.at(0, 0)
    pixels[:, :5] = 255
    pixels[0, 9, 9] = 255  # in one band only
    (tmp_path / "in/a/images/1.png").unlink()
    own.write(tmp_path / "in/a/images/1.tif", pixels, nodata=255, photometric="rgb", **place)
    (record,) = records(build(source, tmp_path / "out"), "train")
    assert (record["mask"][:5] == 255).all()
    assert (record["image"][:5] == 0).all()
    assert (record["mask"][5:] != 255).all()


PALETTE = {0: (0, 0, 0), 1: (0, 255, 0), 2: (0, 0, 255)}


def test_masks_with_a_palette_go_by_its_colours(tmp_path):
    source = own.places(tmp_path / "in", shape=(64, 64))
    indices = np.random.default_rng(0).integers(0, 3, (1, 64, 64), dtype=np.uint8)
    path = tmp_path / "in/a/masks/1.png"
    paletted = Image.fromarray(indices[0], "P")
    paletted.putpalette([c for colour in PALETTE.values() for c in colour])
    paletted.save(path)
    (record,) = records(build(source, tmp_path / "out"), "train")
    np.testing.assert_array_equal(record["mask"], np.array([255, 4, 1])[indices[0]])
    with pytest.raises(BuildError, match=r"mask values that classes.csv does not list: 1\n.*0, 2"):
        build(source, tmp_path / "out", "other", masks_by="values")


def test_faulty_masks(tmp_path):
    source = own.places(tmp_path / "in", shape=(64, 64))
    path = tmp_path / "in/a/masks/1.png"
    values = own.colours(own.mask(64, 64)).copy()
    values[:, 3, 3] = 1, 2, 3
    for pixels, message in (
        (values, r"colours that classes.csv does not list: 1\n.*1.png: #010203, in 1 pixels"),
        (values[:, :, :63], "64 x 63, where the image is 64 x 64"),
        (values[:2], "mask of neither one band nor colours: 1\n.*2 bands"),
    ):
        own.write(path, np.ascontiguousarray(pixels), "PNG")
        with pytest.raises(BuildError, match=message):
            build(source, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_unlisted_values_are_ignored_when_asked(tmp_path):
    source = own.places(tmp_path / "in", shape=(64, 64))
    values = own.mask(64, 64)
    values[0, 0] = 200
    own.write(tmp_path / "in/a/masks/1.png", values, "PNG")
    with pytest.raises(BuildError, match=r"classes.csv does not list: 1\n.*: 200, in 64"):
        build(source, tmp_path / "out")
    (record,) = records(build(source, tmp_path / "out", unlisted="ignore"), "train")
    np.testing.assert_array_equal(record["mask"][0], 255)
    np.testing.assert_array_equal(record["mask"][1:], values[0, 1:])


def test_missing_masks_and_images(tmp_path):
    source = own.places(tmp_path / "in", shape=(64, 64))
    (tmp_path / "in/c/masks/1.png").unlink()
    (record,) = records(build(source, tmp_path / "out"), "test")
    assert not record["has_mask"]
    (tmp_path / "in/a/masks/1.png").rename(tmp_path / "in/a/masks/2.png")
    with pytest.raises(BuildError) as caught:
        build(source, tmp_path / "out", "other")
    assert "mask missing: 1\n    train" in str(caught.value)
    assert "mask without image: 1\n" in str(caught.value)


def test_images_without_any_mask_are_test(tmp_path):
    source = own.places(tmp_path / "in", shape=(64, 64))
    folder = build({"images": source["images"], "patch_size": 64}, tmp_path / "out")
    assert metadata(folder)["num_patches"] == {"test": 3}
    assert metadata(folder)["classes"] == []


def test_truncated_files_are_faults(tmp_path):
    source = own.places(tmp_path / "in", suffix="jpg", driver="JPEG")
    path = tmp_path / "in/a/images/1.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BuildError, match=r"image unreadable: \d\n"):
        build(source, tmp_path / "out")


def test_blocks_of_the_map_share_no_pixel(tmp_path):
    """Overlapping patches of one image: each pixel is of one split at most."""
    root = tmp_path / "in"
    place = own.at(5000, 9000)
    own.write(root / "i.tif", own.image(512, 640, 3), photometric="rgb", **place)
    own.write(root / "m.tif", own.mask(512, 640), **place)
    (root / "classes.csv").write_text(own.CLASSES)
    source = {
        "images": root / "i.tif", "masks": root / "m.tif", "classes": root / "classes.csv",
        "patch_size": 64, "overlap": 32, "split_by": "blocks",
    }  # fmt: skip
    folder = build(source, tmp_path / "out")
    seen = np.zeros((3, 512, 640), bool)
    for number, split in enumerate(("train", "val", "test")):
        for record in records(folder, split):
            row, column = map(int, record["id"].decode().split("_")[-2:])
            seen[number, row : row + 64, column : column + 64] = True
    assert seen.sum(0).max() == 1
    assert seen.any((1, 2)).all()
    assert not (folder / "pairs.csv").exists()  # an image is in several splits
    with pytest.raises(BuildError, match="3 splits need as many groups, and there are 1"):
        build(source, tmp_path / "out", "other", split_by=None)


def test_splits_that_show_the_same_ground_are_reported(tmp_path):
    root = tmp_path / "in"
    for name, left in (("a", 0), ("b", 100), ("c", 10)):
        own.write(root / f"i/{name}/x.tif", own.image(64, 64), photometric="rgb", **own.at(left, 0))
        own.write(root / f"m/{name}/x.tif", own.mask(64, 64), **own.at(left, 0))
    (root / "classes.csv").write_text(own.CLASSES)
    folder = build(
        {"images": root / "i", "masks": root / "m", "classes": root / "classes.csv"},
        tmp_path / "out", patch_size=64, val_groups=("b",), test_groups=("c",),
    )  # fmt: skip
    (note,) = [note for note in metadata(folder)["notes"] if "same ground" in note]
    assert note.startswith("warning: images of train and of test show the same ground, such as ")


def test_pairs_with_dates(tmp_path):
    own.places(tmp_path, shape=(64, 64))
    rows = [("image", "mask", "split", "date", "season")] + [
        (f"{n}/images/1.png", f"{n}/masks/1.png", split, f"2021-0{i}-01", "wet")
        for i, (n, split) in enumerate(zip("abc", ("train", "val", "test"), strict=True), 4)
    ]
    pairs = own.listed(tmp_path, rows)
    source = {"pairs": pairs, "classes": tmp_path / "classes.csv", "patch_size": 64}
    (record,) = records(build(source, tmp_path / "out"), "val")
    assert (record["date"], record["domain"]) == (b"2021-05-01", b"b/images")
    for change, message in (
        ({1: "2021-13-01"}, "line 2: the date is '2021-13-01'; expected a day as YYYY-MM-DD"),
        ({2: "valid"}, "line 2: the split is 'valid'; expected train, val, test"),
        ({0: "nowhere.png"}, r"line 2: there is no file .*nowhere.png"),
        ({2: ""}, "1 of 3 images have no split"),
    ):
        row = list(rows[1])
        for at, text in change.items():
            row[{0: 0, 1: 3, 2: 2}[at]] = text
        own.listed(tmp_path, [rows[0], row, *rows[2:]])
        with pytest.raises(BuildError, match=message):
            build(source, tmp_path / "out", "other")
    own.listed(tmp_path, [[*row[:2], *row[3:]] for row in rows])
    with pytest.raises(BuildError, match="3 splits need as many groups, and there are 1: wet"):
        build(source, tmp_path / "out", "other", split_by="season")
    with pytest.raises(BuildError, match=r"--split_by=year: expected 'folder', 'blocks', or a col"):
        build(source, tmp_path / "out", "other", split_by="year")


def test_two_ways_to_split_contradict_each_other(tmp_path):
    own.places(tmp_path, shape=(64, 64))
    rows = [("image", "mask", "split")] + [
        (f"{n}/images/1.png", f"{n}/masks/1.png", split)
        for n, split in zip("abc", ("train", "val", "test"), strict=True)
    ]
    source = {"pairs": own.listed(tmp_path, rows), "classes": tmp_path / "classes.csv"}
    for options in ({"val_groups": ("b/images",)}, {"split_by": "folder"}):
        with pytest.raises(
            BuildError, match="has a column `split`, and another split is asked for"
        ):
            build(source, tmp_path / "out", **options)


def test_faulty_images_are_left_out_when_asked(tmp_path):
    source = own.places(tmp_path / "in", names="abcd", shape=(64, 64))
    (tmp_path / "in/d/images/1.png").write_bytes(b"no image")
    values = own.mask(64, 64)
    values[0, 0, 0] = 9
    own.write(tmp_path / "in/b/masks/1.png", values, "PNG")
    folder = build(source, tmp_path / "out", on_error="skip")
    assert metadata(folder)["num_patches"] == {"train": 1, "test": 1}
    skipped = list(csv.DictReader((folder / "skipped.csv").open()))
    assert [(row["split"], row["kind"]) for row in skipped] == [
        ("", "image unreadable"), ("val", "mask values that classes.csv does not list"),
    ]  # fmt: skip


def test_another_recipe_is_another_data_set(tmp_path):
    source = own.places(tmp_path / "in", shape=(64, 64))
    contents = []
    for name, options in (("a", {}), ("b", {}), ("c", {"stretch": ((10, 200),)})):
        folder = build(source, tmp_path / "out", name, **options)
        contents.append(json.loads((folder / "fingerprint.json").read_text())["content"])
    assert contents[0] == contents[1] != contents[2]


def test_images_and_masks_of_other_names(tmp_path):
    source = own.places(tmp_path)
    for path in tmp_path.glob("*/masks/1.png"):
        path.rename(path.with_name("1_mask.png"))
    with pytest.raises(BuildError, match="no image has a mask of its name: the first image is"):
        build(source, tmp_path / "out")
    with pytest.raises(BuildError, match=r"--images=.*: there is no such folder"):
        build(source | {"images": tmp_path / "none"}, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "published"}, "--name=published names a folder and a set of classes"),
        ({"name": "a/b"}, "use letters, digits, _ and -"),
        ({"patch_size": 100}, "--patch_size=100 is no multiple of 32 from 64.*: 96, for example"),
        ({"overlap": 64}, "--overlap=64: expected 0 to 63"),
        ({"stretch": ((5.0, 5.0),)}, "--stretch=5,5: expected a lower and a higher value"),
        ({"val_groups": ("z",)}, "--val_groups: there is no group 'z'; there are a, b, c"),
        ({"bands": ("red", "red", "blue")}, "expected names, each once"),
        ({"classes": None}, "the masks need --classes=classes.csv"),
        ({"images": None}, "give either --images=DIR and --masks=DIR, or --pairs"),
        ({"val_groups": (), "test_groups": (), "val_share": 1.0}, "less than 1 together"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, message):
    with pytest.raises(BuildError, match=message):
        build(own.places(tmp_path), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,water,#0000ff\n", "expected a header such as"),
        ("value,name\n1,water\n1,land\n", "line 3: the value 1 is that of line 2 too"),
        ("value,name\n1,water\n256,land\n", "line 3: the value is '256'; expected 0 to 255, or"),
        ("value,name\n1,water\n,land\n", "line 3: the value is ''; expected 0 to 255, or 'ignore'"),
        ("value,name,colour\n1,a,#00f\n2,b,\n", "line 2: the colour is '#00f'; expected one like"),
        ("value,name,colour\n1,a,#00000f\n2,b,#00000F\n", "line 3: the colour #00000F is that of"),
        ("value,name,weight\n1,a,-1\n2,b,\n", "line 2: the weight is '-1'; expected a number"),
        ("value,name,weight\n1,a,1\n2,a,2\n3,b,1\n", "line 3: 'a' has another weight in another"),
        ("value,name\n1,a\n2,a\n", "expected at least two classes"),
        ("value,name\n1,a\nignore,b\n2,c\n", "what is ignored has neither a value nor a colour"),
        ("value,name,weight\n1,a,0\n2,b,0\n", "one with a weight above 0"),
        ("value,name,area\n1,a,3\n", "the columns are value, name, area; expected a header"),
        ("value,name\n", "names no class"),
        ("value,name\n1,a,b\n", "line 2: 3 cells, and the header has 2"),
    ],
)
def test_classes_that_cannot_be(tmp_path, text, message):
    (tmp_path / "classes.csv").write_text(text)
    with pytest.raises(BuildError, match=message):
        read_classes(str(tmp_path / "classes.csv"))


def test_classes_of_several_values(tmp_path):
    path = tmp_path / "classes.csv"
    path.write_text("Value,Name,Color\n0,built,#ff0000\n255,road,\n7,built,\n9,ignore,\n")
    classes = read_classes(str(path))
    assert [(c.value, c.name) for c in classes.classes] == [
        (0, "built"), (255, "road"), (7, "built"),
    ]  # fmt: skip
    assert classes.classes[2].colour == "#ff0000"
    assert (classes.ignore, classes.ignored_values) == (254, (9,))
    stored = classes.stored_values()
    assert {v: stored[v] for v in (0, 1, 7, 9, 255)} == {0: 0, 1: -1, 7: 7, 9: 254, 255: 255}
    path.write_text("name,colour\nbuilt,#ff0000\nroad,#00ff00\n")
    assert read_classes(str(path)).colours == {(255, 0, 0): 1, (0, 255, 0): 2}


@given(
    st.dictionaries(st.text("abcdef", min_size=1), st.integers(1, 50), min_size=3, max_size=20),
    st.integers(0, 5),
)
def test_random_splits_are_of_whole_groups_and_repeatable(counts, seed):
    chosen = splits.assign(counts, seed=seed)
    assert chosen.keys() == counts.keys()
    assert set(chosen.values()) == {"train", "val", "test"}
    assert chosen == splits.assign(dict(reversed(counts.items())), seed=seed)


@given(st.integers(1, 400), st.sampled_from((64, 128)), st.integers(0, 63))
def test_cutting_covers_an_axis_once(length, side, overlap):
    padded = rasters.starts(length, side, overlap, "pad")
    covered = np.zeros(length, int)
    for start in padded:
        covered[start : start + side] += 1
    assert covered.min() == 1 or (overlap and covered.min() >= 1)
    assert all(start + overlap < length or start == 0 for start in padded)
    dropped = rasters.starts(length, side, overlap, "drop")
    assert dropped == [start for start in padded if start + side <= length]
