import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from download import TEST, TRAIN, VAL, edit_metadata, found, image, mask, put, remove, rewrite

from flair_jax.data import synthetic
from flair_jax.doctor import checks, examine, statistics
from flair_jax.errors import UserError
from tfds_builder.flair import patches

BUILDER, DOCTOR = Path(patches.__file__).parent, Path(checks.__file__).parent


def double(root):
    source = image(root, 1)
    target = root / "again" / source.relative_to(root)
    target.parent.mkdir(parents=True)
    shutil.copy(source, target)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_metadata(root):
    (root / synthetic.METADATA_FILE).write_text('{"IMG_')


def four_bands(bands):
    return bands[:4]


FAULTS = {
    "mask missing: 1": lambda root: remove(mask(root, 1)),
    "mask without image: 1": lambda root: remove(image(root, 1)),
    "number twice: 1": double,
    "image unreadable: 1": lambda root: truncate(image(root, 1)),
    "mask unreadable: 1": lambda root: mask(root, 1).write_bytes(b"II*\0"),
    "size not the data set's: 1": lambda root: rewrite(image(root, 1), lambda b: b[:, :32, :48]),
    "image not uint8: 1": lambda root: rewrite(image(root, 1), lambda b: b.astype(np.uint16)),
    "image without 5 bands: 1": lambda root: rewrite(image(root, 1), four_bands),
    "no metadata: 1": lambda root: edit_metadata(root, lambda m: m.pop("IMG_000001")),
    "malformed metadata: 1": lambda root: edit_metadata(
        root, lambda m: m["IMG_000001"].update(date="spring")
    ),
    "mask at another position than the image: 1": lambda root: rewrite(
        mask(root, 1), transform=rasterio.Affine(0.2, 0, 9e5, 0, -0.2, 6.5e6)
    ),
    "mask in another CRS than the image: 1": lambda root: rewrite(mask(root, 1), crs="EPSG:32631"),
    "damaged files: 1": lambda root: (root / "a.zip").write_bytes(b"PK"),
}


@pytest.mark.parametrize("expected", FAULTS)
def test_each_fault_is_reported_and_the_scan_continues(expected, copy):
    FAULTS[expected](copy)
    scan, findings = examine.doctor(str(copy))
    faults = found(findings, "fault")
    check = faults[expected]
    assert check.count == len(check.examples) == 1
    assert "000001" in check.examples[0] or "a.zip" in check.examples[0]
    assert check.remedy
    others = set(faults) - {expected}
    assert others <= {"mask of another size than the image: 1"}
    bands = statistics.bands_of(scan)  # the others were read all the same
    assert scan.histograms.num_images >= TRAIN + VAL + TEST - 1
    assert 80 < bands["red"].mean < 140
    assert examine.as_text(scan, findings).count(f"\n{'':<19}-> {check.remedy[:40]}") == 1


@pytest.mark.parametrize("value", [0, 20])
def test_invalid_mask_values(value, copy):
    rewrite(mask(copy, 1), put(value))
    scan, findings = examine.doctor(str(copy))
    faults = found(findings, "fault")
    (example,) = faults["mask value outside 1..19: 1"].examples
    assert example == f"{mask(copy, 1)}: found {value}"
    assert "pixels with an invalid value: 20, 0.024 % of them" in faults  # of 20 x 64 x 64
    assert scan.histograms.masks["train"][value] == 20


def test_every_kind_of_fault_of_the_builder_has_a_remedy():
    text = (
        "".join((BUILDER / name).read_text() for name in ("patches.py", "selection.py"))
        + (DOCTOR / "scan.py").read_text()
    )
    kinds = re.findall(r'(?:fault\(|Fault\(\s*\w+(?:\.\w+)?, )f?"([^"]+)"', text)
    kinds += re.findall(r'return f?"([^"]+)", ', text)
    of_flair = {"{bands}": "5", "{values[0]}": "1", "{values[-1]}": "19", "{what}": "mask"}
    for name, text in of_flair.items():
        kinds = [kind.replace(name, text) for kind in kinds]
    kinds = set(kinds)
    of_lists_and_warnings = {
        kind for kind in kinds if kind.startswith(("listed", "date", "centroid"))
    }
    assert len(kinds) >= 18
    assert kinds - of_lists_and_warnings <= checks.FAULTS.keys()


