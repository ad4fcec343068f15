import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tensorflow_datasets as tfds

from tfds_builder.build import build, main
from tfds_builder.flair import flair_dataset_builder
from tfds_builder.flair.built import open_built
from tfds_builder.flair.faults import BuildError
from tfds_builder.flair.workers import available_cpus

ROOT = Path(__file__).parents[2]
DUMMY_DATA = Path(flair_dataset_builder.__file__).parent / "dummy_data"
NUMBER = str(flair_dataset_builder.Flair.VERSION)
VERSION = Path("flair/published") / NUMBER


@pytest.fixture
def source(tmp_path):
    """A copy of the eight synthetic patches, to be damaged."""
    shutil.copytree(DUMMY_DATA, tmp_path / "source")
    return tmp_path / "source"


def image(source, number):
    return next(source.rglob(f"IMG_{number}.tif"))


def mask(source, number):
    return next(source.rglob(f"MSK_{number}.tif"))


def rewrite(path, change):
    with rasterio.open(path) as src:
        bands, profile = change(src.read()), src.profile
    profile |= {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2]}
    with rasterio.open(path, "w", **profile) as dst:
        dst.write(bands)


def change_metadata(source, change):
    path = source / "flair-1_metadata_aerial.json"
    entries = json.loads(path.read_text())
    change(entries)
    path.write_text(json.dumps(entries))


def command(source, data_dir, *more):
    return [f"--source={source}", f"--data_dir={data_dir}", "--num_workers=1", *more]


def damage(source):
    """Gives seven patches a fault each, of seven kinds; 076311 stays valid."""
    truncated = image(source, "003388")
    truncated.write_bytes(truncated.read_bytes()[:-100])
    rewrite(mask(source, "003389"), lambda bands: bands[:, :32])
    rewrite(image(source, "040112"), lambda bands: bands[:4])

    def wrong_values(bands):
        bands[0, 5, :2] = [0, 25]
        return bands

    rewrite(mask(source, "052001"), wrong_values)

    def metadata(entries):
        del entries["IMG_000717"]
        entries["IMG_047250"]["date"] = "2020-13-01"

    change_metadata(source, metadata)
    twice = source / "copy/D012_2019/Z10_UU/img/IMG_062613.tif"
    twice.parent.mkdir(parents=True)
    shutil.copy(image(source, "062613"), twice)


NOTES = 2  # lines on domains that are absent and incomplete


def test_output_and_second_run(tmp_path, capfd):
    assert main(command(DUMMY_DATA, tmp_path)) == 0
    folder = tmp_path / VERSION
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert lines[:2] == [
        f"scanning {DUMMY_DATA}",
        "found 4 train, 2 val, 2 test patches of 64 x 64 pixels",
    ]
    assert lines[2].startswith("note: absent domains of FLAIR #1, 43 of 50: D007_2020, ")
    assert lines[3].startswith("note: incomplete domains of val and test, 4: D004_2021 (1 of ")
    lines = lines[2 + NOTES :]
    assert lines[:2] == [f"built {folder}", "  patches: 4 train, 2 val, 2 test patches"]
    assert lines[2].startswith("  shards:  1 train, 1 val, 1 test, 0.")
    assert lines[3:] == [
        "train with:",
        f"  flair-jax train --config=baseline --config.data_dir={tmp_path} --config.batch_size=4",
    ]
    assert "8/8" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flair"]
    assert [path.name for path in folder.parent.iterdir()] == [NUMBER]

    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert main(command(DUMMY_DATA, tmp_path)) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[-1] == (
        f"already built in {folder}: 4 train, 2 val, 2 test patches. Nothing was done."
    )
    assert err == ""
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_what_the_data_are_is_reported(source, tmp_path, capfd):
    for path in source.rglob("IMG_*.tif"):
        rewrite(path, lambda bands: np.concatenate([bands[:4], np.full_like(bands[:1], 9)]))
    change_metadata(source, lambda entries: entries.update(synthetic=True))
    assert main(command(source, tmp_path)) == 0
    out = capfd.readouterr().out
    assert "warning: constant in all patches, so that nothing can be learnt from it: height" in out
    assert "these data are synthetic: a model of them says so" in out
    metadata = json.loads((tmp_path / VERSION / "metadata.json").read_text())
    assert (metadata["synthetic"], metadata["constant_bands"]) == (True, ["height"])


