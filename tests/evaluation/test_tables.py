import numpy as np
import rasterio
from golden_arrays import golden

from flair_jax.data.nomenclature import BASELINE
from flair_jax.evaluation import tables
from flair_jax.evaluation.grouped_metrics import grouped_scores
from flair_jax.evaluation.metrics import summary
from flair_jax.viz import figures

CONFUSION = golden("iou")["cm0"]
GROUPS = {
    "domain": np.array(["D012_2019", "D012_2019", "D022_2021"]),
    "zone": np.array(["D012_2019/Z1", "D012_2019/Z2", "D022_2021/Z1"]),
    "camera": np.array(["UCE-M3-f120-s07"] * 3),
    "month": np.array(["07", "07", "11"]),
}


def scores():
    confusions = np.stack([golden("iou")[f"cm{i}"] for i in range(3)])
    metrics = summary(CONFUSION, BASELINE.names, BASELINE.weights)
    return metrics | grouped_scores(confusions, GROUPS, BASELINE)


def test_score_table():
    metrics = scores() | {"num_patches": 50, "split": "test", "step": 7}
    lines = tables.score_table(metrics).splitlines()
    iou = golden("iou")["challenge_iou0"]
    assert lines[1].split()[:2] == ["building", f"{100 * iou[0]:.2f}"]
    assert lines[13].startswith("other")
    assert lines[13].split()[2:] == ["-"] * 4
    ignoring = metrics["open_vocabulary"]
    assert lines[1].split()[3] == f"{100 * ignoring['iou']['building']:.2f}"
    assert lines[15].split()[3] == f"{100 * ignoring['miou']:.2f}"
    miou = float(golden("iou")["challenge_miou0"])
    assert f"mIoU (challenge definition): {miou:.4f} on 50 patches of 'test', step 7" in lines[-2]
    low, high = metrics["intervals"]["challenge_miou"]
    assert lines[-1] == f"95% interval over 3 zones: {100 * low:.2f} to {100 * high:.2f}"


def test_part_tables():
    metrics = scores()
    lines = tables.part_tables(metrics).splitlines()
    domain = metrics["by_domain"]["D012_2019"]
    low, high = domain["challenge_miou_interval"]
    assert lines[0].split() == ["domain", "patches", "zones", "mIoU", "95%", "interval"]
    assert lines[1].split() == [
        "D012_2019", "2", "2", f"{100 * domain['challenge']['miou']:.2f}",
        f"{100 * low:.2f}", "to", f"{100 * high:.2f}",
    ]  # fmt: skip
    assert lines[2].split()[-1] == "-"  # one zone has no interval
    assert [line.split()[0] for line in lines if line and line[0] in "cm"] == ["camera", "month"]
    assert lines[-1].split()[:3] == ["11", "1", "1"]


def test_confusion_matrix_image(tmp_path):
    path = tmp_path / "confusion_matrix.png"
    figures.plot_confusion_matrix(np.eye(13, dtype=np.int64) * 9, BASELINE, path)
    with rasterio.open(path) as raster:
        pixels = raster.read()
    assert pixels.shape[1] > 900
    assert len(np.unique(pixels.reshape(len(pixels), -1), axis=1).T) > 20
    assert [p.name for p in tmp_path.iterdir()] == ["confusion_matrix.png"]
