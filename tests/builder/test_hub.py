"""FLAIR-HUB's builder on a synthetic stand-in in its names and layout."""

import contextlib
import csv
import dataclasses
import json
import re
import shutil
import sqlite3
import zipfile
from fractions import Fraction

import hub_data
import numpy as np
import pytest
import rasterio
from download import edit_metadata, rewrite
from hub_data import ELEVATION, IMAGE, MASK
from hypothesis import given
from hypothesis import strategies as st

from flair_jax.data import synthetic
from flair_jax.data.nomenclature import BASELINE, COSIA, FULL, HUB, nomenclature
from tfds_builder.build import build, main
from tfds_builder.flair.built import Records, open_built
from tfds_builder.flair.faults import BuildError
from tfds_builder.flair.files import File
from tfds_builder.hub import source as source_lib
from tfds_builder.hub.patches import height_steps
from tfds_builder.hub.reference import CLASSES, FLAIR_VALUES

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The stand-in; not to be changed."""
    root = tmp_path_factory.mktemp("hub")
    return hub_data.make(root / "hub", root / "flair")


@pytest.fixture(scope="module")
def built(made, tmp_path_factory):
    return build_hub(made, tmp_path_factory.mktemp("built"))


@pytest.fixture
def hub(made, tmp_path):
    """A copy, to be damaged."""
    for folder in ("hub", "flair"):
        shutil.copytree(made.root.with_name(folder), tmp_path / folder)
    return dataclasses.replace(made, root=tmp_path / "hub", flair=tmp_path / "flair")


def build_hub(hub, data_dir, **options):
    return build(hub.root, data_dir, "hub", num_workers=1, progress=False, **options)


def records(folder, split):
    return {r["id"].decode(): r for r in Records(open_built(folder), split)}


def metadata(folder):
    return json.loads((folder / "metadata.json").read_text())


def read(path):
    with rasterio.open(path) as raster:
        return raster.read()


def test_records_are_the_files(made, built):
    """Image and mask as they are, the height in steps of 0.2 m; what is not known is empty."""
    assert built.parts[-3:] == ("flair_hub", "hub", "1.0.0")
    entries = json.loads(made.metadata.read_text())
    for split in SPLITS:
        of_split = records(built, split)
        assert set(of_split) == set(made.patch_ids[split])
        for patch_id, record in of_split.items():
            image, elevation, mask = (
                read(made.file(patch_id, modality)) for modality in (IMAGE, ELEVATION, MASK)
            )
            np.testing.assert_array_equal(record["image"][..., :4], np.moveaxis(image, 0, -1))
            steps = 5 * (elevation[0].astype(float) - elevation[1].astype(float))
            np.testing.assert_array_equal(record["image"][..., 4], steps.round().clip(0, 255))
            np.testing.assert_array_equal(record["mask"], mask[0])
            assert record["has_mask"]
            domain, region, _ = patch_id.split("_")
            entry = entries[f"IMG_{made.number[patch_id]}"]
            texts = [record[f] for f in ("domain", "zone", "date", "time", "camera", "crs")]
            known = (domain, region, entry["date"], "", "", "EPSG:2154")
            assert texts == [text.encode() for text in known]
            with rasterio.open(made.file(patch_id, IMAGE)) as raster:
                assert record["transform"].tolist() == list(raster.transform[:6])
            x, y, z = record["centroid"]
            assert (x, y) == pytest.approx(
                (entry["patch_centroid_x"], entry["patch_centroid_y"]), abs=0.01
            )
            assert np.isnan(z)


def test_what_is_stated_of_the_data_set(built):
    facts = metadata(built)
    assert (facts["name"], facts["synthetic"], facts["grouped_by"]) == ("FLAIR-HUB", True, "domain")
    assert facts["bands"] == ["red", "green", "blue", "nir", "height"]
    assert [entry["value"] for entry in facts["classes"]] == list(range(19))
    assert [entry["weight"] for entry in facts["classes"]] == [1] * 15 + [0] * 4
    assert facts["notes"] == []
    assert not (built / "flair1.csv").exists()


def test_classes_are_those_of_flair_1_but_for_the_order():
    """Names and colours are FLAIR #1's, as in the reference's table."""
    assert sorted(FLAIR_VALUES) == list(range(1, 20))
    assert [name for name, _ in CLASSES.values()][:4] == [
        "building", "greenhouse", "swimming pool", "impervious surface",
    ]  # fmt: skip
    for value, flairs in enumerate(FLAIR_VALUES):
        assert CLASSES[value][1] == FULL.classes[flairs - 1].colour
        if flairs != 19:
            assert CLASSES[value][0] == FULL.names[flairs - 1]
    assert COSIA.names == HUB.names
    assert COSIA.names[18] == "undefined"
    assert HUB.labels[:20].tolist() == [*range(19), 255]
    assert COSIA.labels[list(FLAIR_VALUES)].tolist() == list(range(19))
    assert HUB.weights.tolist() == COSIA.weights.tolist() == [1] * 15 + [0] * 4