def again(source, data_dir, capfd, *more):
    """Builds once more; returns the lines of the error between the first and the last."""
    capfd.readouterr()
    assert main(command(source, data_dir, *more)) == 1
    _, err = capfd.readouterr()
    first, *lines, last = err.splitlines()
    folder = next((data_dir / "flair").glob(f"*/{NUMBER}"))
    assert first.startswith(f"error: {folder} is already built, but ")
    assert last == "build it anew with --overwrite, or give another --data_dir"
    return [line.strip() for line in lines]


def change_pixel(path):
    """Changes a pixel, but not the size of the file."""
    with rasterio.open(path, "r+") as raster:
        band = raster.read(1)
        band[0, 0] = 1 + band[0, 0] % 19
        raster.write(band, 1)


def test_another_source(source, tmp_path, capfd):
    data_dir = tmp_path / "data"
    build(source, data_dir, num_workers=1, progress=False)
    changed = mask(source, "052001")
    change_pixel(changed)
    assert again(source, data_dir, capfd) == [f"changed masks: 1, the first: {changed}"]
    mask(source, "076311").unlink()
    image(source, "003389").unlink()
    mask(source, "003389").unlink()

    def metadata(entries):
        entries["IMG_000717"]["camera"] = "another"

    change_metadata(source, metadata)
    more = source / "more/D007_2020/Z1_AA"
    for number in ("000001", "000002"):
        for kind, original in (("img", image), ("msk", mask)):
            file = more / kind / f"{kind.upper()}_{number}.tif"
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(original(source, "003388"), file)
    assert again(source, data_dir, capfd) == [
        "changed masks: 1, the first: " + str(changed),
        "changed metadata entries: 1, the first: IMG_000717",
        f"masks removed: 1, the first: {image(source, '076311')}",
        f"new patches of train: 2, the first: {more}/img/IMG_000001.tif",
        "patches of train that are gone: 1, the first: D006_2020/Z15_UU/003389",
    ]


def test_the_same_source_packed_and_copied(source, tmp_path, capfd):
    data_dir = tmp_path / "data"
    folder = build(source, data_dir, num_workers=1, progress=False)
    for path in source.rglob("*.tif"):
        os.utime(path)
    assert build(source, data_dir, progress=False) == folder
    zipped = tmp_path / "zipped"
    zipped.mkdir()
    shutil.make_archive(zipped / "all", "zip", source)
    assert main(command(zipped, data_dir)) == 0
    from_zip = build(zipped, tmp_path / "other", num_workers=1, progress=False)
    contents = [json.loads((f / "fingerprint.json").read_text()) for f in (folder, from_zip)]
    assert contents[0]["content"] == contents[1]["content"]
    assert contents[0]["patches"] != contents[1]["patches"]


def test_other_options(tmp_path, capfd):
    build(DUMMY_DATA, tmp_path, num_workers=1, progress=False, on_error="skip")
    assert main(command(DUMMY_DATA, tmp_path)) == 0  # there were no faults to skip
    assert again(DUMMY_DATA, tmp_path, capfd, "--shuffle", "--shard_mb=1") == [
        "shard_mb is 1.0, was 256.0",
        "shuffle is True, was False",
    ]
    assert again(DUMMY_DATA, tmp_path, capfd, "--file_format=parquet") == [
        "file_format is 'parquet', was 'array_record'"
    ]


def test_faults_that_were_skipped(source, tmp_path, capfd):
    image(source, "003388").write_bytes(b"")
    build(source, tmp_path, num_workers=1, progress=False, on_error="skip")
    assert main(command(source, tmp_path, "--on_error=skip")) == 0
    assert again(source, tmp_path, capfd) == ["1 faulty patches were left out, see skipped.csv"]


