"""Preempted detections that are resumed."""

import os
import signal

import numpy as np
import pytest
from detecting import detect, patches, read, undated, write

from flair_jax.errors import UserError
from flair_jax.inference import geotiff, tile_rows
from flair_jax.inference.resume import PartialJob
from flair_jax.runtime.preemption import Preempted


def interrupt_after(monkeypatch, row):
    """Sends SIGINT when a given row of tiles begins."""
    begin = PartialJob.writing

    def writing(self, number, *args):
        if number == row:
            os.kill(os.getpid(), signal.SIGINT)
        return begin(self, number, *args)

    monkeypatch.setattr(PartialJob, "writing", writing)


@pytest.mark.parametrize("blend", ["crop", "hann"])
def test_an_interrupted_job_resumes_to_the_same_bytes(model, tmp_path, monkeypatch, blend):
    path = write(tmp_path / "in.tif", patches(200, 30))
    options = {"blend": blend, "probabilities": True, "batch_size": 1}
    (tmp_path / "reference").mkdir()
    detect(model, path, tmp_path / "reference" / "map.tif", **options)
    output = tmp_path / "map.tif"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4)
        with pytest.raises(Preempted, match=r"SIGINT with 4 of 6 rows .*--resume continues"):
            detect(model, path, output, **options)
    assert not output.exists()
    with pytest.raises(UserError, match="interrupted detection: continue it with --resume"):
        detect(model, path, output, **options)
    with pytest.raises(UserError, match=r"another detection:(.|\n)*tta: False then, True now\n"):
        detect(model, path, output, **options, tta=True, resume=True)
    done = []
    compute = tile_rows.RowOfTiles.__init__
    monkeypatch.setattr(
        tile_rows.RowOfTiles, "__init__",
        lambda self, grid, row, *rest: (done.append(row), compute(self, grid, row, *rest))[1],
    )  # fmt: skip
    written = detect(model, path, output, **options, resume=True)
    assert done == ([4, 5] if blend == "crop" else [3, 4, 5])
    for file in written:
        assert undated(file) == undated(tmp_path / "reference" / file.name), file.name
    assert not list(tmp_path.glob("*.partial"))


def test_a_left_over_job_can_be_started_over(model, tmp_path, monkeypatch):
    path, output = write(tmp_path / "in.tif", patches(100, 60)), tmp_path / "map.tif"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(Preempted):
            detect(model, path, output)
    assert not output.exists()
    detect(model, path, output, overwrite=True)
    detect(model, path, tmp_path / "other.tif")
    np.testing.assert_array_equal(read(output), read(tmp_path / "other.tif"))


def test_an_error_at_the_end_keeps_the_rows(model, scene, detected, tmp_path, monkeypatch):
    output = tmp_path / "map.tif"

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(geotiff, "_write", full)
        with pytest.raises(UserError, match=r"No space left on device(.|\n)*--resume"):
            detect(model, scene[0], output)
    assert [p.name for p in tmp_path.iterdir()] == ["map.tif.partial"]
    detect(model, scene[0], output, resume=True)
    np.testing.assert_array_equal(read(output), read(detected[0]))
