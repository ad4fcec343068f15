"""Two processes over loopback in place of two hosts, two virtual devices each.

The U-Net is trained once by one process and once by two; all else is shown with a tiny model.
"""

import errno
import json
import shutil
import signal
import zipfile
from pathlib import Path

import numpy as np
import processes
import pytest
import rasterio
from processes import finish

from flair_jax.data.dataset import dataset_directory, open_split

pytestmark = pytest.mark.slow
SETTINGS = {
    "batch_size": 4, "num_epochs": 2, "log_every_steps": 1, "learning_rate": 1e-5, "augment": True,
    "metadata.use": True, "metadata.encoding": "corrected", "metadata.fusion": "channels",
    "predict_after_training": True,
}  # fmt: skip
TINY = "import tiny_model; tiny_model.install()\n"
# Reads of arrays that fail on the second process alone: FAULT is how often, and as what.
FAULT = """
import json, os, sys
from flair_jax.inference import loading
times, number = json.loads(os.environ["FAULT"])
read = loading._read_arrays

def failing(*args):
    global times
    times -= 1
    if times >= 0:
        raise OSError(number, os.strerror(number)) if number else ValueError("a bit is flipped")
    return read(*args)

if "--process_id=1" in sys.argv:
    loading._read_arrays = failing
"""


def start(data_dir, workdir, *more, devices=2, order=(), model=TINY, fault=None, **changes):
    settings = SETTINGS | {"data_dir": data_dir} | changes
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    arguments = ["--config=configs/baseline.py", *flags, f"--workdir={workdir}", *more]
    code = model + (FAULT if fault else "") + processes.COMMAND
    return processes.start(code, *arguments, devices=devices, order=order, FAULT=json.dumps(fault))


def start_several(data_dir, workdir, *more, count=2, of_last=None, **options):
    together = (f"--coordinator=127.0.0.1:{processes.free_port()}", f"--num_processes={count}")
    return [
        start(directory, workdir, *together, *more, f"--process_id={i}", **options)
        for i, directory in enumerate([data_dir] * (count - 1) + [of_last or data_dir])
    ]


def wait_for_step(number, process):
    for line in process.stdout:
        if line.startswith(f"  step {number}:"):
            return
    pytest.fail(f"the run ended before step {number}")


def numbers(workdir, key):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line[key] for line in lines if key in line]


