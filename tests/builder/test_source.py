import gzip
import json
import os
import zipfile
from pathlib import Path

import pytest

from tfds_builder.flair.faults import BuildError
from tfds_builder.flair.reference import (
    DOMAINS,
    PATCHES,
    TEST_DOMAINS,
    VAL_DOMAINS,
    VAL_DOMAINS_D077,
)
from tfds_builder.flair.selection import check_domains_2, check_masks, select
from tfds_builder.flair.source import Key, check_buildable, scan

# Four patches of each kind of domain; scanning reads no pixels, so the files are empty.
KEYS = [
    Key("D006_2020", "Z15_UU", "003388"),
    Key("D070_2020", "Z2_UA", "047250"),
    Key("D077_2021", "Z9_AN", "052001"),
    Key("D012_2019", "Z10_UU", "062613"),
]
BY_DOMAIN = {"train": [KEYS[0], KEYS[2]], "val": [KEYS[1]], "test": [KEYS[3]]}


def entries(keys=KEYS):
    return {f"IMG_{key.number}": {"domain": key.domain, "zone": key.zone} for key in keys}


def image_name(key):
    return f"{key.domain}/{key.zone}/img/IMG_{key.number}.tif"


def mask_name(key):
    return f"{key.domain}/{key.zone}/msk/MSK_{key.number}.tif"


def put(root: Path, *names: str, text: str = "") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def put_zip(path: Path, *names: str, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, text)


def put_patches(root: Path, keys=KEYS) -> None:
    for key in keys:
        put(root / "aerial", image_name(key))
        put(root / "labels", mask_name(key))
    put(root, "flair-1_metadata_aerial.json", text=json.dumps(entries(keys)))


def put_csv(path: Path, keys, end="\r\n", prefix="../somewhere/else") -> Path:
    rows = [f"{prefix}/{image_name(key)},{prefix}/{mask_name(key)}{end}" for key in keys]
    path.write_bytes("".join(rows).encode())
    return path


def keys_of(splits):
    return {split: [patch.key for patch in patches] for split, patches in splits.items()}


def folders(root):
    for key in KEYS:
        test = "1_" if key.domain in TEST_DOMAINS else ""
        last = "test" if test else "train"
        put(root / f"flair_{test}aerial_{last}", image_name(key))
        put(root / f"flair_{test}labels_{last}", mask_name(key))
    put(root, "flair-1_metadata_aerial/flair-1_metadata_aerial.json", text=json.dumps(entries()))


def five_zips(root):
    train, test = [KEYS[i] for i in (0, 1, 2)], KEYS[3:]
    for name, keys, file in (
        ("flair_aerial_train", train, image_name),
        ("flair_1_aerial_test", test, image_name),
        ("flair_labels_train", train, mask_name),
        ("flair_1_labels_test", test, mask_name),
    ):
        put_zip(root / f"{name}.zip", *(f"{name}/{file(key)}" for key in keys))
    name = "flair-1_metadata_aerial"
    put_zip(root / f"{name}.zip", f"{name}/{name}.json", text=json.dumps(entries()))


def toy_nested(root):
    top = root / "download" / "flair_1_toy_dataset" / "flair_1_toy_dataset"
    for key in KEYS:
        part = "test" if key.domain in TEST_DOMAINS else "train"
        put(top / part / f"flair_1_toy_aerial_{part}", image_name(key))
        put(top / part / f"flair_1_toy_labels_{part}", mask_name(key))
    put(top, "flair-1_toy_metadata_aerial.json", text=json.dumps(entries()))


def mirror_names(key):
    """Without the domain, and without the folders `img` and `msk`."""
    return [
        f"aerial/{key.zone}/IMG_{key.number}.tif",
        f"labels/{key.zone}/MSK_{key.number}.tif",
    ]


def mirror_zips(root):
    for key in KEYS:
        part = "flair#1-test" if key.domain in TEST_DOMAINS else "train-val"
        put_zip(root / "data" / part / f"{key.domain}.zip", *mirror_names(key))
    put_zip(root / "data/flair#2-test/D022_2021.zip", "aerial/Z1_NN/IMG_080000.tif")
    put(root, "flair-1_metadata_aerial.json", text=json.dumps(entries()))


