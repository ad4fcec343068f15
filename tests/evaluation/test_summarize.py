import json
import subprocess
import sys

import numpy as np
import pytest
from golden_arrays import golden

from flair_jax import config as configuration
from flair_jax.data.nomenclature import BASELINE
from flair_jax.errors import UserError
from flair_jax.evaluation import summarize
from flair_jax.evaluation.metrics import summary


def scored_run(folder, *, seed=0, confusion=None, patches=50, **changes):
    """A workdir as a finished run leaves it, as far as scores go."""
    config = configuration.default()
    config.seed = seed
    config.update_from_flattened_dict(changes)
    folder.mkdir()
    configuration.save(config, folder)
    confusion = golden("iou")["cm0"] if confusion is None else confusion
    metrics = summary(confusion, BASELINE.names, BASELINE.weights)
    metrics |= {"num_patches": patches, "classes": BASELINE.names}
    (folder / "evaluation/test").mkdir(parents=True)
    (folder / "evaluation/test/metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture
def runs(tmp_path):
    confusions = [golden("iou")[f"cm{i}"] for i in range(3)]
    both = {"metadata.use": True, "augment": True}
    return [
        scored_run(tmp_path / "a1", seed=1, confusion=confusions[0]),
        scored_run(tmp_path / "b1", seed=1, confusion=confusions[1], **both),
        scored_run(tmp_path / "a2", seed=2, confusion=confusions[2], num_workers=3),
    ]


def test_seeds_of_one_configuration_become_one_row(runs):
    experiments = summarize.read_experiments(runs, "test")
    assert [e.seeds for e in experiments] == [[1, 2], [1]]
    miou = [float(golden("iou")[f"challenge_miou{i}"]) for i in range(3)]
    _, first, second = summarize.overall_table(experiments)
    pair = np.array([miou[0], miou[2]])
    std = abs(pair[0] - pair[1]) / np.sqrt(2)
    assert first[1:5] == ["none", "none", "2", f"{pair.mean():.4f} +- {std:.4f}"]
    ignoring = [e["open_vocabulary"]["miou"] for e in experiments[0].metrics]
    assert first[6].startswith(f"{np.mean(ignoring):.4f} +- ")
    assert first[-1] == "0.5443 +- 0.0014"
    assert second[1:5] == ["reference, rows", "yes", "1", f"{miou[1]:.4f}"]
    assert second[-1] == "0.5570 +- 0.0027"


def test_class_table_has_the_published_recall_beside_ours(runs):
    experiments = summarize.read_experiments(runs, "test")
    rows = {row[0]: row for row in summarize.class_table(experiments)}
    assert rows["class"] == ["class", "IoU (1)", "IoU (2)", "recall (1)", "published recall"]
    iou = golden("iou")["challenge_iou1"][4]
    assert rows["water"][2] == f"{iou:.3f}"
    assert rows["water"][-1] == "0.90"
    assert rows["other"][-2:] == ["-", "-"]


def test_runs_of_a_version_with_fewer_scores(runs):
    path = runs[1] / "evaluation/test/metrics.json"
    metrics = json.loads(path.read_text())
    del metrics["open_vocabulary"]
    path.write_text(json.dumps(metrics))
    _, _, second = summarize.overall_table(summarize.read_experiments(runs, "test"))
    assert second[6] == "-"
    assert second[5] != "-"


def test_what_sets_experiments_apart_is_named(tmp_path):
    one = scored_run(tmp_path / "one", seed=1, **{"learning_rate": 0.02})
    two = scored_run(tmp_path / "two", seed=1, **{"learning_rate": 0.05})
    unused = scored_run(tmp_path / "three", seed=2, **{"metadata.fusion": "channels"})
    experiments = summarize.read_experiments([one, two, unused], "test")
    assert [e.settings for e in experiments] == ["learning_rate=0.02", "learning_rate=0.05"]
    assert [e.metadata for e in experiments] == ["none", "none"]  # so its fusion does not matter
    assert "settings" in summarize.overall_table(experiments)[0]


def test_runs_of_a_schedule_with_other_numbers_of_epochs_are_not_averaged(tmp_path):
    def experiments(schedule):
        runs = [
            scored_run(tmp_path / f"{schedule}{epochs}", seed=epochs, num_epochs=epochs,
                       schedule=schedule)
            for epochs in (10, 40)
        ]  # fmt: skip
        return [(e.seeds, e.settings) for e in summarize.read_experiments(runs, "test")]

    assert experiments("plateau") == [([10, 40], "")]
    assert experiments("one_cycle") == [([10], "num_epochs=10"), ([40], "num_epochs=40")]


def test_text_and_markdown(runs):
    text = summarize.summarize(runs)
    assert "50 patches of 'test'" in text
    assert "cannot be compared with these" in text
    markdown = summarize.summarize(runs, markdown=True)
    assert "\n|---|---|---|---|---|---|---|---|---|\n| 1 | none | none | 2 |" in markdown


def test_the_whole_test_split_is_compared_without_a_warning(tmp_path):
    text = summarize.summarize([scored_run(tmp_path / "a", patches=15_700)])
    assert "cannot be compared" not in text


def test_mistakes(runs, tmp_path):
    with pytest.raises(UserError, match="is not the workdir of a run"):
        summarize.read_experiments([tmp_path], "test")
    with pytest.raises(UserError, match=r"not been scored on 'val'.*\n  flair-jax eval.*=val"):
        summarize.read_experiments(runs, "val")
    double = scored_run(tmp_path / "double", seed=1)
    with pytest.raises(UserError, match="have the same configuration and seed: leave one out"):
        summarize.read_experiments([*runs, double], "test")
    fewer = scored_run(tmp_path / "fewer", seed=9, patches=10)
    with pytest.raises(UserError, match="not scored on the same data: num_patches is 10 in"):
        summarize.read_experiments([*runs, fewer], "test")


def test_command(runs):
    command = [sys.executable, "-m", "flair_jax", "summarize"]
    done = subprocess.run([*command, *map(str, runs)], capture_output=True, text=True, check=True)
    assert "0.5443 +- 0.0014" in done.stdout
    failed = subprocess.run([*command, "/nowhere"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: there is no /nowhere/config.json")
