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
from tfds_builder.flair.faults import BuildError

ROOT = Path(__file__).parents[2]
DUMMY_DATA = Path(flair_dataset_builder.__file__).parent / "dummy_data"
VERSION = Path("flair/published/1.0.0")


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


def test_output_and_second_run(tmp_path, capfd):
    assert main(command(DUMMY_DATA, tmp_path)) == 0
    folder = tmp_path / VERSION
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert lines[:4] == [
        f"scanning {DUMMY_DATA}",
        "found 4 train, 2 val, 2 test patches of 64 x 64 pixels",
        f"built {folder}",
        "  patches: 4 train, 2 val, 2 test patches",
    ]
    assert lines[4].startswith("  shards:  1 train, 1 val, 1 test, 0.")
    assert lines[5:] == [
        "train with:",
        f"  flair-jax train --config=baseline --config.data_dir={tmp_path}",
    ]
    assert "8/8" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flair"]

    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert main(command("elsewhere", tmp_path)) == 0
    out, err = capfd.readouterr()
    assert out == (
        f"already built in {folder}: 4 train, 2 val, 2 test patches. Nothing was done.\n"
        f"It was built from {DUMMY_DATA}. Remove it to build it anew.\n"
    )
    assert err == ""
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_python_function(tmp_path, capfd):
    folder = build(DUMMY_DATA, tmp_path, "d077", num_workers=1, progress=False)
    assert folder == tmp_path / "flair/d077/1.0.0"
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
    assert other["mask"].shape == (64, 64)
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
    assert f"built {tmp_path}/flair/lists/1.0.0\n  patches: 2 train, 1 test patches\n" in out
    assert f"--config.data_dir={tmp_path} --config.data_config=lists\n" in out
    builder = tfds.builder_from_directory(tmp_path / "flair/lists/1.0.0")
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
    assert last.startswith(f"error: cannot write {tmp_path}/data/flair/published/incomplete.")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_folder_that_is_no_data_set(tmp_path):
    (tmp_path / VERSION).mkdir(parents=True)
    with pytest.raises(BuildError, match="exists, but is not a data set that TFDS can read"):
        build(DUMMY_DATA, tmp_path, progress=False)


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
    while not list(tmp_path.glob("data/flair/published/incomplete.*/*array_record*")):
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
    (incomplete,) = (tmp_path / "data/flair/published").iterdir()
    assert incomplete.name.startswith("incomplete.")
    build(DUMMY_DATA, tmp_path / "data", num_workers=1)
    out, _ = capfd.readouterr()
    assert f" MB left by a killed build in {incomplete}\n" in out
    assert out.startswith("removed 0.")
    assert [path.name for path in incomplete.parent.iterdir()] == ["1.0.0"]
    builder = tfds.builder_from_directory(tmp_path / "data" / VERSION)
    assert len(builder.as_data_source("train")) == 4


def test_incomplete_folder_without_a_lock_is_only_reported(tmp_path, capfd):
    incomplete = tmp_path / "flair/published/incomplete.ABC123_1.0.0"
    incomplete.mkdir(parents=True)
    (incomplete / "x").write_bytes(np.zeros(1_500_000, np.uint8))
    build(DUMMY_DATA, tmp_path, num_workers=1)
    out, _ = capfd.readouterr()
    assert out.startswith(
        f"note: an unfinished build of 1.5 MB is in {incomplete}; remove it if unused"
    )
    assert incomplete.exists()


def test_second_build_at_the_same_time(tmp_path):
    incomplete = tmp_path / "flair/published/incomplete.ABC123_1.0.0"
    incomplete.mkdir(parents=True)
    with open(incomplete / "build.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BuildError, match="another process is building this data set, in"):
            build(DUMMY_DATA, tmp_path, num_workers=1, progress=False)
    assert incomplete.exists()
