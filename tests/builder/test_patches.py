import os
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import rasterio

from tfds_builder.flair.files import File
from tfds_builder.flair.patches import common_size, gdal, read_patch
from tfds_builder.flair.selection import Patch
from tfds_builder.flair.source import Key

KEY = Key("D004_2021", "Z8_NF", "000717")
X, Y = 924009.6, 6339451.2
METADATA = {
    "domain": "D004_2021",
    "zone": "Z8_NF",
    "patch_centroid_x": X,
    "patch_centroid_y": Y,
    "patch_centroid_z": -1.25,
    "date": "2021-05-28",
    "time": "08h06",
    "camera": "UCE-M3-f120-s07",
}
LOCAL = (
    'LOCAL_CS["RGF93 / Lambert-93",UNIT["metre",1,AUTHORITY["EPSG","9001"]],'
    'AXIS["Easting",EAST],AXIS["Northing",NORTH]]'
)


def write(path: Path, bands: np.ndarray, crs="EPSG:2154", shift=(0, 0), **options) -> File:
    count, height, width = bands.shape
    x, y = X - 0.1 * width + shift[0], Y + 0.1 * height + shift[1]
    transform = rasterio.Affine(0.2, 0, x, 0, -0.2, y)
    profile = {"driver": "GTiff", "dtype": bands.dtype, "crs": crs, "transform": transform}
    shape = {"count": count, "height": height, "width": width, "interleave": "pixel"}
    with rasterio.open(path, "w", **(profile | shape | options)) as dst:
        dst.write(bands)
    return File("", str(path))


def pixels(count=5, rows=32, columns=48, dtype=np.uint8):
    return np.arange(count * rows * columns).reshape(count, rows, columns).astype(dtype)


def labels(rows=32, columns=48):
    return (1 + pixels(1, rows, columns) % 19).astype(np.uint8)


def make(tmp_path, image=None, mask=None, metadata=METADATA, split="train"):
    image = write(tmp_path / "IMG_000717.tif", pixels() if image is None else image)
    mask = write(tmp_path / "MSK_000717.tif", labels() if mask is None else mask)
    return Patch(split, KEY, image, mask, metadata)


def read_all(patch, size=(32, 48)):
    with gdal():
        return read_patch(patch, size)


def read(patch, size=(32, 48)):
    outcome = read_all(patch, size)
    return outcome.example, outcome.faults


def only_fault(patch, size=(32, 48)):
    outcome = read_all(patch, size)
    assert (outcome.example, outcome.warnings) == (None, [])
    (fault,) = outcome.faults
    assert fault.split == patch.split
    return fault.kind, fault.file, fault.detail


def test_example(tmp_path):
    example, faults = read(make(tmp_path))
    assert faults == []
    np.testing.assert_array_equal(example["image"], np.moveaxis(pixels(), 0, -1))
    np.testing.assert_array_equal(example["mask"], labels()[0])
    assert example["centroid"].tolist() == [X, Y, -1.25]
    left_top = [X - 0.1 * 48, Y + 0.1 * 32]
    assert example["transform"].tolist() == [0.2, 0, left_top[0], 0, -0.2, left_top[1]]
    texts = {key: example[key] for key in ("id", "domain", "zone", "date", "time", "camera", "crs")}
    assert texts == {
        "id": "000717",
        "domain": "D004_2021",
        "zone": "Z8_NF",
        "date": "2021-05-28",
        "time": "08h06",
        "camera": "UCE-M3-f120-s07",
        "crs": "EPSG:2154",
    }
    assert example["has_mask"] is True


@pytest.mark.parametrize("folder", ["a #1", "b {c} é", "d}{"])
def test_odd_names(tmp_path, folder):
    (tmp_path / folder).mkdir()
    patch = make(tmp_path / folder)
    with zipfile.ZipFile(tmp_path / folder / "x.zip", "w") as archive:
        archive.write(patch.image.path, "in #{er/IMG_000717.tif")
    zipped = File(archive.filename, "in #{er/IMG_000717.tif")
    for image in (patch.image, zipped):
        example, faults = read(Patch("train", KEY, image, patch.mask, METADATA))
        assert faults == []
        np.testing.assert_array_equal(example["image"], np.moveaxis(pixels(), 0, -1))


@pytest.mark.parametrize(
    ("crs", "shift", "expected"),
    [
        ("EPSG:2154", 500, "EPSG:2154"),
        ("EPSG:32631", 0, "EPSG:32631"),
        (LOCAL, 0, "EPSG:2154"),
        (LOCAL, 0.1, "EPSG:2154"),
        (LOCAL, 5, LOCAL[:30]),
        (None, 0, "EPSG:2154"),
        (None, 5, ""),
    ],
)
def test_crs(tmp_path, crs, shift, expected):
    patch = make(tmp_path, metadata=METADATA | {"patch_centroid_x": X + shift})
    write(tmp_path / "IMG_000717.tif", pixels(), crs)
    write(tmp_path / "MSK_000717.tif", labels(), crs)
    example, _ = read(patch)
    assert example["crs"][:30] == expected


