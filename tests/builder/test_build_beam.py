import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

pytest.importorskip("apache_beam")

from flair_jax.data import synthetic
from tfds_builder.build import build, main
from tfds_builder.flair import beam, flair_dataset_builder
from tfds_builder.flair.built import Records, open_built
from tfds_builder.flair.faults import BuildError
from tfds_builder.flair.shards import cut

ROOT = Path(__file__).parents[2]
DUMMY_DATA = Path(flair_dataset_builder.__file__).parent / "dummy_data"
NUMBER = str(flair_dataset_builder.Flair.VERSION)
# The runner that works without a network; DirectRunner would fetch another if it could.
RUNNER = "FnApiRunner"
PROCESSES = "direct_num_workers=2,direct_running_mode=multi_processing"


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def both(source, tmp_path, beam_options=None, **options):
    """Returns the folder of a build without Beam and of one with it."""
    options |= {"progress": False}
    plain = build(source, tmp_path / "plain", num_workers=1, **options)
    return plain, build(
        source, tmp_path / "beam", beam_runner=RUNNER, beam_options=beam_options, **options
    )


@pytest.fixture
def source(tmp_path):
    """A copy of the eight synthetic patches, to be damaged."""
    shutil.copytree(DUMMY_DATA, tmp_path / "source")
    return tmp_path / "source"


def damage(source):
    for number in ("003389", "000717", "047250"):  # a train patch, and both of val
        next(source.rglob(f"IMG_{number}.tif")).write_bytes(b"")


@pytest.mark.parametrize("beam_options", [None, PROCESSES])
def test_equals_the_plain_build(tmp_path, beam_options):
    plain, with_beam = both(DUMMY_DATA, tmp_path, beam_options, shard_mb=0.05)
    assert "tensorflow" not in sys.modules
    assert len(list(with_beam.glob("*array_record*"))) == 4
    assert files(with_beam) == files(plain)
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        assert len(Records(open_built(with_beam), split)) == count


def test_more_than_ten_shards_keep_their_order(tmp_path):
    synthetic.generate(tmp_path / "source", patch_size=64, train=16, val=1, test=1)
    plain, with_beam = both(tmp_path / "source", tmp_path, shard_mb=1.4 * 64 * 64 * 6 / 2**20)
    info = tfds.builder_from_directory(with_beam).info
    assert info.splits["train"].shard_lengths == [1, 1, 2] * 4
    assert files(with_beam) == files(plain)


def test_zipped_source(tmp_path):
    (tmp_path / "source").mkdir()
    for folder in DUMMY_DATA.iterdir():
        with zipfile.ZipFile(tmp_path / "source" / f"{folder.stem}.zip", "w") as archive:
            for file in [folder, *folder.rglob("*")]:
                archive.write(file, file.relative_to(DUMMY_DATA))
    plain, with_beam = both(tmp_path / "source", tmp_path)
    assert files(with_beam) == files(plain)


def test_faults_are_reported_as_in_the_plain_build(source, tmp_path):
    damage(source)
    messages = []
    for options in ({"num_workers": 1}, {"beam_runner": RUNNER}):
        with pytest.raises(BuildError) as error:
            build(source, tmp_path / "data", shard_mb=0.03, progress=False, **options)
        messages.append(str(error.value))
        assert not (tmp_path / "data").exists()
    assert messages[0].startswith(
        "3 faults in 8 patches; nothing was built.\n  image unreadable: 3"
    )
    assert messages[1] == messages[0]


def test_skip(source, tmp_path):
    damage(source)
    plain, with_beam = both(source, tmp_path, on_error="skip", shard_mb=0.03)
    assert len((with_beam / "skipped.csv").read_text().splitlines()) == 4
    assert len(list(with_beam.glob("*array_record*"))) == 5
    assert files(with_beam) == files(plain)