def mirror_folders(root):
    for key in KEYS:
        part = "flair#1-test" if key.domain in TEST_DOMAINS else "train-val"
        put(root / "data" / part / key.domain, *mirror_names(key))
    put(root / "data/flair#2-test/D022_2021", "aerial/Z1_NN/IMG_080000.tif")
    put(root, "flair-1_metadata_aerial.json", text=json.dumps(entries()))


@pytest.mark.parametrize("layout", [folders, five_zips, toy_nested, mirror_zips, mirror_folders])
def test_layout(tmp_path, layout):
    root = tmp_path / "my data #1 {é}"
    root.mkdir()
    layout(root)
    source = scan(root)
    splits, faults = select(source)
    assert faults == []
    assert keys_of(splits) == BY_DOMAIN
    for patches in splits.values():
        for patch in patches:
            assert patch.image.path.endswith(f"IMG_{patch.key.number}.tif")
            assert patch.mask.path.endswith(f"MSK_{patch.key.number}.tif")
            assert patch.metadata == entries()[f"IMG_{patch.key.number}"]
    mirror = layout in (mirror_zips, mirror_folders)
    assert source.notes == ["left out 1 files of the test set of FLAIR #2"] * mirror


def test_published_domains():
    assert len(VAL_DOMAINS) == 8
    assert len(TEST_DOMAINS) == 10
    assert not VAL_DOMAINS & TEST_DOMAINS
    assert sorted(VAL_DOMAINS - VAL_DOMAINS_D077) == ["D070_2020"]
    assert sorted(VAL_DOMAINS_D077 - VAL_DOMAINS) == ["D077_2021"]
    assert (len(DOMAINS), PATCHES) == (50, 77_412)


def test_other_validation_domains(tmp_path):
    put_patches(tmp_path)
    splits, _ = select(scan(tmp_path), VAL_DOMAINS_D077)
    assert keys_of(splits) == BY_DOMAIN | {"train": KEYS[:2], "val": [KEYS[2]]}


def test_patches_are_in_order(tmp_path):
    keys = [Key("D009_2019", "Z1_AA", "000009"), Key("D006_2020", "Z2_AA", "000003")]
    keys += [Key("D006_2020", "Z10_AA", "000004"), Key("D006_2020", "Z10_AA", "000001")]
    put_patches(tmp_path, keys)
    splits, _ = select(scan(tmp_path))
    assert [int(patch.key.number) for patch in splits["train"]] == [1, 4, 3, 9]


def test_folder_of_one_domain_as_source(tmp_path):
    put_patches(tmp_path, KEYS[:1])
    put(tmp_path / "aerial/D006_2020", "metadata.json", text=json.dumps(entries()))
    (tmp_path / "labels/D006_2020/Z15_UU/msk").rename(tmp_path / "aerial/D006_2020/Z15_UU/msk")
    splits, _ = select(scan(tmp_path / "aerial/D006_2020"))
    assert keys_of(splits) == {"train": KEYS[:1]}


def test_links_are_followed_once(tmp_path):
    put_patches(tmp_path / "real")
    (tmp_path / "source").mkdir()
    (tmp_path / "source/here").symlink_to(tmp_path / "real")
    (tmp_path / "real/loop").symlink_to(tmp_path / "source")
    splits, faults = select(scan(tmp_path / "source"))
    assert (keys_of(splits), faults) == (BY_DOMAIN, [])


def test_hidden_and_other_files_are_ignored(tmp_path):
    put_patches(tmp_path)
    put(tmp_path / "__MACOSX", image_name(KEYS[0]))
    put(tmp_path / ".trash", image_name(KEYS[0]))
    put(tmp_path / "aerial/D006_2020/Z15_UU/img", "._IMG_003388.tif", "IMG_003388.tif.aux.xml")
    put(tmp_path, "PRED_003388.tif", "IMG_1.tif")
    source = scan(tmp_path)
    splits, faults = select(source)
    assert (keys_of(splits), faults) == (BY_DOMAIN, [])
    first = f"the first: {tmp_path}/IMG_1.tif"
    assert source.notes == [f"left out 1 files outside any domain and zone folder, {first}"]


