import numpy as np
import rasterio
from golden_arrays import golden

from flair_jax import report
from flair_jax.classes import BASELINE
from flair_jax.metrics import summary

CONFUSION = golden("iou")["cm0"]


def test_score_table():
    metrics = summary(CONFUSION, BASELINE.names, BASELINE.weights)
    metrics |= {"num_patches": 50, "split": "test", "step": 7}
    lines = report.score_table(metrics).splitlines()
    iou = golden("iou")["challenge_iou0"]
    assert lines[1].split()[:2] == ["building", f"{100 * iou[0]:.2f}"]
    assert lines[13].startswith("other")
    assert lines[13].split()[2:] == ["-"] * 3
    miou = float(golden("iou")["challenge_miou0"])
    assert f"mIoU (challenge definition): {miou:.4f} on 50 patches of 'test', step 7" in lines[-1]


def test_confusion_matrix_picture(tmp_path):
    path = tmp_path / "confusion_matrix.png"
    report.plot_confusion_matrix(np.eye(13, dtype=np.int64) * 9, BASELINE, path)
    with rasterio.open(path) as picture:
        pixels = picture.read()
    assert pixels.shape[1] > 900
    assert len(np.unique(pixels.reshape(len(pixels), -1), axis=1).T) > 20
    assert [p.name for p in tmp_path.iterdir()] == ["confusion_matrix.png"]