@pytest.mark.parametrize("only", ["all", "one of three"])
def test_zips_and_folders_build_the_same(made, built, tmp_path, only, capsys):
    """Records and fingerprint; a second build finds that nothing has changed."""
    chosen = {"all": lambda name: True, "one of three": lambda name: IMAGE in name}[only]
    zips = hub_data.zipped(made, tmp_path / "zips", chosen)
    assert len(list(zips.root.glob("*.zip"))) == {"all": 34, "one of three": 11}[only]
    folder = build_hub(zips, tmp_path / "out")
    for split in SPLITS:
        a, b = records(built, split), records(folder, split)
        assert list(a) == list(b)
        for patch_id, record in a.items():
            for field, value in record.items():
                np.testing.assert_array_equal(value, b[patch_id][field])
    contents = [json.loads((f / "fingerprint.json").read_text()) for f in (built, folder)]
    assert contents[0]["content"] == contents[1]["content"]
    args = [f"--source={made.root}", f"--data_dir={tmp_path}/out", "--config=hub"]
    assert main(args) == 0
    assert "Nothing was done." in capsys.readouterr().out


def test_a_changed_elevation_is_another_source(hub, tmp_path):
    build_hub(hub, tmp_path / "out")
    changed = hub.file(hub.patch_ids["val"][0], ELEVATION)
    rewrite(changed, lambda bands: bands + 1)
    with pytest.raises(BuildError, match=f"changed elevations: 1, the first: {changed}"):
        build_hub(hub, tmp_path / "out")


def test_masks_mapped_to_flair_1s_values_are_flair_1s(made, tmp_path):
    """And images, dates and positions are those of FLAIR #1's stand-in, patch by patch."""
    flair = build(made.flair, tmp_path / "flair", num_workers=1, progress=False)
    folder = build_hub(made, tmp_path / "hub", split="flair1", flair1_metadata=made.metadata)
    for split in SPLITS:
        flairs, of_hub = records(flair, split), records(folder, split)
        assert len(flairs) == len(of_hub)
        for patch_id, record in of_hub.items():
            same = flairs[made.number[patch_id]]
            for field in ("image", "date", "transform"):
                np.testing.assert_array_equal(record[field], same[field])
            np.testing.assert_array_equal(np.array(FLAIR_VALUES)[record["mask"]], same["mask"])
            for chosen in (BASELINE, FULL, COSIA):
                mapped = nomenclature(chosen.name, of_data=HUB)
                np.testing.assert_array_equal(
                    mapped.labels[record["mask"]], chosen.labels[same["mask"]]
                )
    with pytest.raises(BuildError, match="split is 'hub', was 'flair1'"):
        build_hub(made, tmp_path / "hub")


def test_every_value_of_the_masks(hub, tmp_path):
    """All 19 values are stored as they are."""

    def all_values(bands):
        bands[0, 0, :19] = range(19)
        return bands

    patch_id = hub.patch_ids["test"][0]
    rewrite(hub.file(patch_id, MASK), all_values)
    folder = build_hub(hub, tmp_path / "out")
    assert records(folder, "test")[patch_id]["mask"][0, :19].tolist() == list(range(19))