def test_half_a_zip(copy, tmp_path):
    archive = tmp_path / "source/flair_aerial_train.zip"
    archive.parent.mkdir()
    shutil.make_archive(archive.with_suffix(""), "zip", copy)
    truncate(archive)
    with pytest.raises(UserError) as error:
        examine.doctor(str(archive.parent))
    assert f"\n  damaged files:\n  {archive}: File is not a zip file" in str(error.value)
    shutil.copytree(copy, archive.parent / "more")
    _, findings = examine.doctor(str(archive.parent))
    (example,) = found(findings, "fault")["damaged files: 1"].examples
    assert example == f"{archive}: File is not a zip file"


def test_a_flipped_bit_in_a_zip(copy, tmp_path):
    archive = tmp_path / "source/all.zip"
    archive.parent.mkdir()
    shutil.make_archive(archive.with_suffix(""), "zip", copy)
    content = bytearray(archive.read_bytes())
    content[content.index(b"IMG_000001.tif") + 5000] ^= 1
    archive.write_bytes(content)
    _, findings = examine.doctor(str(archive.parent))
    (example,) = found(findings, "fault")["image unreadable: 1"].examples
    assert "IMG_000001.tif: damaged in the zip: " in example


def test_no_metadata(copy):
    (copy / synthetic.METADATA_FILE).unlink()
    scan, findings = examine.doctor(str(copy))
    check = found(findings, "fault")["no metadata: 20"]
    assert len(check.examples) == 10
    assert "flair-1_metadata_aerial.zip" in check.remedy
    assert scan.histograms.num_images == 20
    assert "  ... and 10 more" in examine.as_text(scan, findings)


def test_damaged_metadata_is_named(copy):
    damage_metadata(copy)
    _, findings = examine.doctor(str(copy))
    faults = found(findings, "fault")
    assert "no metadata: 20" in faults
    (example,) = faults["damaged files: 1"].examples
    assert example.startswith(f"{copy}/{synthetic.METADATA_FILE}: cannot read the metadata: Unter")


def test_no_masks_of_train(copy):
    for path in copy.glob("flair_labels_train/**/*.tif"):
        path.unlink()
    _, findings = examine.doctor(str(copy))
    assert found(findings, "fault")[f"mask missing: {TRAIN + VAL}"].count == 16


def test_test_patches_need_no_mask(copy):
    remove(mask(copy, TRAIN + VAL + 1))
    _, findings = examine.doctor(str(copy))
    assert found(findings, "fault") == {}
    assert found(findings, "note")["test patches without mask: 1"].count == 1


def test_implausible_metadata(copy):
    def change(entries):
        entries["IMG_000001"]["date"] = "2035-06-01"
        entries["IMG_000002"]["date"] = entries["IMG_000002"]["date"][:4] + "-01-03"
        entries["IMG_000003"]["patch_centroid_x"] += 5000
        entries["IMG_000004"].update(patch_centroid_x=2.35, patch_centroid_y=48.85)
        entries["IMG_000005"]["patch_centroid_x"] += 0.5
        entries["IMG_000006"]["camera"] = "iPhone"
        entries["IMG_999999"] = entries["IMG_000007"]

    edit_metadata(copy, change)
    _, findings = examine.doctor(str(copy))
    assert found(findings, "fault") == {}
    warnings, notes = found(findings, "warning"), found(findings, "note")
    (example,) = warnings["entries of a year outside 2018 to 2021: 1"].examples
    assert example == f"{image(copy, 1)}: 2035-06-01"
    assert "config.metadata.encoding='corrected'" in (
        warnings["entries of a year outside 2018 to 2021: 1"].remedy
    )
    assert "entries of another year than their domain: 1" in warnings
    assert warnings["entries outside metropolitan France: 1"].examples == (
        f"{image(copy, 4)}: (2.35, 48.85)",
    )
    assert warnings["entries of absent patches: 1"].examples == ("IMG_999999",)
    outside = warnings["centroids outside their image: 2"]
    assert outside.examples[0] == f"{image(copy, 3)}: 5,000.0 m"
    (offset,) = notes["centroids over a pixel from the image's centre: 1"].examples
    assert offset == f"{image(copy, 5)}: 0.5 m"
    assert "entries of December to March, where FLAIR has none: 1" in notes
    assert notes["entries of cameras that FLAIR does not name: 1"].examples[0].endswith("iPhone")