def test_another_list(tmp_path, capfd):
    path = tmp_path / "train.csv"
    path.write_text("IMG_003388.tif\nIMG_003389.tif\n")
    option = f"--train_csv={path}"
    assert main(command(DUMMY_DATA, tmp_path, option)) == 0
    path.write_text("IMG_003388.tif\nIMG_040112.tif\n")
    first, *lines = again(DUMMY_DATA, tmp_path, capfd, option)
    assert first.startswith("lists is {'train': ")
    assert lines == [
        f"new patches of train: 1, the first: {image(DUMMY_DATA, '040112')}",
        "patches of train that are gone: 1, the first: D006_2020/Z15_UU/003389",
    ]


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])
    return f"{path}: 1,000 bytes, where "


def zeroed(path):
    path.write_bytes(bytes(path.stat().st_size))
    return f"{path}: "


def removed(path):
    path.unlink()
    return f"{path}: No such file or directory"


@pytest.mark.parametrize("damage", [cut, zeroed, removed])
def test_damaged_shards(tmp_path, capfd, damage):
    folder = build(DUMMY_DATA, tmp_path, num_workers=1, progress=False)
    begin = damage(next(folder.glob("flair-val*")))
    (line,) = again(DUMMY_DATA, tmp_path, capfd)
    assert line.startswith(begin)


def test_no_fingerprint(tmp_path, capfd):
    folder = build(DUMMY_DATA, tmp_path, num_workers=1, progress=False)
    (folder / "fingerprint.json").write_text("{}")
    (line,) = again(DUMMY_DATA, tmp_path, capfd)
    assert line == f"{folder}/fingerprint.json is damaged: KeyError('options')"
    (folder / "fingerprint.json").unlink()
    assert again(DUMMY_DATA, tmp_path, capfd) == ["it has no fingerprint.json"]


def test_overwrite(source, tmp_path, capfd):
    data_dir = tmp_path / "data"
    folder = build(source, data_dir, num_workers=1, progress=False)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    image(source, "000717").write_bytes(b"")
    assert main(command(source, data_dir, "--overwrite")) == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [NUMBER]
    assert main(command(source, data_dir, "--overwrite", "--on_error=skip")) == 0
    assert open_built(folder).num_patches == {"train": 4, "val": 1, "test": 2}
    assert [path.name for path in folder.parent.iterdir()] == [NUMBER]


def test_killed_while_it_replaced_a_data_set(tmp_path):
    folder = build(DUMMY_DATA, tmp_path, num_workers=1, progress=False)
    content = (folder / "dataset_info.json").read_bytes()
    replaced = folder.parent / f".{NUMBER}.replaced"
    folder.rename(replaced)
    assert build(DUMMY_DATA, tmp_path, num_workers=1, progress=False) == folder
    assert (folder / "dataset_info.json").read_bytes() == content
    shutil.copytree(folder, replaced)
    build(DUMMY_DATA, tmp_path, num_workers=1, progress=False)
    assert [path.name for path in folder.parent.iterdir()] == [NUMBER]


def test_python_function(tmp_path, capfd):
    folder = build(DUMMY_DATA, tmp_path, "d077", num_workers=1, progress=False)
    assert folder == tmp_path / f"flair/d077/{NUMBER}"
    assert capfd.readouterr() == ("", "")


