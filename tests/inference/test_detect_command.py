"""The command: flags, several devices, resuming after a kill, memory with a huge raster."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import rasterio
from detecting import (
    MARGIN,
    PLACE,
    TILE,
    command,
    patches,
    read,
    undated,
    write,
)
from rio_cogeo.cogeo import cog_validate

from flair_jax.cli.commands import main


def test_the_command_on_several_devices(checkpoint, scene, detected, tmp_path):
    run = command(
        f"--checkpoint={checkpoint}", f"--input={scene[0]}", f"--output={tmp_path / 'map.tif'}",
        f"--tile={TILE}", f"--margin={MARGIN}", "--bands=1,2,3,4,5", "--batch_size=4", devices=2,
    )  # fmt: skip
    printed, _ = run.communicate()
    assert run.returncode == 0, printed
    assert "3 of 64 x 64 pixels, margin 16, blend crop; " in printed
    assert "4 tiles at a time on 2 devices (cpu)" in printed
    assert f"written  {tmp_path / 'map.tif'}" in printed
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(detected[0]))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "required: --checkpoint, --input"),
        (["--bands=red"], "argument --bands: 'red' is not a list such as 1,2,3"),
        (["--first_class=2"], "argument --first_class: invalid choice"),
        (["--colour=red"], "unknown flag --colour; see flair-jax detect --help"),
        (["--confidenc"], "unknown flag --confidenc; did you mean --confidence?"),
        (["--blend=han"], "'han' is none of crop, hann; did you mean hann?"),
    ],
)
def test_wrong_flags_are_one_message(flags, message, capsys):
    given = ["--checkpoint=x", "--input=a.tif", "--output=b.tif", *flags] if flags else []
    assert main(["detect", *given]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_checkpoint_is_an_error(scene, tmp_path, capsys):
    output = tmp_path / "b.tif"
    flags = ["--checkpoint=none", f"--input={scene[0]}", f"--output={output}"]
    assert main(["detect", *flags]) == 1
    assert capsys.readouterr().err.startswith("error: there is no checkpoint at none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_job_resumes_to_the_same_bytes(checkpoint, tmp_path):
    path = write(tmp_path / "in.tif", patches(2500, 250))
    flags = [f"--checkpoint={checkpoint}", f"--input={path}", "--tile=256"]
    (tmp_path / "reference").mkdir()
    run = command(*flags, f"--output={tmp_path / 'reference' / 'map.tif'}")
    printed, _ = run.communicate()
    assert run.returncode == 0, printed
    output = tmp_path / "map.tif"
    run = command(*flags, f"--output={output}")
    partial = pathlib.Path(f"{output}.partial")
    while len(list(partial.glob("row_*.tif"))) < 5:
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert not output.exists()
    finished = len(list(partial.glob("row_*.tif")))
    assert 5 <= finished < 19
    run = command(*flags, f"--output={output}", "--resume")
    printed, _ = run.communicate()
    assert run.returncode == 0, printed
    assert f"resuming after {finished} of 19 rows of tiles" in printed
    names = ("map.tif", "map.tif.aux.xml", "map.qml", "map.png", "map.json", "map.stac.json")
    for name in names:
        assert undated(tmp_path / name) == undated(tmp_path / "reference" / name)


# From /proc, since the peak that getrusage gives begins with that of the process which forks.
MEASURED = """
import json, pathlib, re, runpy, sys
sys.argv = json.loads(sys.argv[1])
try:
    runpy.run_module("flair_jax", run_name="__main__")
finally:
    print("peak", re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("blend", ["crop", "hann"])
def test_a_huge_raster_needs_little_memory(checkpoint, tmp_path, blend):
    path, side = tmp_path / "huge.tif", 30_000
    profile = {
        "driver": "GTiff", "dtype": "uint8", "count": 5, "height": side, "width": side,
        "tiled": True, "nodata": 0, "sparse_ok": True, "crs": "EPSG:2154", "transform": PLACE,
        "photometric": "minisblack", "bigtiff": "yes",
    }  # fmt: skip
    islands = [(0, 0), (12_345, 23_456), (29_000, 14_000)]
    with rasterio.open(path, "w", **profile) as raster:
        for row, column in islands:
            window = rasterio.windows.Window(column, row, 1000, 1000)
            raster.write(patches(1000, 1000, side=16), window=window)
    output = tmp_path / "map.tif"
    flags = ["flair-jax", "detect", f"--checkpoint={checkpoint}", f"--input={path}",
             f"--output={output}", f"--blend={blend}"]  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, json.dumps(flags)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    peak = int(run.stdout.split("peak")[1]) * 1024
    print(f"peak memory with --blend={blend}: {peak / 2**20:.0f} MiB")
    assert peak < 2e9
    assert cog_validate(output)[0]
    with rasterio.open(output) as raster:
        valid = 0
        for _, window in raster.block_windows():
            valid += int((raster.read(1, window=window) != 255).sum())
        assert valid == 3_000_000
        for row, column in islands:
            window = rasterio.windows.Window(column, row, 1000, 1000)
            assert (raster.read(1, window=window) != 255).all()