def test_patches_of_flair_1(hub, tmp_path, capsys):
    """They are found by position; those without a counterpart are listed, and not guessed."""
    first, second, third = hub.patch_ids["train"][:3]
    gone, moved, left_out = (f"IMG_{hub.number[patch_id]}" for patch_id in (first, second, third))
    for modality in hub_data.MODALITIES:
        hub.file(first, modality).unlink()  # a patch that FLAIR-HUB does not have

    def change(entries):
        entries[moved]["patch_centroid_x"] += 0.5  # more than two pixels
        entries[gone]["domain"], entries[left_out]["domain"] = "D006_2020", "D001_2019"

    edit_metadata(hub.flair, change)
    args = [f"--source={hub.root}", f"--data_dir={tmp_path}/out", "--config=hub", "--split=flair1"]
    assert main(args) == 1
    assert "give --flair1_metadata=flair-1_metadata_aerial.json" in capsys.readouterr().err
    with zipfile.ZipFile(tmp_path / "metadata.zip", "w") as archive:
        archive.write(hub.metadata, "flair-1_metadata_aerial/flair-1_metadata_aerial.json")
    assert main([*args, f"--flair1_metadata={tmp_path}/metadata.zip"]) == 0
    out = capsys.readouterr().out
    assert "found 9 train, 4 val, 4 test patches" in out
    assert (
        "note: 2 of FLAIR #1's 19 patches in the domains of this source have no counterpart in"
        " FLAIR-HUB: see flair1.csv" in out
    )
    assert "note: absent domains of FLAIR #1, 1, with 1 patches: D001_2019" in out
    folder = tmp_path / "out/flair_hub/hub/1.0.0"
    rows = {row["flair1"]: row for row in csv.DictReader((folder / "flair1.csv").open())}
    assert len(rows) == 19
    assert rows[moved] == {
        "split": "train", "flair1": moved, "patch_id": "", "nearest_patch_id": second,
        "metres": "0.50",
    }  # fmt: skip
    assert rows[gone]["patch_id"] == ""
    matched = {row["patch_id"] for row in rows.values()} - {""}
    stored = {patch_id for split in SPLITS for patch_id in records(folder, split)}
    assert matched == stored == {p for s in SPLITS for p in hub.patch_ids[s]} - {
        first, second, third,
    }  # fmt: skip


def test_faults_of_flair_1s_metadata(hub, tmp_path):
    def flair1(match, metadata=hub.metadata):
        with pytest.raises(BuildError, match=match):
            build_hub(hub, tmp_path / "out", split="flair1", flair1_metadata=metadata)

    flair1("none.json cannot be read: No such file", tmp_path / "none.json")
    (tmp_path / "a.json").write_text("{}")
    flair1("a.json: expected FLAIR #1's metadata", tmp_path / "a.json")
    (tmp_path / "b.json").write_text("{")
    flair1("b.json cannot be read: Expecting property name", tmp_path / "b.json")
    (tmp_path / "c.zip").write_text("no zip")
    flair1("c.zip cannot be read: File is not a zip file", tmp_path / "c.zip")
    text = hub.metadata.read_text()

    def change(change):
        hub.metadata.write_text(text)
        edit_metadata(hub.flair, change)

    change(lambda entries: entries["IMG_000001"].pop("patch_centroid_x"))
    flair1(r"IMG_000001 has no domain or no position \(KeyError")
    change(lambda entries: entries["IMG_000001"].update(patch_centroid_x=float("nan")))
    flair1("the position of IMG_000001 is nan, ")
    change(lambda entries: entries.update(IMG_000077=entries["IMG_000001"]))
    first = hub.patch_ids["train"][0]
    flair1(f"IMG_000001 and IMG_000077 are both at the position of {first}")
    change(
        lambda entries: [
            e.update(patch_centroid_x=0) for e in entries.values() if isinstance(e, dict)
        ]
    )
    flair1("none of the 20 patches in --flair1_metadata=.* by domain and position")
    hub.metadata.write_text(text)
    for modality in hub_data.MODALITIES:
        copy = hub.file(first[:-2] + "11", modality)
        shutil.copy(hub.file(first, modality), copy)
    flair1(f"{first} and {first[:-2]}11 are both at the position of IMG_000001")