def test_all_faults_in_one_message(source, tmp_path, capfd):
    damage(source)
    assert main(command(source, tmp_path / "data")) == 1
    _, err = capfd.readouterr()
    assert "Traceback" not in err
    message = err[err.index("error: ") :].splitlines()
    assert message[0] == "error: 7 faults in 8 patches; nothing was built."
    assert "  image unreadable: 1" in message
    assert f"    train  {image(source, '003388')}: " in err
    for kind, split, file, detail in (
        (
            "mask of another size than the image",
            "train",
            mask(source, "003389"),
            "32 x 64, where the image is 64 x 64",
        ),
        ("image without 5 bands", "train", image(source, "040112"), "4 bands"),
        ("mask value outside 1..19", "train", mask(source, "052001"), "found 0, 25"),
        (
            "no metadata",
            "val",
            image(source, "000717"),
            "no entry IMG_000717 in the metadata files",
        ),
        (
            "malformed metadata",
            "val",
            image(source, "047250"),
            "date: '2020-13-01' is not a day as YYYY-MM-DD",
        ),
        (
            "number twice",
            "test",
            source / "copy/D012_2019/Z10_UU/img/IMG_062613.tif",
            f"also {source}/flair_1_aerial_test/D012_2019/Z10_UU/img/IMG_062613.tif",
        ),
    ):
        assert f"  {kind}: 1\n    {split}  {file}: {detail}\n" in err
    assert "--on_error=skip" in message[-1]
    assert not (tmp_path / "data").exists()


def test_first_five_files_of_a_kind(source, tmp_path):
    for path in source.rglob("IMG_*.tif"):
        path.write_bytes(b"")
    with pytest.raises(BuildError) as error:
        build(source, tmp_path / "data", num_workers=1, progress=False)
    lines = str(error.value).splitlines()
    assert lines[:2] == ["8 faults in 8 patches; nothing was built.", "  image unreadable: 8"]
    assert len(lines) == 9
    assert lines[7] == "    ... and 3 more"
    with pytest.raises(BuildError, match="every patch is faulty; nothing was built"):
        build(source, tmp_path / "data", num_workers=1, progress=False, on_error="skip")
    assert not (tmp_path / "data").exists()


def test_skip(source, tmp_path, capfd):
    damage(source)
    assert main(command(source, tmp_path, "--on_error=skip")) == 0
    out, _ = capfd.readouterr()
    folder = tmp_path / VERSION
    assert "  patches: 1 test patches" in out
    assert f"  left out for 7 faults, listed in {folder}/skipped.csv:\n" in out
    assert "  mask value outside 1..19: 1\n" in out
    assert len((folder / "skipped.csv").read_text().splitlines()) == 8
    (example,) = tfds.builder_from_directory(folder).as_data_source("test")
    assert example["id"] == b"076311"


def test_test_patches_without_masks(source, tmp_path, capfd):
    mask(source, "076311").unlink()
    build(source, tmp_path, num_workers=1)
    assert "note: 1 test patches have no mask; has_mask is false\n" in capfd.readouterr().out
    one, other = tfds.builder_from_directory(tmp_path / VERSION).as_data_source("test")
    assert (one["has_mask"], other["has_mask"]) == (True, False)
    assert one["mask"].min() == 1
    assert other["mask"].shape == (64, 64, 1)
    assert not other["mask"].any()


def test_one_patch_of_another_size(source, tmp_path):
    for path in (image(source, "000717"), mask(source, "000717")):
        rewrite(path, lambda bands: bands[:, :32, :32])
    with pytest.raises(
        BuildError, match=r"1 fault in 8 .*\n  size not the data set's: 1\n.*32 x 32, w"
    ):
        build(source, tmp_path, num_workers=1, progress=False)


