"""Files of finished rows of tiles."""

import resource

import numpy as np
import pytest
import rasterio
from etils import epath

from flair_jax.inference.resume import PartialJob


def pixels(height=300, width=400):
    classes = np.random.default_rng(0).integers(0, 13, (height, width), dtype=np.uint8)
    return {"classes": classes}, np.random.default_rng(1).random((height, width)) < 0.7


def test_a_row_holds_classes_from_1_and_0_for_no_data(tmp_path):
    job = PartialJob(epath.Path(tmp_path) / "map.tif")
    job.begin({}, resume=False, overwrite=False)
    results, valid = pixels()
    with job.writing(0, 300, 1000, 1) as row:
        row.write(500, results, valid)
        assert job.finished(1) == 0
    assert job.finished(1) == 1
    with rasterio.open(job.row_path(0)) as raster:
        found = raster.read(1)
    np.testing.assert_array_equal(found[:, 500:900], np.where(valid, results["classes"] + 1, 0))
    assert not found[:, :500].any()


def test_a_full_disk_is_noticed(tmp_path):
    """Simulated by a limit on the file size: GDAL does not report it when it closes a file."""
    job = PartialJob(epath.Path(tmp_path) / "map.tif")
    job.begin({}, resume=False, overwrite=False)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write():
        with job.writing(0, 300, 400, 1) as row:
            row.write(0, *pixels())

    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
        with pytest.raises((OSError, rasterio.errors.RasterioError)):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert job.finished(1) == 0
    write()
    assert job.finished(1) == 1
