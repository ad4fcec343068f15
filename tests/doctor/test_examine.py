import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import own_images
import pytest
import rasterio
from download import TEST, TRAIN, VAL, edit_metadata, found, image, mask, remove

from flair_jax.cli.commands import main
from flair_jax.data import reference_facts, synthetic
from flair_jax.doctor import checks, examine, statistics
from flair_jax.doctor.scan import Histograms, layout, sampled
from flair_jax.errors import UserError
from tfds_builder.flair import reference
from tfds_builder.flair.files import File


def test_a_whole_download(whole):
    scan, findings = examine.doctor(str(whole))
    assert scan.total == {"train": TRAIN, "val": VAL, "test": TEST}
    assert scan.layouts == {"download, unpacked": 2 * (TRAIN + VAL + TEST)}
    assert found(findings, "fault") == {}
    ok = found(findings, "ok")
    assert "20 images, each with its mask, none twice" in ok
    assert "all 20 patches opened" in ok
    assert "values of 20 masks all within 1 to 19" in ok
    assert "20 centroids are at the centre of their image" in ok
    assert "coordinate systems: EPSG:2154 (20)" in ok
    note = found(findings, "note")
    assert "patches: train 12 of 47,587, val 4 of 14,125, test 4 of 15,700" in note
    assert "size: 64 x 64 (20); FLAIR's is 512 x 512" in note
    absent = next(c for c in findings if c.message.startswith("11 of FLAIR #1's 50 domains"))
    assert (absent.severity, absent.count) == ("warning", 39)
    few = next(c for c in findings if c.message.startswith("domains of val and test that are not"))
    assert few.examples[0] == "D004_2021: 2 of 1,800 patches"


def test_statistics_are_those_of_the_pixels(whole):
    scan, _ = examine.doctor(str(whole))
    images, masks = [], []
    for number in range(1, TRAIN + VAL + 1):
        with rasterio.open(image(whole, number)) as raster:
            images.append(raster.read().reshape(5, -1))
        with rasterio.open(mask(whole, number)) as raster:
            masks.append(raster.read(1).ravel())
    pixels, values = np.concatenate(images, 1), np.concatenate(masks)
    bands = statistics.bands_of(scan)
    assert list(bands) == ["red", "green", "blue", "nir", "height"]
    np.testing.assert_allclose([b.mean for b in bands.values()], pixels.mean(1), rtol=1e-12)
    np.testing.assert_allclose([b.std for b in bands.values()], pixels.std(1), rtol=1e-12)
    assert [b.lowest for b in bands.values()] == pixels.min(1).tolist()
    assert [b.highest for b in bands.values()] == pixels.max(1).tolist()
    shares = statistics.class_percent(scan)["train and val"]
    expected = 100 * np.bincount(values, minlength=20)[1:] / values.size
    np.testing.assert_allclose(shares, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("mean", "scaling"),
    [(3.5, ""), (17.5, "steps of 0.2 m"), (30, "steps of 0.2 m"), (31, "stretched"),
     (53.26, "stretched"), (140, "")],
)  # fmt: skip
def test_scaling_indicated_by_the_mean(mean, scaling):
    assert statistics.height_scaling(mean) == scaling


def test_a_data_set_of_own_images(tmp_path):
    folder = own_images.built(tmp_path)
    scan, findings = examine.doctor(data_dir=str(folder.parents[2]), data_config="mine")
    assert scan.total == {"train": 2, "val": 2, "test": 2}
    assert found(findings, "fault") == found(findings, "warning") == {}
    ok = found(findings, "ok")
    assert "'mine', patches: train 2, val 2, test 2" in ok
    assert "test, 1: c" in ok
    text = examine.as_text(scan, findings)
    for word in ("FLAIR", "published", "nir", "camera", "building"):
        assert word not in text
    columns = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    assert columns["class"] == ["train", "%", "val", "%", "test", "%"]
    # 28 of 128 columns are padded.
    assert columns["ignored"] == ["21.88"] * 3
    assert sum(map(float, (columns["water"][0], columns["land"][0]))) == pytest.approx(
        78.12, abs=0.02
    )
    written = json.loads(json.dumps(examine.as_json(scan, findings)))
    assert set(written["class_percent"]["val"]) == {"water", "land", "ignored"}