def test_lists(source, tmp_path, capfd):
    rows = {
        "train": [("D012_2019/Z10_UU", "062613"), ("D006_2020/Z15_UU", "003388")],
        "test": [("D004_2021/Z8_NF", "000717")],
    }
    options = []
    for split, patches in rows.items():
        lines = [f"../a/{p}/img/IMG_{n}.tif,../b/{p}/msk/MSK_{n}.tif\r\n" for p, n in patches]
        (tmp_path / f"{split}.csv").write_bytes("".join(lines).encode())
        options.append(f"--{split}_csv={tmp_path / split}.csv")
    assert main(command(source, tmp_path, *options)) == 0
    out, _ = capfd.readouterr()
    assert "note: no list was given for val: it is not built\n" in out
    assert f"built {tmp_path}/flair/lists/{NUMBER}\n  patches: 2 train, 1 test patches\n" in out
    assert "it has no patches of val: it can be predicted, not trained on\n" in out
    builder = tfds.builder_from_directory(tmp_path / f"flair/lists/{NUMBER}")
    ids = [example["id"].decode() for example in builder.as_data_source("train")]
    assert ids == ["003388", "062613"]

    (tmp_path / "train.csv").write_text("x/D001_2019/Z1_AA/img/IMG_000001.tif\n")
    assert main(command(source, tmp_path, *options, "--config=custom")) == 1
    _, err = capfd.readouterr()
    assert "1 fault in 2 patches; nothing was built.\n  listed but not found: 1\n" in err
    assert "    train  x/D001_2019/Z1_AA/img/IMG_000001.tif: line 1 of " in err
    assert not (tmp_path / "flair/custom").exists()
    assert main(command(source, tmp_path, *options, "--config=d077")) == 1
    assert "error: config 'd077' is split by domain" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": "nonesuch"}, "no config 'nonesuch': there are published, d077"),
        ({"config": "a/b", "val_csv": "x"}, "config 'a/b' names a folder"),
        ({"on_error": "ignore"}, "on_error is 'ignore', neither 'fail' nor 'skip'"),
        ({"num_workers": 0}, "num_workers at least 1"),
        ({"shard_mb": 0}, "shard_mb must be above 0"),
        ({"data_dir": "gs://bucket/data"}, "data_dir must be a folder of this machine"),
        ({"source": "gs://bucket/flair"}, "source must be a folder of this machine"),
        ({"beam_options": "project=x"}, "beam_options are given, but no beam_runner"),
        ({"source": "/nowhere"}, "the source /nowhere does not exist"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    arguments = {"source": DUMMY_DATA, "data_dir": tmp_path / "data", "progress": False}
    with pytest.raises(BuildError, match=message):
        build(**arguments | options)
    assert not (tmp_path / "data").exists()


def test_beam_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "tfds_builder.flair.beam", raising=False)
    with pytest.raises(BuildError, match=r'not installed: pip install -e "\.\[beam\]"'):
        build(DUMMY_DATA, tmp_path / "data", beam_runner="DirectRunner")
    assert not (tmp_path / "data").exists()