def test_heights():
    terrain = np.full(9, 100, np.float32)
    above = np.array([-3, -0.05, 0, 0.09, 0.11, 0.2, 50.9, 51, 400], np.float32)
    steps = height_steps(terrain + above, terrain)
    assert (steps.dtype, steps.tolist()) == (np.uint8, [0, 0, 0, 0, 1, 1, 254, 255, 255])


# Damage of a patch, and the kind and detail of the fault.
def put(modality, change, **profile):
    def damage(hub, patch_id):
        rewrite(hub.file(patch_id, modality), change, **profile)

    return damage


def pixel(value):
    def change(bands):
        bands[0, 3, 3] = value
        return bands

    return change


def moved(bands):
    return bands


def truncate(modality):
    def damage(hub, patch_id):
        path = hub.file(patch_id, modality)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def remove(modality):
    return lambda hub, patch_id: hub.file(patch_id, modality).unlink()


def unlist(modality):
    def damage(hub, patch_id):
        for each in hub_data.MODALITIES:
            hub.file(patch_id, each).unlink()

    return damage


def copy(hub, patch_id):
    twice = hub.root / "again" / hub.file(patch_id, IMAGE).name
    twice.parent.mkdir()
    shutil.copy(hub.file(patch_id, IMAGE), twice)


SHIFT = rasterio.Affine(0.2, 0, 500_000, 0, -0.2, 6_600_000)
NO_POSITION = rasterio.Affine.identity()
DAMAGE = [
    (remove(IMAGE), r"AERIAL_RGBI missing: 1\n    val  {id}: there is no {image}"),
    (remove(ELEVATION), r"DEM_ELEV missing: 1\n    val  {id}: there is no {elevation}"),
    (remove(MASK), r"AERIAL_LABEL-COSIA missing: 1\n    val  {id}: there is no {mask}"),
    (
        unlist(IMAGE),
        r"listed but not found: 1\n    val  {id}: .*VALID.csv, line 2; not in {root}",
    ),
    (copy, r"patch twice: 1\n    val  .*{image}: also .*{image}"),
    (put(IMAGE, lambda b: b[:3]), r"image without 4 bands: 1\n    val  .*{image}: 3 bands"),
    (put(IMAGE, lambda b: b.astype(np.uint16)), "image not uint8: 1\n    val  .*{image}: uint16"),
    (put(ELEVATION, lambda b: b[:1]), r"elevation without 2 bands, .*\n    val  .*: 1 bands"),
    (put(ELEVATION, lambda b: b.astype(np.int16)), "elevation not float32: 1\n .*: int16"),
    (put(MASK, pixel(19)), r"mask value outside 0..18: 1\n    val  .*{mask}: found 19"),
    (put(MASK, pixel(255)), r"mask value outside 0..18: 1\n    val  .*{mask}: found 255"),
    (
        put(IMAGE, lambda b: b[:, :32]),
        r"size not the data set's: 1\n    val  .*{image}: 32 x 64, where the others are 64 x 64",
    ),
    (
        put(ELEVATION, lambda b: b[:, :32]),
        r"elevation of another size than the image: 1\n .*{elevation}: 32 x 64, where the image",
    ),
    (put(MASK, lambda b: b[:, :, :32]), "mask of another size than the image: 1\n .*: 64 x 32"),
    (put(MASK, moved, transform=SHIFT), r"mask at another position than the image: 1\n .*{mask}"),
    (put(ELEVATION, moved, transform=SHIFT), "elevation at another position than the image: 1"),
    (put(ELEVATION, moved, crs="EPSG:32631"), "elevation in another CRS than the image: 1"),
    (put(IMAGE, moved, transform=NO_POSITION), "image without a position: 1\n .*no coordinates"),
    (truncate(IMAGE), r"image unreadable: 1\n    val  .*{image}: "),
    (truncate(ELEVATION), r"elevation unreadable: 1\n    val  .*{elevation}: "),
    (truncate(MASK), r"mask unreadable: 1\n    val  .*{mask}: "),
    (put(ELEVATION, pixel(np.nan)), r"elevation with missing values: 1\n .*: 1 pixels, with nan"),
    (put(ELEVATION, pixel(np.inf)), r"elevation with missing values: 1\n .*: 1 pixels, with inf"),
    (put(ELEVATION, pixel(-9999)), r"elevation with missing values: .*\n .*: 1 pixels, with -9999"),
    (put(ELEVATION, pixel(7), nodata=7), r"elevation with missing values: .*\n .*, with 7"),
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=[text.split(":")[0] for _, text in DAMAGE])
def test_faults_of_patches(hub, tmp_path, damage):
    """One message names the file and what is wrong; the patch can be left out."""
    change, expected = damage
    patch_id = hub.patch_ids["val"][0]
    change(hub, patch_id)
    names = {
        modality: re.escape(hub.file(patch_id, m).name)
        for modality, m in (("image", IMAGE), ("elevation", ELEVATION), ("mask", MASK))
    }
    with pytest.raises(BuildError) as error:
        build_hub(hub, tmp_path / "out")
    text = expected.format(id=re.escape(patch_id), root=re.escape(str(hub.root)), **names)
    assert re.search(text, str(error.value)), str(error.value)
    assert re.match(r"[123] faults? in \d+ patches; nothing was built", str(error.value))
    assert not list((tmp_path / "out").rglob("*.json"))
    folder = build_hub(hub, tmp_path / "out", on_error="skip")
    assert set(records(folder, "val")) == set(hub.patch_ids["val"][1:])
    assert metadata(folder)["num_faults_skipped"] in (1, 2, 3)