@pytest.fixture(scope="module")
def alone(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone")
    finish(start(data_dir, workdir, devices=1))
    return workdir


def compare(workdir, alone):
    assert numbers(workdir, "loss") == pytest.approx(numbers(alone, "loss"), rel=1e-5)
    assert numbers(workdir, "val_loss") == pytest.approx(numbers(alone, "val_loss"), rel=1e-4)
    metrics, expected = (
        json.loads((folder / "evaluation/test/metrics.json").read_text())
        for folder in (workdir, alone)
    )
    assert metrics["num_patches"] == 5
    patches, expected_patches = (
        json.loads((folder / "evaluation/test/patches.json").read_text())["patches"]
        for folder in (workdir, alone)
    )
    for patch, wanted in zip(patches, expected_patches, strict=True):
        for key in ("place", "id", "zone", "classes"):
            assert patch[key] == wanted[key]
        # Rounding may decide single pixels; a foreign patch is far off.
        assert patch["accuracy"] == pytest.approx(wanted["accuracy"], abs=2e-3)
    for kind in ("by_domain", "by_camera", "by_month"):
        found, wanted = (
            {name: part["num_patches"] for name, part in scores[kind].items()}
            for scores in (metrics, expected)
        )
        assert found == wanted
    confusion = np.array(metrics["confusion_matrix"])
    np.testing.assert_array_equal(confusion.sum(1), np.sum(expected["confusion_matrix"], 1))
    files = sorted((workdir / "predictions").iterdir())
    assert [f.name for f in files] == sorted(p.name for p in (alone / "predictions").iterdir())
    counts = np.zeros(13, int)
    for file in files:
        with rasterio.open(file) as raster:
            counts += np.bincount(raster.read(1).ravel(), minlength=13)
    np.testing.assert_array_equal(counts, confusion.sum(0))


def check_several(data_dir, alone, tmp_path, count, **options):
    first, *others = finish(*start_several(data_dir, tmp_path, count=count, **options))
    assert f"on {count} host" in first
    assert not any("epoch" in output for output in others)  # only the first process prints
    assert len(numbers(tmp_path, "loss")) == 8
    compare(tmp_path, alone)


@pytest.mark.parametrize(
    ("count", "devices", "order"), [(2, 2, [0, 2, 3, 1]), (4, 1, [2, 0, 3, 1])]
)
def test_several_hosts_train_score_and_predict_as_one_does(
    data_dir, alone, tmp_path, count, devices, order
):
    """Also where the devices of a host are not neighbours in the mesh."""
    check_several(data_dir, alone, tmp_path, count, devices=devices, order=order)


def test_two_hosts_train_the_network_as_one_does(data_dir, tmp_path):
    finish(start(data_dir, tmp_path / "alone", devices=1, model=""))
    check_several(data_dir, tmp_path / "alone", tmp_path / "two", 2, order=[0, 2, 3, 1], model="")


@pytest.fixture
def unscored(alone, tmp_path):
    ignored = shutil.ignore_patterns("evaluation", "predictions*")
    return shutil.copytree(alone, tmp_path / "run", ignore=ignored)


def test_a_read_that_fails_for_a_moment_on_one_host_costs_nothing(data_dir, alone, unscored):
    output, _ = finish(*start_several(data_dir, unscored, fault=(2, errno.ETIMEDOUT)))
    assert "resuming from step 8 (2 epochs finished)" in output
    assert not (unscored / "damaged_checkpoints").exists()
    compare(unscored, alone)


def test_what_is_damaged_for_one_host_no_host_resumes_from(data_dir, alone, unscored):
    """Three reads of the newest step fail; then the older one is read by both."""
    output, _ = finish(*start_several(data_dir, unscored, fault=(3, 0)))
    assert f"{unscored}/checkpoints/8 is damaged on another process" in output
    assert "resuming from step 4 (1 epochs finished)" in output
    assert [path.name for path in (unscored / "damaged_checkpoints").iterdir()] == ["8"]
    compare(unscored, alone)


def test_what_is_out_of_reach_for_one_host_ends_all_and_costs_nothing(data_dir, alone, unscored):
    hosts = start_several(data_dir, unscored, fault=(99, errno.ETIMEDOUT))
    first, second = (process.communicate(timeout=240)[0] for process in hosts)
    assert all(process.returncode != 0 for process in hosts)
    assert f"error: another process cannot read {unscored}/checkpoints/8: see there" in first
    assert f"error: {unscored}/checkpoints/8 cannot be read: [Errno 110]" in second
    assert "Traceback" not in first + second
    assert not (unscored / "damaged_checkpoints").exists()
    output, _ = finish(*start_several(data_dir, unscored))
    assert "resuming from step 8 (2 epochs finished)" in output
    compare(unscored, alone)


def test_two_hosts_predict_with_overlays_and_a_submission(data_dir, alone, tmp_path):
    workdir = Path(shutil.copytree(alone, tmp_path / "run"))
    zipped = tmp_path / "submission.zip"
    flags = ("--mode=predict", "--overlays=3", f"--submission={zipped}")
    first, second = finish(*start_several(data_dir, workdir, *flags))
    assert "5 files, checked" in first
    assert "checked" not in second
    names = sorted(path.name for path in (alone / "predictions").iterdir())
    with zipfile.ZipFile(zipped) as archive:
        assert archive.namelist() == names
    split = open_split(dataset_directory(str(data_dir), "published"), "test")
    shown = [f"OVERLAY_{split.records[place]['id'].decode()}.png" for place in (0, 1, 3)]
    assert sorted(p.name for p in (workdir / "predictions_overlays").iterdir()) == sorted(shown)


def test_sigterm_on_one_host_stops_both_and_one_resumes(data_dir, alone, tmp_path):
    hosts = start_several(data_dir, tmp_path)
    wait_for_step(1, hosts[0])
    hosts[1].send_signal(signal.SIGTERM)
    first, second = finish(*hosts)
    assert "stopped by a signal on another host" in first
    assert "stopped by SIGTERM" in second
    assert not (tmp_path / "evaluation").exists()
    finish(start(data_dir, tmp_path, devices=1))
    compare(tmp_path, alone)


def test_a_run_resumes_with_other_devices_and_hosts(data_dir, alone, tmp_path):
    finish(start(data_dir, tmp_path, devices=4, num_epochs=1, predict_after_training=False))
    output, _ = finish(*start_several(data_dir, tmp_path))
    assert "resuming from step 4" in output
    compare(tmp_path, alone)


def lost_a_host(output):
    """Whether a host reports why it ends: JAX's message, or ours if a collective failed first."""
    return "another task died" in output or "If another host was lost" in output


@pytest.mark.waiting
@pytest.mark.parametrize("dead", [0, 1])
def test_when_a_host_dies_the_other_ends_and_reports_why(data_dir, tmp_path, dead):
    hosts = start_several(data_dir, tmp_path)
    wait_for_step(1, hosts[0])
    hosts[dead].kill()
    other = hosts[1 - dead]
    output, _ = other.communicate(timeout=240)  # JAX misses a heartbeat after 100 seconds
    assert other.returncode != 0
    assert lost_a_host(output), output
    assert "Thread 0x" not in output
    hosts[dead].communicate()


@pytest.mark.waiting
def test_when_a_host_has_an_error_the_other_ends_too(data_dir, tmp_path):
    hosts = start_several(data_dir, tmp_path, of_last=tmp_path / "none")
    first, second = (process.communicate(timeout=240)[0] for process in hosts)
    assert all(process.returncode != 0 for process in hosts)
    assert "error: the data set is not built" in second
    assert lost_a_host(first), first