def test_output(tmp_path, capfd):
    options = [f"--source={DUMMY_DATA}", f"--data_dir={tmp_path}", f"--beam_runner={RUNNER}"]
    assert main(options) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert lines[1] == "found 4 train, 2 val, 2 test patches of 64 x 64 pixels"
    assert lines[4:6] == [
        f"writing shards with Beam's {RUNNER}",
        f"built {tmp_path}/flair/published/{NUMBER}",
    ]
    assert "3/3" in err
    assert [path.name for path in tmp_path.iterdir()] == ["flair"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_runner": "Nonesuch"}, "no Beam runner 'Nonesuch': there are .*DirectRunner, "),
        ({"beam_runner": "no.such.Runner"}, "beam_runner=no.such.Runner cannot be loaded: No mod"),
        (
            {"beam_options": "direct_num_worker=2"},
            "no option 'direct_num_worker'; did you mean 'direct_num_workers'",
        ),
        ({"beam_options": "direct_num_workers=two"}, "direct_num_workers: invalid int value"),
        ({"beam_options": "xyzzy"}, "Beam has no option 'xyzzy'$"),
        (
            {"beam_runner": "SparkRunner", "beam_options": "spark_master_ulr=spark://a:7077"},
            "no option 'spark_master_ulr'; did you mean 'spark_master_url'",
        ),
        ({"beam_options": "runner=DirectRunner"}, "give the runner as --beam_runner"),
        ({"num_workers": 2}, "num_workers is for a build without Beam"),
        ({"source": "gs://bucket/flair"}, "source must be a folder of this machine, not gs://"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    arguments = {"source": DUMMY_DATA, "data_dir": tmp_path / "data", "beam_runner": RUNNER}
    with pytest.raises(BuildError, match=message):
        build(**arguments | options)
    assert not (tmp_path / "data").exists()


def test_options_for_beam():
    text = 'project=a, direct_num_workers=2,streaming,"environment_config=b,c",experiments=d'
    options = beam.pipeline_options("direct", text).get_all_options(drop_default=True)
    expected = {
        "project": "a",
        "direct_num_workers": 2,
        "streaming": True,
        "environment_config": "b,c",
        "experiments": ["d"],
        "runner": "direct",
    }
    assert {name: options[name] for name in expected} == expected
    # Options that a job server may know are not checked.
    beam.pipeline_options("SparkRunner", "spark_master_url=spark://a:7077,xyzzy=1")


@pytest.mark.parametrize("flag", ["source", "data_dir"])
def test_worker_that_does_not_share_the_folders(tmp_path, flag):
    plan = flair_dataset_builder.Flair().plan(str(DUMMY_DATA))
    (shard,) = cut(plan.splits["val"], plan.format, 1)
    folders = {"source": DUMMY_DATA, "data_dir": tmp_path} | {flag: tmp_path / "elsewhere"}
    element = zlib.compress(
        pickle.dumps((0, shard, str(folders["data_dir"] / "x"), "array_record"))
    )
    with pytest.raises(BuildError, match=f"has no folder .*elsewhere: --{flag} must be a folder"):
        beam._write(element, str(folders["source"]), skip=False, check_only=False)


@pytest.mark.parametrize("beam_options", ["", PROCESSES])
def test_disk_full(tmp_path, beam_options):
    script = (
        "import resource, sys; from tfds_builder.build import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "sys.exit(main(sys.argv[1:]))"
    )
    options = [f"--source={DUMMY_DATA}", f"--data_dir={tmp_path / 'data'}"]
    options += [f"--beam_runner={RUNNER}", f"--beam_options={beam_options}"]
    done = subprocess.run(
        [sys.executable, "-c", script, *options], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: the Beam pipeline failed: ")
    assert f"cannot write {tmp_path}/data/flair/published/.{NUMBER}.incomplete/" in last
    assert not (tmp_path / "data").exists()


# Started as a script, so that the spawned process runs its first lines too.
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_build_leaves_nothing_that_looks_complete(tmp_path, number):
    (tmp_path / "slow.py").write_text(SLOW_BUILD)
    options = [f"--source={DUMMY_DATA}", f"--data_dir={tmp_path / 'data'}", "--shard_mb=0.03"]
    process = subprocess.Popen(
        [sys.executable, tmp_path / "slow.py", *options, f"--beam_runner={RUNNER}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("data/flair/published/.*.incomplete/**/flair-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    # Its standard error ends when the last of the processes that it started has ended.
    _, err = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert err.splitlines()[-1] == "interrupted: nothing was kept"
        assert not (tmp_path / "data").exists()
        return
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "data/flair/published" / f".{NUMBER}.incomplete").exists()
    folder = build(DUMMY_DATA, tmp_path / "data", beam_runner=RUNNER, progress=False)
    assert list(folder.parent.iterdir()) == [folder]