def test_a_constant_band_is_a_warning(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "source")
    for path in (tmp_path / "source").rglob("IMG_*.tif"):
        with rasterio.open(path, "r+") as raster:
            raster.write(np.full(raster.shape, 7, np.uint8), 4)
    _, findings = examine.doctor(str(tmp_path / "source"))
    warning = found(findings, "warning")
    assert "constant in all images: nir" in warning


def test_a_built_data_set(data_dir):
    scan, findings = examine.doctor(data_dir=str(data_dir))
    assert scan.total == {"train": 16, "val": 4, "test": 5}
    assert found(findings, "fault") == {}
    assert "a data set built by tfds_builder: 25 patches" in found(findings, "ok")
    assert "25 centroids are at the centre of their image" in found(findings, "ok")
    assert checks.tally(scan, "crs") == {"EPSG:2154": 25}
    source, _ = examine.doctor(str(data_dir.parent / "source"))
    for split in ("train", "val", "test"):
        np.testing.assert_array_equal(
            source.histograms.images[split], scan.histograms.images[split]
        )
        np.testing.assert_array_equal(source.histograms.masks[split], scan.histograms.masks[split])
    part, findings = examine.doctor(data_dir=str(data_dir), sample=10)
    assert len(part.opened) == 10
    assert "10 of 25 patches opened: --sample=0 opens all" in found(findings, "ok")


def test_a_damaged_record_of_a_built_data_set(data_dir, tmp_path):
    copy = Path(shutil.copytree(data_dir, tmp_path / "built"))
    shard = next(copy.rglob("flair-test.array_record-*"))
    content = bytearray(shard.read_bytes())
    content[70_000:70_200] = b"x" * 200
    shard.write_bytes(content)
    scan, findings = examine.doctor(data_dir=str(copy))
    ((kind, finding),) = found(findings, "fault").items()
    assert kind == "record unreadable: 1"
    (example,) = finding.examples
    assert example.startswith(f"test, record 2: {shard} is damaged: record 2 of its split cannot ")
    assert scan.histograms.num_masks == 24


def test_damaged_files_of_a_built_data_set(data_dir, tmp_path):
    copy = Path(shutil.copytree(data_dir, tmp_path / "built"))
    shard = next(copy.rglob("flair-test.array_record-*"))
    shard.write_bytes(shard.read_bytes()[:1000])
    _, findings = examine.doctor(data_dir=str(copy))
    faults = found(findings, "fault")
    (example,) = faults["damaged files: 1"].examples
    assert example.startswith(f"{shard}: 1,000 bytes, where ")
    assert faults["damaged files: 1"].remedy == "build the data set anew"
    assert faults["record unreadable: 5"].count == 5
    (shard.parent / "metadata.json").write_text("[]")
    with pytest.raises(UserError) as error:
        examine.doctor(data_dir=str(copy))
    assert str(error.value) == (
        f"--data_dir: {shard.parent}/metadata.json is damaged: it is not an object: build it anew"
    )


def test_processes_find_the_same(whole, monkeypatch):
    alone, findings = examine.doctor(str(whole), num_workers=1)
    monkeypatch.setattr("flair_jax.doctor.scan.PROCESS_FROM", 4)
    monkeypatch.setattr("flair_jax.doctor.scan.CHUNK", 3)
    together, again = examine.doctor(str(whole), num_workers=2)
    assert again == findings
    assert checks.tally(together, "sizes") == checks.tally(alone, "sizes")
    np.testing.assert_array_equal(together.histograms.heights, alone.histograms.heights)


def test_sample_is_stratified_and_depends_on_the_seed():
    sample = sampled(1000, 100, seed=3)
    np.testing.assert_array_equal(sample // 10, np.arange(100))
    np.testing.assert_array_equal(sample, sampled(1000, 100, seed=3))
    assert (sample != sampled(1000, 100, seed=4)).any()
    np.testing.assert_array_equal(sampled(5, 0, 0), np.arange(5))
    np.testing.assert_array_equal(sampled(5, 9, 0), np.arange(5))


def test_a_sample_of_a_download_names_all_that_is_missing(copy):
    remove(mask(copy, 1))
    scan, findings = examine.doctor(str(copy), sample=5)
    assert len(scan.opened) == 5
    assert "mask missing: 1" in found(findings, "fault")


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (File("", "/d/flair_1_toy_dataset/train/flair_1_toy_aerial_train/D1/Z/img/IMG_1.tif"),
         "toy data set, unpacked"),
        (File("/d/flair_aerial_train.zip", "flair_aerial_train/D1/Z/img/IMG_1.tif"),
         "download, zipped"),
        (File("/d/train-val/D004_2021.zip", "aerial/Z1_AA/IMG_1.tif"),
         "one folder a domain, zipped"),
        (File("", "/d/mine/D004_2021/Z1_AA/IMG_1.tif"), "folders, unpacked"),
    ],
)  # fmt: skip
def test_layouts(file, expected):
    assert layout(file, "/d") == expected