def test_unpacked_is_taken_before_zipped(tmp_path):
    put_patches(tmp_path)
    put_zip(tmp_path / "flair_aerial_train.zip", *(f"x/{image_name(key)}" for key in KEYS[:2]))
    source = scan(tmp_path)
    splits, faults = select(source)
    assert (keys_of(splits), faults) == (BY_DOMAIN, [])
    assert all(not patch.image.archive for patch in splits["train"])
    assert source.notes == ["took 2 patches unpacked that are in a zip as well"]


def test_number_twice(tmp_path):
    put_patches(tmp_path)
    put(tmp_path / "copy", image_name(KEYS[0]), mask_name(KEYS[1]))
    other = Key("D006_2020", "Z1_AA", KEYS[2].number)
    put(tmp_path / "aerial", image_name(other))
    splits, faults = select(scan(tmp_path))
    assert keys_of(splits) == {"test": [KEYS[3]]}
    assert [(fault.kind, fault.split) for fault in faults] == [("number twice", "train")] * 3 + [
        ("number twice", "val")
    ]
    by_file = {fault.file: fault.detail for fault in faults}
    image = image_name(KEYS[0])
    assert by_file[f"{tmp_path}/aerial/{image}"] == f"also {tmp_path}/copy/{image}"
    mask = mask_name(KEYS[1])
    assert by_file[f"{tmp_path}/copy/{mask}"] == f"also {tmp_path}/labels/{mask}"
    images = [f"{tmp_path}/aerial/{image_name(key)}" for key in (KEYS[2], other)]
    assert by_file[images[0]] == f"also {images[1]}"
    assert by_file[images[1]] == f"also {images[0]}"


def test_mask_without_image(tmp_path):
    put_patches(tmp_path)
    image = tmp_path / "aerial" / image_name(KEYS[0])
    image.unlink()
    splits, faults = select(scan(tmp_path))
    assert keys_of(splits) == BY_DOMAIN | {"train": [KEYS[2]]}
    mask = f"{tmp_path}/labels/{mask_name(KEYS[0])}"
    assert faults == [("train", "mask without image", mask, "no image was found")]


def test_metadata_files_are_merged(tmp_path):
    put_patches(tmp_path)
    put(tmp_path, "flair-1_metadata_aerial.json", text=json.dumps(entries(KEYS[:3])))
    put_zip(tmp_path / "m.zip", "more_METADATA.json", text=json.dumps(entries(KEYS[2:])))
    put(tmp_path, "metadata_of_something_else.json", text="[1, 2]")
    splits, faults = select(scan(tmp_path))
    assert (keys_of(splits), faults) == (BY_DOMAIN, [])
    assert all(patch.metadata for patches in splits.values() for patch in patches)


def test_contradictory_metadata(tmp_path):
    put_patches(tmp_path)
    other = {"IMG_052001": {"domain": "D001_2019"}, "IMG_999999": {}}
    put(tmp_path, "old_metadata.json", text=json.dumps(other))
    splits, (fault,) = select(scan(tmp_path))
    assert keys_of(splits)["train"] == [KEYS[0]]
    assert fault.kind == "contradictory metadata"
    where = f"{tmp_path}/flair-1_metadata_aerial.json and {tmp_path}/old_metadata.json"
    assert fault.detail == where


@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_lists(tmp_path, end):
    put_patches(tmp_path)
    train = put_csv(tmp_path / "a.csv", [KEYS[3], KEYS[0]], end)
    test = put_csv(tmp_path / "b.csv", [KEYS[1]], end)
    zipped = tmp_path / "b.csv.gz"
    zipped.write_bytes(gzip.compress(test.read_bytes()))
    splits, faults = select(scan(tmp_path), lists={"train": str(train), "test": str(zipped)})
    assert faults == []
    assert keys_of(splits) == {"train": [KEYS[0], KEYS[3]], "test": [KEYS[1]]}