def quiet(read, *arguments):
    """Whatever it is given, what it raises is the builder's error."""
    with contextlib.suppress(BuildError):
        return list(read(*arguments))


TEXTS = st.text(st.sampled_from("patch_id;,\n\r\"'D0126-9_AFS\x00é"), max_size=60)


@given(st.one_of(TEXTS.map(str.encode), st.binary(max_size=40)), st.booleans())
def test_any_list_is_read_or_refused(tmp_path_factory, content, header):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(b"DEM_ELEV,patch_id\n" * header + content)
    for key in quiet(source_lib.read_lists, {"train": File("", str(path))}) or ():
        assert source_lib._PATCH_ID.fullmatch(key.number)


@given(st.data())
def test_any_damage_of_the_dates_is_harmless_or_refused(made, tmp_path_factory, data):
    content = bytearray(made.dates.read_bytes())
    start = data.draw(st.integers(0, len(content) - 1))
    damage = data.draw(st.binary(min_size=1, max_size=64))
    content[start : start + len(damage)] = damage
    path = tmp_path_factory.getbasetemp() / "AERIAL_MTD_DATES.gpkg"
    path.write_bytes(content[: data.draw(st.sampled_from([None, start]))])
    quiet(source_lib.read_dates, [File("", str(path))])


# Of numbers that are not nearly 0, for which float64 gives the difference exactly.
@given(
    st.floats(-100, 4810, width=32).filter(lambda metres: metres == 0 or abs(metres) >= 2**-10),
    st.floats(-20, 300, width=32),
)
def test_heights_are_exact(terrain, above):
    """Against fractions; halves go to the even number."""
    surface = np.float32(terrain) + np.float32(above)
    exact = round(5 * (Fraction(float(surface)) - Fraction(terrain)))
    found = height_steps(np.array([surface]), np.array([terrain], np.float32))
    assert found.tolist() == [min(max(exact, 0), 255)]