def test_zips_unopened(whole, tmp_path):
    for folder in ("flair_aerial_train", "flair_labels_train"):
        with zipfile.ZipFile(tmp_path / f"{folder}.zip", "w") as archive:
            for path in (whole / folder).rglob("*.tif"):
                archive.write(path, path.relative_to(whole))
    shutil.copy(whole / synthetic.METADATA_FILE, tmp_path)
    scan, findings = examine.doctor(str(tmp_path))
    assert scan.layouts == {"download, zipped": 32}
    assert scan.total == {"train": TRAIN, "val": VAL, "test": 0} or "test" not in scan.total
    assert found(findings, "fault") == {}
    assert scan.histograms.num_images == 16


def test_published_numbers_are_consistent():
    of_splits = [sum(known.values()) for known in reference.DOMAIN_PATCHES.values()]
    assert of_splits == [14_125, reference.TEST_PATCHES]
    assert reference.TRAIN_PATCHES + sum(of_splits) == reference.PATCHES == 77_412
    assert (len(reference.TRAIN_DOMAINS), len(reference.DOMAINS)) == (32, 50)
    for column in zip(*reference_facts.CLASS_PERCENT.values(), strict=True):
        assert sum(column) == pytest.approx(100, abs=0.05)


def test_histograms_add_up():
    histograms, more = Histograms(), Histograms()
    image_array = np.arange(20, dtype=np.uint8).reshape(2, 2, 5)
    assert more.add("train", image_array, np.ones((2, 2), np.uint8)) == frozenset()
    histograms += more
    histograms += more
    assert (histograms.num_images, histograms.num_masks) == (2, 2)
    assert histograms.images["train"].sum() == 40
    assert more.images["train"].sum() == 20
    assert histograms.heights[[4, 9, 14, 19]].tolist() == [2] * 4
    assert more.add("train", np.full_like(image_array, 7), None) == frozenset(range(5))


def run(*flags, cwd):
    return subprocess.run(
        [sys.executable, "-m", "flair_jax", "doctor", *flags],
        capture_output=True, text=True, cwd=cwd, check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip


def test_the_command_writes_a_record_and_exits_with_1_for_faults(copy, tmp_path):
    done = run(f"--source={copy}", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads((tmp_path / "doctor.json").read_text())
    assert record["verdict"] == "warning"
    assert record["patches"] == {"train": 12, "val": 4, "test": 4}
    assert record["bands"]["height"]["published_mean"] == 53.26
    assert record["published_class_percent"]["test"]["building"] == 8.60
    assert "fault 0, " in done.stdout.splitlines()[-1]
    remove(mask(copy, 1))
    done = run(f"--source={copy}", f"--output={tmp_path}/new/record.json", cwd=tmp_path)
    assert done.returncode == 1
    assert json.loads((tmp_path / "new" / "record.json").read_text())["verdict"] == "fault"
    assert "  flair_aerial_train/D006_2020/" in done.stdout


def test_names_that_are_not_utf_8(copy, tmp_path):
    other = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    copy.rename(other)
    remove(mask(Path(other), 1))
    edit_metadata(Path(other), lambda entries: entries.update({"IMG_\ud800": {}}))
    done = run(f"--source={other}", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert "entries of absent patches: 1\n" in done.stdout
    assert r"IMG_\ud800" in done.stdout
    record = json.loads((tmp_path / "doctor.json").read_text())
    assert record["root"] == other


def test_strict(whole, tmp_path):
    flags = [f"--source={whole}", f"--output={tmp_path / 'a.json'}"]
    assert main(["doctor", *flags, "--strict"]) == 1
    assert main(["doctor", *flags]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either --source=DIR"),
        ({"source": "/nowhere"}, "--source: the source /nowhere does not exist"),
        ({"source": "a", "data_dir": "b"}, "give either"),
        ({"data_dir": "/nowhere"}, "the data set is not built"),
        ({"source": "a", "sample": -1}, "numbers from 0"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UserError, match=message):
        examine.doctor(**arguments)