def test_list_of_bare_names(tmp_path):
    put_patches(tmp_path)
    (tmp_path / "a.csv").write_text("\ufeffIMG_052001.tif\n\n")
    splits, faults = select(scan(tmp_path), lists={"val": str(tmp_path / "a.csv")})
    assert (keys_of(splits), faults) == ({"val": [KEYS[2]]}, [])


def test_list_faults(tmp_path):
    put_patches(tmp_path)
    absent = Key("D006_2020", "Z15_UU", "000001")
    moved = KEYS[2]._replace(zone="Z1_AA")
    train = put_csv(tmp_path / "a.csv", [KEYS[0], absent, moved])
    val = put_csv(tmp_path / "b.csv", [KEYS[0], KEYS[1]])
    splits, faults = select(scan(tmp_path), lists={"train": str(train), "val": str(val)})
    assert keys_of(splits) == {"val": [KEYS[1]]}
    prefix = "../somewhere/else"
    assert faults == [
        (
            "train",
            "listed but not found",
            f"{prefix}/{image_name(key)}",
            f"line {line} of {train}; not in {tmp_path}",
        )
        for line, key in ((2, absent), (3, moved))
    ] + [
        (
            "train",
            "listed twice",
            f"{tmp_path}/aerial/{image_name(KEYS[0])}",
            f"line 1 of {train} and line 1 of {val}",
        )
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,mask\r\n", "line 1: 'image' is not the path of an image IMG_<number>.tif"),
        ("IMG_052001.tif,mask.tif\n", "line 1: 'mask.tif' is not the path of a mask MSK_<number>"),
        ('"' + 999 * "a/IMG_1.tif\n", r"cannot read the list .*a\.csv: unexpected end of data"),
        (";".join(999 * ["a/IMG_1.tif"]) + ";", r"line 1: 'a/IMG_1\.tif.{,200}' is not the path"),
        ("\udce9", r"cannot read the list .*a\.csv: 'utf-8' codec can't decode"),
        (None, "cannot read the list"),
    ],
)
def test_bad_list(tmp_path, text, message):
    put_patches(tmp_path)
    if text is not None:
        (tmp_path / "a.csv").write_bytes(os.fsencode(text))
    with pytest.raises(BuildError, match=message):
        select(scan(tmp_path), lists={"train": str(tmp_path / "a.csv")})


def test_no_masks_at_all(tmp_path):
    put_patches(tmp_path)
    for key in KEYS[:3]:
        (tmp_path / "labels" / mask_name(key)).unlink()
    source = scan(tmp_path)
    splits, _ = select(source)
    with pytest.raises(BuildError, match=r"none of the 2 train patches .* flair_labels_train.zip"):
        check_masks(source, splits)


def test_source_that_does_not_exist(tmp_path):
    with pytest.raises(BuildError, match=r"nowhere does not exist; give the folder"):
        scan(tmp_path / "nowhere")
    put(tmp_path, "a.zip")
    with pytest.raises(BuildError, match=r"a.zip is not a folder; give the folder"):
        scan(tmp_path / "a.zip")


def test_empty_source(tmp_path):
    with pytest.raises(BuildError) as error:
        check_buildable(scan(tmp_path))
    assert f"no FLAIR patches in {tmp_path}\n" in str(error.value)
    assert "expected: images named like D004_2021/Z10_AU/img/IMG_000826.tif" in str(error.value)
    assert "found: no files\n" in str(error.value)


def test_source_with_nothing_that_fits(tmp_path):
    put(tmp_path, "x/a.tif", "b.TIF", "readme.txt", "D006_2020/Z1_AA/img/IMG_x.tif")
    put(tmp_path, "D006_2020/Z1_AA/msk/MSK_000001.tif")
    with pytest.raises(BuildError) as error:
        check_buildable(scan(tmp_path))
    first = f"4 .tif, 1 .txt, the first:\n    {tmp_path}/b.TIF\n"
    assert first in str(error.value)
    assert "1 masks, but no image" in str(error.value)