@pytest.mark.filterwarnings("ignore:Dataset has no geo")  # of rasterio, on writing
def test_no_georeference(tmp_path):
    patch = make(tmp_path)
    write(tmp_path / "IMG_000717.tif", pixels(), None, transform=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        example, faults = read(patch)
    assert faults == []
    assert example["crs"] == ""
    assert example["transform"].tolist() == [1, 0, 0, 0, 1, 0]


def test_test_patch_without_mask(tmp_path):
    patch = make(tmp_path, split="test")
    example, faults = read(Patch("test", KEY, patch.image, None, METADATA))
    assert faults == []
    assert example["has_mask"] is False
    assert example["mask"].shape == (32, 48)
    assert not example["mask"].any()


def test_mask_missing(tmp_path):
    patch = make(tmp_path)
    fault = only_fault(Patch("val", KEY, patch.image, None, METADATA))
    assert fault == ("mask missing", patch.image.path, "only test patches may have none")


@pytest.mark.parametrize("name", ["image", "mask"])
def test_truncated(tmp_path, name, capfd):
    patch = make(tmp_path)
    file = Path(getattr(patch, name).path)
    file.write_bytes(file.read_bytes()[:-600])
    kind, path, detail = only_fault(patch)
    assert (kind, path) == (f"{name} unreadable", str(file))
    assert "IReadBlock failed" in detail or "Read error" in detail or "TIFF" in detail
    assert capfd.readouterr() == ("", "")


VRT = b'<VRTDataset rasterXSize="9" rasterYSize="9"/>'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"not a TIFF", "not recognized as being in a supported file format."),
        (VRT, "not recognized as being in a supported file format."),
    ],
)
def test_not_a_tiff(tmp_path, content, reason):
    patch = make(tmp_path)
    Path(patch.image.path).write_bytes(content)
    kind, _, detail = only_fault(patch)
    assert kind == "image unreadable"
    assert detail == reason


def test_four_bands(tmp_path):
    patch = make(tmp_path, image=pixels(4))
    assert only_fault(patch) == ("image without 5 bands", patch.image.path, "4 bands")


def test_image_of_16_bits(tmp_path):
    patch = make(tmp_path, image=pixels(dtype=np.uint16))
    assert only_fault(patch) == ("image not uint8", patch.image.path, "uint16")


def test_size_of_image(tmp_path):
    patch = make(tmp_path)
    fault = only_fault(patch, (512, 512))
    detail = "32 x 48, where the others are 512 x 512"
    assert fault == ("size not the data set's", patch.image.path, detail)


@pytest.mark.parametrize(
    ("mask", "detail"),
    [(np.ones((1, 32, 48), np.int16), "1 bands of int16"), (pixels(2), "2 bands of uint8")],
)
def test_mask_type(tmp_path, mask, detail):
    patch = make(tmp_path, mask=mask)
    assert only_fault(patch) == ("mask not one band of uint8", patch.mask.path, detail)


def test_size_of_mask(tmp_path):
    patch = make(tmp_path, mask=labels(32, 32))
    detail = "32 x 32, where the image is 32 x 48"
    assert only_fault(patch) == ("mask of another size than the image", patch.mask.path, detail)


@pytest.mark.parametrize(
    ("values", "detail"),
    [([0], "found 0"), ([25], "found 25"), ([20, 0, 255], "found 0, 20, 255")],
)
def test_mask_values(tmp_path, values, detail):
    mask = labels()
    mask[0, 0, : len(values)] = values
    patch = make(tmp_path, mask=mask)
    assert only_fault(patch) == ("mask value outside 1..19", patch.mask.path, detail)


def test_mask_of_another_patch(tmp_path):
    patch = make(tmp_path)
    write(tmp_path / "MSK_000717.tif", labels(), shift=(409.6, -0.2))
    assert only_fault(patch) == (
        "mask at another position than the image",
        patch.mask.path,
        "upper left corner at 924414.4, 6339454.2, where the image has 924004.8, 6339454.4",
    )


def test_mask_in_another_crs(tmp_path):
    patch = make(tmp_path)
    write(tmp_path / "MSK_000717.tif", labels(), "EPSG:32631")
    kind, _, detail = only_fault(patch)
    assert kind == "mask in another CRS than the image"
    assert detail == "EPSG:32631, where the image has EPSG:2154"


@pytest.mark.filterwarnings("ignore:Dataset has no geo")
@pytest.mark.parametrize(
    "options",
    [
        {"shift": (0.09, 0.0)},  # less than half a pixel
        {"crs": LOCAL},
        {"crs": None},
        {"crs": None, "transform": None},
    ],
)
def test_masks_whose_position_agrees_or_is_unknown(tmp_path, options):
    patch = make(tmp_path)
    write(tmp_path / "MSK_000717.tif", labels(), **options)
    example, faults = read(patch)
    assert faults == []
    np.testing.assert_array_equal(example["mask"], labels()[0])