def test_coordinate_systems(copy):
    rewrite(image(copy, 1), crs="EPSG:32631")
    rewrite(image(copy, 2), crs='LOCAL_CS["RGF93 / Lambert-93",UNIT["metre",1]]')
    rewrite(image(copy, 3), crs=None)
    _, findings = examine.doctor(str(copy))
    (odd,) = found(findings, "warning")["images that are not in Lambert-93: 1"].examples
    assert odd == f"{image(copy, 1)}: EPSG:32631"
    (systems,) = [c.message for c in findings if c.message.startswith("coordinate systems")]
    assert systems == (
        "coordinate systems: EPSG:2154 (17), EPSG:32631 (1), none (1), unnamed (1); an unnamed "
        "local one is common in FLAIR and not a fault"
    )


def test_an_image_of_one_colour(copy):
    rewrite(image(copy, 1), lambda bands: np.full_like(bands, 7))
    scan, findings = examine.doctor(str(copy))
    check = found(findings, "warning")["images of one colour: 1"]
    assert check.examples == (str(image(copy, 1)),)
    assert statistics.bands_of(scan)["nir"].flat == 1 / 20


def test_the_scaling_of_the_height(copy):
    scan, findings = examine.doctor(str(copy))
    mean = statistics.bands_of(scan)["height"].mean
    (steps,) = [c for c in findings if c.topic == "height"]
    assert steps.severity == "note"
    assert steps.message.startswith("height seems to be in steps of 0.2 m, not in the published")
    assert f"mean {mean:.2f} +- " in steps.message
    assert f"{mean / 53.26:.2f} of the published 53.26 +- 79.3" in steps.message
    assert examine.as_json(scan, findings)["height"]["seems"] == "steps of 0.2 m"

    def stretch(bands):
        bands[4] = np.minimum(5 * bands[4].astype(int), 255)
        return bands

    for path in copy.rglob("IMG_*.tif"):
        rewrite(path, stretch)
    scan, findings = examine.doctor(str(copy))
    (stretched,) = [c for c in findings if c.topic == "height"]
    assert stretched.message.startswith("height seems to be stretched, as in the published")
    assert examine.as_json(scan, findings)["height"]["seems"] == "stretched"
    for path in copy.rglob("IMG_*.tif"):
        rewrite(path, lambda bands: bands * np.array([1, 1, 1, 1, 0], np.uint8)[:, None, None])
    scan, findings = examine.doctor(str(copy))
    (empty,) = [c for c in findings if c.topic == "height"]
    assert (empty.severity, empty.message[:41]) == (
        "warning",
        "height is in neither known scaling: mean ",
    )
    assert statistics.bands_of(scan)["height"].flat == 1


def test_bands_in_another_order(copy):
    for path in copy.rglob("IMG_*.tif"):
        rewrite(path, lambda bands: bands[[4, 0, 1, 2, 3]])
    _, findings = examine.doctor(str(copy))
    (check,) = [c for c in findings if c.topic == "bands"]
    assert check.severity == "warning"
    assert any(example.startswith("red: ") for example in check.examples)