def test_source_without_metadata(tmp_path):
    put_patches(tmp_path)
    (tmp_path / "flair-1_metadata_aerial.json").unlink()
    with pytest.raises(BuildError, match=r"no metadata in .*: 4 images were found, .*aerial\.zip"):
        check_buildable(scan(tmp_path))


ENTRY = json.dumps(entries()["IMG_003388"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"IMG_0', "Unterminated string"),
        (b'{"IMG_\xe9": {}}', "can't decode"),
        (b'{"IMG_003388": 1' + b"0" * 5000 + b"}", "Exceeds the limit"),
        (b"[" * 100_000, "recursion"),
        (
            f'{{"IMG_003388": {ENTRY}, "IMG_003388": {ENTRY}}}'.encode(),
            "the key 'IMG_003388' is given twice",
        ),
        (b'{"IMG_003388": {"date": 1, "date": 2}}', "the key 'date' is given twice"),
    ],
)
def test_damaged_metadata(tmp_path, content, reason):
    put_patches(tmp_path)
    (tmp_path / "flair-1_metadata_aerial.json").write_bytes(content)
    source = scan(tmp_path)
    with pytest.raises(BuildError, match="cannot read the metadata") as error:
        check_buildable(source)
    assert str(error.value).startswith(
        "damaged or incomplete files (download them again, or remove them):"
        f"\n  {tmp_path}/flair-1_metadata_aerial.json: cannot read the metadata: "
    )
    assert reason in str(error.value)


def truncate(path, end=-40):
    path.write_bytes(path.read_bytes()[:end])


def test_damaged_zip(tmp_path):
    five_zips(tmp_path)
    labels = tmp_path / "flair_1_labels_test.zip"
    truncate(labels)
    source = scan(tmp_path)
    assert [str(damage) for damage in source.damage] == [f"{labels}: File is not a zip file"]
    assert (len(source.images), len(source.masks)) == (4, 3)
    with pytest.raises(BuildError, match=r"damaged or incomplete files .*\n  .*labels_test"):
        check_buildable(source)
    check_buildable(source, skip_damaged=True)
    assert source.notes == [f"left out a damaged file: {labels}: File is not a zip file"]


def test_half_a_zip_is_reported_when_there_is_nothing_else(tmp_path):
    five_zips(tmp_path)
    for name in ("flair_aerial_train.zip", "flair_1_aerial_test.zip"):
        truncate(tmp_path / name)
    with pytest.raises(BuildError, match="no FLAIR patches in") as error:
        check_buildable(scan(tmp_path), skip_damaged=True)
    assert f"\n  {tmp_path}/flair_aerial_train.zip: File is not a zip file" in str(error.value)


def zip_with(path, names, flags=0, method=None):
    """A zip whose members are marked as encrypted or as compressed in another way."""
    put_zip(path, *names)
    content = bytearray(path.read_bytes())
    position = 0
    while (position := content.find(b"PK\x01\x02", position)) >= 0:
        content[position + 8] |= flags
        if method is not None:
            content[position + 10] = method
        position += 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"flags": 1}, "it is encrypted; unpack it"),
        ({"method": 9}, "its compression (method 9) is not supported; unpack it"),
        ({"method": 93}, "its compression (method 93) is not supported; unpack it"),
    ],
)
def test_zips_that_cannot_be_read(tmp_path, change, reason):
    put_patches(tmp_path)
    zip_with(tmp_path / "more.zip", ["D008_2019/Z1_AA/img/IMG_000001.tif"], **change)
    assert [str(d) for d in scan(tmp_path).damage] == [f"{tmp_path}/more.zip: {reason}"]


def test_zips_in_zips(tmp_path):
    put_patches(tmp_path)
    put_zip(tmp_path / "all.zip", "flair_aerial_train.zip", "flair_labels_train.zip")
    assert scan(tmp_path).notes == [
        "left out 2 zips inside zips, which must be unpacked, the first:"
        f" {tmp_path}/all.zip/flair_aerial_train.zip"
    ]