def test_implausible_metadata_is_stored_with_warnings(tmp_path):
    entry = METADATA | {"date": "2019-05-28", "patch_centroid_x": X + 5000}
    patch = make(tmp_path, metadata=entry)
    outcome = read_all(patch)
    assert outcome.example["date"] == "2019-05-28"
    assert outcome.warnings == [
        ("train", "date outside the domain's year", patch.image.path, "2019-05-28"),
        (
            "train",
            "centroid outside the image",
            patch.image.path,
            "5,000.0 m from the image's centre",
        ),
    ]


@pytest.mark.parametrize(
    "compression",
    [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA],
)
@pytest.mark.parametrize("position", [0.1, 0.5, 0.9])
def test_a_flipped_bit_in_a_zip(tmp_path, compression, position):
    patch = make(tmp_path)
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w", compression) as out:
        out.write(patch.image.path, "IMG_000717.tif")
        (member,) = out.infolist()
    zipped = Patch("train", KEY, File(str(archive), "IMG_000717.tif"), patch.mask, METADATA)
    assert read(zipped)[1] == []
    content = bytearray(archive.read_bytes())
    content[44 + int(position * member.compress_size)] ^= 4
    archive.write_bytes(content)
    os.utime(archive, ns=(0, 1))
    kind, file, detail = only_fault(zipped)
    assert (kind, file) == ("image unreadable", f"{archive}/IMG_000717.tif")
    assert detail.startswith("damaged in the zip: ")


def test_checksums(tmp_path):
    patch = make(tmp_path)
    crcs = tuple(zlib.crc32(Path(file.path).read_bytes()) for file in (patch.image, patch.mask))
    assert read_all(patch).crcs == crcs
    of_zip = patch.image._replace(crc=7)  # is checked when it is read
    assert read_all(Patch("train", KEY, of_zip, None, METADATA)).crcs == (7, None)


def test_no_metadata(tmp_path):
    patch = make(tmp_path, metadata=None)
    detail = "no entry IMG_000717 in the metadata files"
    assert only_fault(patch) == ("no metadata", patch.image.path, detail)


@pytest.mark.parametrize(
    ("field", "value", "detail"),
    [
        ("date", "2021-02-30", "date: '2021-02-30' is not a day as YYYY-MM-DD"),
        ("date", "20210528", "date: '20210528' is not a day as YYYY-MM-DD"),
        ("date", None, "date: None is not a day as YYYY-MM-DD"),
        ("time", "24h00", "time: '24h00' is not a time as HHhMM"),
        ("time", "8h06", "time: '8h06' is not a time as HHhMM"),
        ("camera", " ", "camera: ' ' is not a name"),
        ("patch_centroid_x", "1", "patch_centroid_x: '1' is not a finite number"),
        ("patch_centroid_y", True, "patch_centroid_y: True is not a finite number"),
        ("patch_centroid_z", float("nan"), "patch_centroid_z: nan is not a finite number"),
        (
            "patch_centroid_x",
            10**400,
            f"patch_centroid_x: 1{'0' * 49}... (401 characters) is not a finite number",
        ),
        ("camera", "UCE\ud800", r"camera: 'UCE\ud800' is not a name"),
        ("domain", "D001_2019", "domain: 'D001_2019', where the path has 'D004_2021'"),
        ("zone", "Z1_AA", "zone: 'Z1_AA', where the path has 'Z8_NF'"),
    ],
)
def test_malformed_metadata(tmp_path, field, value, detail):
    patch = make(tmp_path, metadata=METADATA | {field: value})
    assert only_fault(patch) == ("malformed metadata", patch.image.path, detail)


def test_metadata_not_an_object(tmp_path):
    assert only_fault(make(tmp_path, metadata=[1]))[2] == "the entry is not an object: [1]"


def test_all_faults_of_a_patch(tmp_path):
    mask = labels()
    mask[0, 3, 4] = 0
    patch = make(tmp_path, image=pixels(4), mask=mask, metadata=METADATA | {"time": ""})
    example, faults = read(patch)
    assert example is None
    kinds = ["malformed metadata", "image without 5 bands", "mask value outside 1..19"]
    assert [fault.kind for fault in faults] == kinds


def test_common_size(tmp_path):
    patches = []
    for i, (rows, columns) in enumerate([(32, 48), (32, 48), (64, 64)]):
        image = write(tmp_path / f"IMG_{i}.tif", pixels(5, rows, columns))
        patches.append(Patch("train", KEY, image, None, None))
    assert common_size(patches) == (32, 48)
    broken = Patch("train", KEY, File("", str(tmp_path / "none.tif")), None, None)
    assert common_size([broken, *patches[2:]]) == (64, 64)
    assert common_size([broken]) is None