def test_empty_source(tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    assert main(command(tmp_path / "empty", tmp_path / "data")) == 1
    _, err = capfd.readouterr()
    assert err.startswith(f"error: no FLAIR patches in {tmp_path}/empty\n  expected: images")
    assert not (tmp_path / "data").exists()


def test_data_dir_not_writable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match=r"cannot write in .*/file/flair/published: Not a dir"):
        build(DUMMY_DATA, tmp_path / "file", progress=False)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_disk_full(tmp_path, num_workers):
    script = (
        "import resource, sys; from tfds_builder.build import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "sys.exit(main(sys.argv[1:]))"
    )
    options = [*command(DUMMY_DATA, tmp_path / "data")[:2], f"--num_workers={num_workers}"]
    done = subprocess.run(
        [sys.executable, "-c", script, *options], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: cannot write {tmp_path}/data/flair/published/.{NUMBER}.incom")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_folder_that_is_no_data_set(tmp_path, capfd):
    (tmp_path / VERSION).mkdir(parents=True)
    (line,) = again(DUMMY_DATA, tmp_path, capfd)
    assert line == f"{tmp_path / VERSION}/dataset_info.json is missing"


def test_data_dir_that_is_not_utf_8(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(BuildError, match=r"data_dir must have a name in UTF-8: .*/caf\\udce9"):
        build(DUMMY_DATA, folder)


def test_source_that_is_not_utf_8(source, tmp_path, capfd):
    other = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    source.rename(other)
    image(Path(other), "003388").write_bytes(b"")
    assert main(command(other, tmp_path / "data")) == 1
    out, err = capfd.readouterr()
    assert out.startswith(f"scanning {tmp_path}/caf\\udce9\n")
    assert f"    train  {tmp_path}/caf\\udce9/flair_aerial_train/D006_2020/" in err
    assert main(command(other, tmp_path / "data", "--on_error=skip")) == 0


def test_tfds_prints_no_warning_for_lists(tmp_path):
    (tmp_path / "train.csv").write_text("IMG_003388.tif\n")
    options = command(DUMMY_DATA, tmp_path, f"--train_csv={tmp_path}/train.csv")
    done = subprocess.run(
        [sys.executable, "-m", "tfds_builder.build", *options],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "data configuration" not in done.stdout + done.stderr


def test_two_processes_write_the_same_files(tmp_path):
    folders = [
        build(DUMMY_DATA, tmp_path / str(n), num_workers=n, progress=False, shard_mb=0.05)
        for n in (1, 2)
    ]
    one, two = ({path.name: path.read_bytes() for path in f.glob("*record*")} for f in folders)
    assert len(one) == 4
    assert one == two


# Started as a script, so that spawned processes run its first lines too.
SLOW_BUILD = """
import signal, sys, time
from tfds_builder import build
from tfds_builder.flair import shards

read_patch = shards.read_patch

def slowly(*args):
    time.sleep(1)
    return read_patch(*args)

shards.read_patch = slowly
if __name__ == "__main__":
    # Where the tests run in the background, SIGINT is ignored from the start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(build.main(sys.argv[1:]))
"""


def interrupt(tmp_path, number, num_workers):
    """Sends a signal to a build that is writing; returns its exit status and output."""
    (tmp_path / "slow.py").write_text(SLOW_BUILD)
    options = command(DUMMY_DATA, tmp_path / "data")[:2]
    process = subprocess.Popen(
        [sys.executable, tmp_path / "slow.py", *options, f"--num_workers={num_workers}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("data/flair/published/.*.incomplete/**/*array_record*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.parametrize(("number", "num_workers"), [(signal.SIGINT, 2), (signal.SIGTERM, 1)])
def test_interrupted_build_leaves_nothing(tmp_path, number, num_workers):
    status, err = interrupt(tmp_path, number, num_workers)
    assert status == 130
    assert err.splitlines()[-1] == "interrupted: nothing was kept"
    assert "Traceback" not in err
    assert not (tmp_path / "data").exists()


def test_killed_build_never_counts_as_complete(tmp_path, capfd):
    status, _ = interrupt(tmp_path, signal.SIGKILL, 2)
    assert status == -signal.SIGKILL
    incomplete = tmp_path / "data/flair/published" / f".{NUMBER}.incomplete"
    assert incomplete.exists()
    build(DUMMY_DATA, tmp_path / "data", num_workers=1)
    out, _ = capfd.readouterr()
    assert f" MB left by a killed build in {incomplete}\n" in out
    assert out.startswith("removed 0.")
    assert [path.name for path in incomplete.parent.iterdir()] == [NUMBER]
    builder = tfds.builder_from_directory(tmp_path / "data" / VERSION)
    assert len(builder.as_data_source("train")) == 4


def test_builds_at_the_same_time(tmp_path):
    """One of three builds writes, the others end before they scan."""
    options = command(DUMMY_DATA, tmp_path / "data")
    (tmp_path / "slow.py").write_text(SLOW_BUILD)
    processes = [
        subprocess.Popen(
            [sys.executable, tmp_path / "slow.py", *options],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 1, 1]
    lock = tmp_path / "data/flair/published" / f".{NUMBER}.lock"
    for process, (out, err) in zip(processes, outputs, strict=True):
        if process.returncode:
            assert out == ""
            assert err == f"error: another process is building this data set: it holds {lock}\n"
    assert [path.name for path in lock.parent.iterdir()] == [NUMBER]


def test_a_lock_that_nobody_holds(tmp_path):
    lock = tmp_path / "flair/published" / f".{NUMBER}.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("")
    build(DUMMY_DATA, tmp_path, num_workers=1, progress=False)
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BuildError, match="another process is building this data set: it hol"):
            build(DUMMY_DATA, tmp_path, num_workers=1, progress=False)


def test_workers_are_as_many_as_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    assert available_cpus() == 3