@pytest.mark.parametrize("name", ["IMG_003389.tif", "more.zip", "metadata.json"])
def test_pipes_are_not_opened(tmp_path, name):
    put_patches(tmp_path)
    pipe = tmp_path / "aerial/D006_2020/Z15_UU/img" / name
    os.mkfifo(pipe)
    source = scan(tmp_path)
    assert source.notes == [f"left out 1 pipes, sockets and devices, the first: {pipe}"]
    assert source.damage == []


def test_names_that_are_not_utf_8(tmp_path):
    root = os.fsencode(tmp_path) + b"/caf\xe9"
    put_patches(tmp_path / "x")
    os.rename(tmp_path / "x", root)
    source = scan(os.fsdecode(root))
    splits, faults = select(source)
    assert (keys_of(splits), faults) == (BY_DOMAIN, [])
    error = BuildError(f"cannot read {splits['val'][0].image}")
    assert str(error) == f"cannot read {tmp_path}/caf\\udce9/aerial/{image_name(KEYS[1])}"


def test_list_that_pairs_an_image_with_the_mask_of_another_patch(tmp_path):
    put_patches(tmp_path)
    (tmp_path / "a.csv").write_text(
        f"{image_name(KEYS[0])},{mask_name(KEYS[2])}\n"
        f"IMG_{KEYS[1].number}.tif,MSK_{KEYS[1].number}.tif\n{image_name(KEYS[2])}\n"
    )
    splits, faults = select(scan(tmp_path), lists={"train": str(tmp_path / "a.csv")})
    assert keys_of(splits) == {"train": KEYS[1:3]}
    assert faults == [
        (
            "train",
            "listed with another mask",
            image_name(KEYS[0]),
            f"line 1 of {tmp_path}/a.csv: {mask_name(KEYS[2])}",
        )
    ]


def test_truncated_list(tmp_path):
    put_patches(tmp_path)
    content = gzip.compress(b"IMG_052001.tif\n" * 1000)
    (tmp_path / "a.csv.gz").write_bytes(content[:-20])
    with pytest.raises(BuildError, match=r"cannot read the list .*a\.csv\.gz: "):
        select(scan(tmp_path), lists={"train": str(tmp_path / "a.csv.gz")})


FLAIR_2 = [Key("D022_2021", "Z1_NN", "080000"), Key("D015_2020", "Z2_FF", "080001")]


def test_another_test_set(tmp_path):
    """Of the mirror's folders, whose test domains are partly FLAIR #1's."""
    mirror_zips(tmp_path)
    (tmp_path / "data/flair#2-test/D022_2021.zip").unlink()
    for key in FLAIR_2:
        put_zip(tmp_path / "data/flair#2-test" / f"{key.domain}.zip", *mirror_names(key))
    put(tmp_path, "flair-2_metadata_aerial.json", text=json.dumps(entries(FLAIR_2)))
    source = scan(tmp_path, flair_2=True)
    splits, faults = select(source)
    assert faults == []
    assert keys_of(splits) == BY_DOMAIN | {"test": sorted(FLAIR_2)}
    assert source.notes == ["left out 2 files of the test set of FLAIR #1"]
    assert all(patch.metadata for patches in splits.values() for patch in patches)
    check_domains_2(source)
    assert keys_of(select(scan(tmp_path))[0]) == BY_DOMAIN


def test_images_of_unknown_domains(tmp_path):
    """Outside its folder they would be trained on."""
    put_patches(tmp_path, [*KEYS, FLAIR_2[1]])
    source = scan(tmp_path, flair_2=True)
    first = f"{tmp_path}/aerial/{image_name(FLAIR_2[1])}"
    with pytest.raises(BuildError, match=f"1 images are of no domain of train .* first: {first}"):
        check_domains_2(source)


def test_another_test_set_zipped(tmp_path):
    put_patches(tmp_path, KEYS)
    put_zip(tmp_path / "flair_2_aerial_test.zip", f"flair_2_aerial_test/{image_name(FLAIR_2[0])}")
    source = scan(tmp_path, flair_2=True)
    assert keys_of(select(source)[0])["test"] == FLAIR_2[:1]
    assert source.notes == ["left out 2 files of the test set of FLAIR #1"]