def fails(hub, tmp_path, match, **options):
    with pytest.raises(BuildError, match=match):
        build_hub(hub, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("modality", hub_data.MODALITIES)
def test_no_files_of_a_modality(hub, tmp_path, modality):
    shutil.rmtree(hub.root / f"D012-2019_{modality}")
    others = " and ".join(other for other in hub_data.MODALITIES if other != modality)
    match = (
        f"has {others} of D012-2019, but no {modality}: put D012-2019_{modality}.zip beside it,"
        " zipped or unpacked$"
    )
    fails(hub, tmp_path, match)


def test_no_images(hub, tmp_path):
    for path in hub.root.rglob(f"*_{IMAGE}_*.tif"):
        path.unlink()
    fails(hub, tmp_path, r"(?s)no aerial images of FLAIR-HUB in .*D012-2019_AERIAL_RGBI_AF-S1-27")
    shutil.rmtree(hub.root)
    fails(hub, tmp_path, "hub does not exist")


def test_damaged_zip(hub, tmp_path):
    hub = hub_data.zipped(hub, tmp_path / "zips")
    archive = hub.root / "D014-2020_DEM_ELEV.zip"
    archive.write_bytes(archive.read_bytes()[:-100])
    fails(hub, tmp_path, f"(?s)damaged or incomplete files.*{archive}: File is not a zip file")


def test_a_damaged_file_in_a_zip(hub, tmp_path):
    """The CRC-32 of the zip tells, though the TIFF can be read."""
    hub = hub_data.zipped(hub, tmp_path / "zips")
    archive = hub.root / "D014-2020_DEM_ELEV.zip"
    with zipfile.ZipFile(archive) as members:
        member = next(m for m in members.infolist() if m.filename.endswith(".tif"))
        content = {m.filename: members.read(m) for m in members.infolist() if not m.is_dir()}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as stored:
        for name, of_file in content.items():
            stored.writestr(name, of_file)
        offset = stored.getinfo(member.filename).header_offset
    changed = bytearray(archive.read_bytes())
    changed[offset + 30 + len(member.filename) + member.file_size // 2] ^= 1
    archive.write_bytes(changed)
    fails(hub, tmp_path, f"elevation unreadable: 1\n .*{member.filename}: damaged in the zip")


def edit(path, change):
    path.write_text(change(path.read_text()))


def test_faults_of_lists(hub, tmp_path):
    train, val = hub.csv("train"), hub.csv("val")
    kept = {path: path.read_text() for path in (train, val)}
    first = hub.patch_ids["train"][0]

    def case(match, path, change):
        edit(path, change)
        fails(hub, tmp_path, match)
        for each, text in kept.items():
            each.write_text(text)

    case(
        rf"{train} has no header with a column patch_id; its first line is '{first},.*"
        " Expected patch_id and a column a modality",
        train, lambda text: text.partition("\n")[2],
    )  # fmt: skip
    case(f"{train} has no header.*first line is ''", train, lambda text: "")
    case(f"{train} lists no patch", train, lambda text: text.partition("\n")[0] + "\n")
    case(
        f"{train}, line 2: 'D6_AA' is no patch_id, such as D012-2019_AF-S1-27_5-10",
        train, lambda text: text.replace(first, "D6_AA", 1),
    )  # fmt: skip
    case(
        rf"line 2: AERIAL_RGBI of {first} is \.\./x\.tif; expected .*_AERIAL_RGBI_",
        train,
        lambda text: re.sub(r"\.\./[^,]*_AERIAL_RGBI_[^,]*", "../x.tif", text, count=1),
    )
    case(
        f"{train}, line 14: {first} is listed in {train}, line 2 too",
        train, lambda text: text + first + "\n",
    )  # fmt: skip
    case(
        f"{val}, line 6: {first} is listed in {train}, line 2 too",
        val, lambda text: text + first + "\n",
    )  # fmt: skip
    train.write_bytes(b"patch_id\n\xff\n")
    fails(hub, tmp_path, f"cannot read {train}: .*utf-8")
    train.write_text(kept[train])


def test_lists_are_found_by_their_names(hub, tmp_path, capsys):
    extra = hub.root / "FLAIR-HUB_TRAINING.csv"
    shutil.copy(hub.csv("train"), extra)
    fails(hub, tmp_path, f"{extra} lists patches, but its name names none of the splits TRAIN, VAL")
    extra = extra.rename(hub.root / "TRAIN_FLAIR-INC_TOY.csv")
    fails(hub, tmp_path, f"two lists of train, .*{hub.csv('train').name} and {extra}: give the one")
    folder = build_hub(hub, tmp_path / "one", train_csv=extra)
    assert metadata(folder)["num_patches"] == {"train": 12}
    extra.write_text("a,b\n1,2\n")
    extra.rename(hub.root / "areas.csv")
    hub.csv("val").unlink()
    hub.write_list("train", hub.patch_ids["train"][:7], delimiter=";")
    folder = build_hub(hub, tmp_path / "two")
    assert metadata(folder)["num_patches"] == {"train": 7, "test": 4}
    assert metadata(folder)["notes"] == [
        "left out a file that is no list of patches: areas.csv",
        "left out 9 patches that no list names",
        "no patches of val: it is not built",
    ]
    for split in ("train", "test"):
        hub.csv(split).unlink()
    fails(hub, tmp_path, "no list of patches in .*: put FLAIR-HUB's CSV files beside the data")


def test_a_part_of_the_download(hub, tmp_path):
    """Domains that are not there are a note; lists of other domains only are an error."""
    for path in hub.root.glob("D0[0-4]*"):
        if not path.name.startswith(("D006", "D004", "D012")):
            shutil.rmtree(path)
    for path in hub.root.glob("D080*"):
        shutil.rmtree(path)
    folder = build_hub(hub, tmp_path / "out")
    facts = metadata(folder)
    assert facts["num_patches"] == {"train": 2, "val": 2, "test": 2}
    assert facts["notes"] == [
        "absent domains of the lists, 8, with 14 patches: D008-2019, D014-2020, D022-2021,"
        " D023-2020, D026-2020 and 3 more"
    ]
    for split in SPLITS:
        other = hub.root.parent / f"{split}.csv"
        other.write_text(f"patch_id\nD099-2020_AA-S1-1_1-{len(split)}\n")
    match = r"the lists name 1 patches of 1 domains, and .* has none of them, but D004-2021"
    with pytest.raises(BuildError, match=match):
        build_hub(hub, tmp_path / "other", val_csv=hub.root.parent / "val.csv")


def test_unpacked_is_taken_before_zipped(hub, tmp_path):
    folder = hub.root / "D012-2019_DEM_ELEV"
    shutil.make_archive(str(folder), "zip", hub.root, folder.name)
    facts = metadata(build_hub(hub, tmp_path / "out"))
    assert facts["notes"] == ["took 2 patches unpacked that are in a zip as well"]


def test_dates(hub, tmp_path):
    """Of texts, numbers or JSON; what is not there stays empty."""
    ids = hub.patch_ids["val"]
    hub_data.write_dates(
        hub.dates,
        {ids[0]: 20200612, ids[1]: '{"0": "20210701"}', ids[2]: " 20191231 ", ids[3]: None},
        columns=("patch_id", "acquisition_dates"),
    )  # fmt: skip
    folder = build_hub(hub, tmp_path / "out")
    found = [records(folder, "val")[patch_id]["date"] for patch_id in ids]
    assert found == [b"2020-06-12", b"2021-07-01", b"2019-12-31", b""]
    assert metadata(folder)["notes"] == ["17 patches have no date"]
    hub.dates.unlink()
    folder = build_hub(hub, tmp_path / "none")
    assert {record["date"] for record in records(folder, "test").values()} == {b""}
    assert metadata(folder)["notes"] == [
        "no GLOBAL_AERIAL_MTD_DATES.gpkg (in GLOBAL_ALL_MTD.zip): the patches have no dates"
    ]


def test_faults_of_dates(hub, tmp_path):
    first = hub.patch_ids["train"][0]
    for value in ("20201301", "2020-06-12", "202006", "None", "{}", '{"0": 1, "1": 2}', "[1]"):
        hub_data.write_dates(hub.dates, {first: value})
        match = f"{hub.dates}: the date of {first} is {re.escape(repr(value))}; expected a day"
        fails(hub, tmp_path, match)
    hub_data.write_dates(hub.dates, {})
    fails(hub, tmp_path, f"{hub.dates} has no dates: its table global_aerial_mtd_dates is empty")
    hub_data.write_dates(hub.dates, {first: "20200612"}, columns=("patch_id", "day"))
    match = (
        r"expected one table with the columns patch_id and date; it has global_aerial_mtd_dates"
        r" \(fid, geom, patch_id, day\)"
    )
    fails(hub, tmp_path, match)
    with sqlite3.connect(hub.dates) as connection:
        connection.execute("DROP TABLE gpkg_contents")
    fails(hub, tmp_path, "is damaged, or no GeoPackage: no such table: gpkg_contents")
    hub_data.write_dates(hub.dates, {first: "20200612"})
    with sqlite3.connect(hub.dates) as connection:
        connection.execute("DROP TABLE global_aerial_mtd_dates")
    fails(hub, tmp_path, r"it has global_aerial_mtd_dates \(\)")
    hub_data.write_dates(hub.dates, {first: "20200612"})
    content = hub.dates.read_bytes()
    hub.dates.write_bytes(content[:100] + b"\xff" * (len(content) - 100))
    fails(hub, tmp_path, "is damaged, or no GeoPackage: ")
    hub.dates.write_text("no database")
    fails(hub, tmp_path, "is no GeoPackage, which is a SQLite file: download it again")
    hub_data.write_dates(hub.dates, {first: "20200612"})
    hub_data.write_dates(hub.dates.parent / "D006-2020_AERIAL_MTD_DATES.gpkg", {first: "20200613"})
    fails(hub, tmp_path, f"{first} is dated 2020-06-1[23], and 2020-06-1[23] elsewhere")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--config=published", "--split=flair1"], "--split is for FLAIR-HUB, --config=hub"),
        (["--flair1_metadata=a"], "--flair1_metadata is for FLAIR-HUB, --config=hub"),
        (["--config=hub", "--flair1_metadata=a"], "--flair1_metadata is for --split=flair1"),
        (
            ["--config=hub", "--split=flair1", "--flair1_metadata=a", "--val_csv=b"],
            "--split=flair1 is split as FLAIR #1: leave --val_csv out",
        ),
        (["--images=a", "--split=flair1"], "--split is for FLAIR, and --images for your own"),
        (["--config=hubs"], "no config 'hubs': there are published, d077, flair2, hub; or give"),
    ],
)
def test_contradictory_flags(tmp_path, capsys, flags, expected):
    source = [] if "--images=a" in flags else [f"--source={tmp_path}"]
    assert main([*source, f"--data_dir={tmp_path}/out", *flags]) == 1
    assert expected in capsys.readouterr().err


def test_the_command_tells_how_to_train(made, tmp_path, capsys):
    args = [f"--source={made.root}", f"--data_dir={tmp_path}", "--config=hub", "--shuffle"]
    assert main(args) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1] == "found 12 train, 4 val, 4 test patches of 64 x 64 pixels"
    assert out[-1] == f"  flair-jax train --config=hub --config.data_dir={tmp_path}"
    order = list(records(tmp_path / "flair_hub/hub/1.0.0", "train"))
    assert sorted(order) == sorted(made.patch_ids["train"])
    assert order != sorted(order)


def test_names_of_files():
    """As in the published lists, of the toy set."""
    key = source_lib.key_of("D012-2019", "AF-S1-27", "5-10")
    assert key == ("D012-2019", "AF-S1-27", "D012-2019_AF-S1-27_5-10")
    assert source_lib.name_of(key, MASK) == "D012-2019_AERIAL_LABEL-COSIA_AF-S1-27_5-10.tif"
    for name, split in (
        ("FLAIR-HUB_TOY-DATASET_TRAIN", "TRAIN"), ("TRAIN_FLAIR-INC_TOY", "TRAIN"),
        ("FLAIR-HUB_VALID", "VALID"), ("test", "test"), ("FLAIR-HUB_TEST-split1", "TEST"),
    ):  # fmt: skip
        assert source_lib._LIST.fullmatch(name)[1] == split
    assert not source_lib._LIST.fullmatch("CONTEST")


def test_the_stand_in_has_flair_hubs_names(made):
    assert synthetic.DOMAINS["test"][0] == "D012_2019"
    path = made.file(made.patch_ids["test"][0], IMAGE).relative_to(made.root)
    assert re.fullmatch(
        r"D012-2019_AERIAL_RGBI/[A-Z]{2}-S1-\d+/D012-2019_AERIAL_RGBI_[A-Z]{2}-S1-\d+_\d+-10\.tif",
        str(path),
    )
    with rasterio.open(made.file(made.patch_ids["test"][0], ELEVATION)) as raster:
        assert (raster.count, raster.dtypes[0]) == (2, "float32")
