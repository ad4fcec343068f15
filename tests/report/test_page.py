import base64
import dataclasses
import html.parser
import io
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from flair_jax import config as configuration
from flair_jax.config import default
from flair_jax.data import dataset
from flair_jax.data.nomenclature import BASELINE
from flair_jax.errors import UserError
from flair_jax.evaluation.evaluate import evaluate_checkpoint
from flair_jax.inference.loading import save_model
from flair_jax.models.functional import split_model
from flair_jax.models.spec import ModelSpec
from flair_jax.report import collect, definitions, figures, gallery, origins, tables
from flair_jax.report import page as page_module
from flair_jax.report.page import update_report, write_report
from flair_jax.runtime.sharding import make_mesh

LOG = [
    {"step": 0, "started": "2026-01-02T03:04:05+00:00", "data": "16 train", "model": "a U-Net",
     "devices": "8 x TPU v5p"},
    {"step": 2, "loss": 2.5}, {"step": 4, "loss": 2.25},
    {"step": 4, "epoch": 1, "train_loss": 2.375, "val_loss": 2.125, "val_miou": 0.125,
     "learning_rate": 0.02, "epoch_seconds": 3600.0},
    {"step": 6, "loss": 1.75}, {"step": 8, "loss": 1.5},
    {"step": 8, "epoch": 2, "train_loss": 1.625, "val_loss": 1.8125, "val_miou": 0.25,
     "learning_rate": 0.02, "epoch_seconds": 61.0},
]  # fmt: skip


@pytest.fixture(scope="module")
def workdir(data_dir, tmp_path_factory):
    """A run as a training leaves it, of a network that has learned nothing."""
    workdir = tmp_path_factory.mktemp("runs") / "mine"
    config = default()
    config.data_dir, config.num_epochs, config.batch_size = str(data_dir), 2, 10
    config.bands = ("red", "green", "blue")
    config.metadata.use, config.metadata.encoding = True, "corrected"
    config.metadata.fusion = "channels"
    workdir.mkdir()
    configuration.save(config, workdir)
    spec = ModelSpec.from_config(config, (64, 64))
    _, params, batch_stats = split_model(spec.build_model())
    save_model(workdir / "checkpoints", spec, params, batch_stats)
    (workdir / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in LOG))
    split = dataset.open_split(dataset.dataset_directory(str(data_dir), "published"), "test")
    evaluate_checkpoint(
        workdir, split, make_mesh(), batch_size=2, loss_normalization="pixels",
        output=workdir / "evaluation/test",
    )  # fmt: skip
    return workdir


@pytest.fixture(scope="module")
def metrics(workdir):
    return json.loads((workdir / "evaluation/test/metrics.json").read_text())


@pytest.fixture(scope="module")
def page(workdir, tmp_path_factory):
    return write_report([workdir], tmp_path_factory.mktemp("page") / "index.html").read_text()


class Reader(html.parser.HTMLParser):
    """Every start tag with its attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "path", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path", "circle"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def test_patches_of_a_split_are_scored_one_by_one(workdir, metrics):
    written = json.loads((workdir / "evaluation/test/patches.json").read_text())
    assert (written["step"], written["split"]) == (0, "test")
    patches = written["patches"]
    assert [patch["place"] for patch in patches] == [0, 1, 2, 3, 4]
    confusion = np.array(metrics["confusion_matrix"])
    # All patches are of one size, but what is "other" in truth counts nowhere.
    assert confusion[:12, :12].trace() / confusion[:12].sum() == pytest.approx(
        np.average([p["accuracy"] for p in patches], weights=_scored_pixels(workdir)), rel=1e-9
    )
    assert {p["domain"] for p in patches} == set(metrics["by_domain"])


def _scored_pixels(workdir):
    config = configuration.load(workdir)
    directory = dataset.dataset_directory(config.data_dir, "published")
    records = dataset.open_split(directory, "test").records
    return [(BASELINE.labels[record["mask"]] < 12).sum() for record in records]


def test_numbers_of_the_run_are_on_the_page(page, metrics):
    words = Reader(page).words
    low, high = metrics["intervals"]["challenge_miou"]
    zones = metrics["intervals"]["zones"]
    interval = f"{low:.3f} to {high:.3f}, by a bootstrap over {zones} zones"
    miou = f"Test mIoU {metrics['challenge']['miou']:.4f}"
    assert f"{miou} challenge definition; 95% interval {interval}" in words
    confusion = np.array(metrics["confusion_matrix"])
    right = confusion.trace() / confusion.sum()
    assert (
        f"Test accuracy {right:.4f} the share of all 20,480 labelled pixels that are right; "
        "5 patches"
    ) in words
    assert f"{metrics['main']['accuracy']:.4f}" not in words
    assert "Lowest validation loss 1.8125 after epoch 2" in words
    assert "Epochs 2 finished" in words
    assert "Training time 1 h 1 min the steps of all epochs, without validation" in words
    for text in (
        "a U-Net", "16 train", "8 x TPU v5p", "2026-01-02 03:04 UTC",
        "8 steps, each of a batch of 10 patches", "Scored weights of step 0",
    ):  # fmt: skip
        assert text in words
    assert "cannot be compared with these 5" in words
    for name, iou in metrics["challenge"]["iou"].items():
        shown = "–" if iou is None else f"{iou:.3f}"
        assert re.search(rf"{name}( \(not scored\))? {shown} ", words), name
    for part in metrics["by_domain"].values():
        assert f"{part['challenge']['miou']:.3f}" in words
    assert "What differs from the defaults" in words
    assert "data_dir" in words
    assert f"jax {jax.__version__}" in words


def test_a_table_of_scores_has_one_definition(page, workdir, metrics):
    """IoU, precision and recall of a row are of the same pixels."""
    run = collect.read_runs([workdir], "test")[0]
    made = definitions.score_tables(run)
    assert [table["key"] for table in made] == ["challenge", "main", "open_vocabulary"]
    for table in made:
        of = metrics[table["key"]]
        assert table["mean"]["iou"] == of["miou"]
        assert table["same"] == (table["key"] == "challenge")
        for row in table["rows"]:
            assert row["iou"] == of["iou"][row["name"]]
            if row["iou"] and row["precision"] and row["recall"]:
                from_both = 1 / (1 / row["precision"] + 1 / row["recall"] - 1)
                assert from_both == pytest.approx(row["iou"], rel=1e-9)
        assert sum(row["share"] for row in table["rows"]) == pytest.approx(1)
    assert [len(table["rows"]) for table in made] == [13, 12, 12]
    # The first table's recall is the diagonal of the confusion matrix on the page.
    for row, of_matrix in zip(made[0]["rows"], tables.confusion_rows(run), strict=True):
        if of_matrix["recall"] is None:
            assert np.isnan(row["recall"])  # both are shown as a dash
        else:
            assert row["recall"] == pytest.approx(of_matrix["recall"])
    confusion = np.array(metrics["confusion_matrix"])
    left_out = 1 - confusion[:12, :12].sum() / confusion.sum()
    assert f"{100 * left_out:.1f}% of the labelled pixels here" in made[1]["meaning"]
    unscored_truth = confusion[12].sum() / confusion.sum()
    assert f"{100 * unscored_truth:.1f}% of the labelled pixels here" in made[2]["meaning"]
    words = Reader(page).words
    assert "Challenge definition: scores by class, test split" in words
    assert f"“Main” definition: mIoU {metrics['main']['miou']:.4f}" in words
    assert f"Open-vocabulary definition: mIoU {metrics['open_vocabulary']['miou']:.4f}" in words
    visible = page.split("<details>")[0]
    assert "“Main”" not in visible


def test_numbers_come_before_images_and_the_legend_among_these(page):
    order = [
        "glance",
        "classes",
        "confusion",
        "places",
        "curves",
        "pictures",
        "sources",
        "settings",
    ]
    positions = [page.index(f'id="{name}-1"') for name in order]
    assert positions == sorted(positions)
    assert positions[5] < page.index('class="legend"') < page.index('class="patch"')


def test_commands_hosts_and_files(workdir, tmp_path, metrics):
    """Of an earlier version's training, and of one as it is logged now, which was resumed."""
    run = copy(workdir, tmp_path / "a b")
    (run / "tensorboard").mkdir()
    page = write_report([run], gallery=0)
    of = metrics["provenance"]
    trained, scored = origins.origins(collect.read_runs([run], "test")[0])
    assert trained["what"] == "Training, 2026-01-02 03:04 UTC"
    assert {trained[key] for key in ("command", "commit", "host")} == {"not recorded"}
    assert f"jax {jax.__version__}" in trained["versions"]
    assert (scored["command"], scored["host"]) == (of["command"], platform.node())
    words = Reader(page.read_text()).words
    assert "Training, 2026-01-02 03:04 UTC not recorded not recorded not recorded" in words
    assert of["command"] in words
    links = [a["href"] for a in Reader(page.read_text()).all("a") if a["href"][0] != "#"]
    assert links == [
        "./evaluation/test/metrics.json", "./evaluation/test/patches.json",
        "./evaluation/test/confusion_matrix.png", "./metrics.jsonl", "./config.json",
        "./checkpoints/model.json", "./tensorboard/",
    ]  # fmt: skip
    assert f"tensorboard --logdir='{run.resolve()}/tensorboard'" in words
    start = {
        "command": "flair-jax train --config=toy", "host": "node-1", "versions": {"jax": "0.10.2"},
    }  # fmt: skip
    starts = [
        LOG[0] | start | {"git_commit": "abc-dirty"},
        LOG[0] | start | {"git_commit": None, "host": "node-2", "step": 4},
    ]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, [*starts, *LOG[1:]])))
    elsewhere = write_report([run], tmp_path / "pages/page.html", gallery=0)
    reader = Reader(elsewhere.read_text())
    assert "./../a%20b/evaluation/test/metrics.json" in [a.get("href") for a in reader.all("a")]
    assert (
        "Training, 2026-01-02 03:04 UTC flair-jax train --config=toy abc, with uncommitted changes "
        "node-1 jax 0.10.2 Training resumed, 2026-01-02 03:04 UTC, at step 4 flair-jax train "
        "--config=toy none: not run from a git checkout node-2 jax 0.10.2 Scores of the test split"
    ) in reader.words
    assert "what was lost by a stop is not in it" in reader.words


def test_a_run_in_a_bucket_has_no_links():
    path = epath.Path("gs://bucket/run/metrics.jsonl")
    assert origins._link(path, epath.Path("page.html"), "metrics.jsonl") == ""


def test_a_model_of_synthetic_data_is_shown_as_one(page, workdir, tmp_path):
    assert "Scored on synthetic data. These scores cannot be compared" in Reader(page).words
    run = copy(workdir, tmp_path / "run")
    spec = dataclasses.replace(ModelSpec.load(run / "checkpoints"), synthetic=True)
    spec.save(run / "checkpoints")
    words = Reader(write_report([run], gallery=0).read_text()).words
    assert "Trained on synthetic data. The model is of no use on real images" in words
    path = run / "evaluation/test/metrics.json"
    metrics = json.loads(path.read_text()) | {"num_patches": 15_700}
    path.write_text(json.dumps(metrics))  # as many as FLAIR's
    words = Reader(write_report([run], gallery=0).read_text()).words
    assert "The published baseline has" not in words


def test_published_recall_stands_beside_the_diagonal(workdir, metrics):
    rows = tables.confusion_rows(collect.read_runs([workdir], "test")[0])
    confusion = np.array(metrics["confusion_matrix"], float)
    assert rows[4]["name"] == "water"
    assert rows[4]["published"] == 0.90
    assert rows[4]["recall"] == pytest.approx(confusion[4, 4] / confusion[4].sum())
    assert sum(cell["count"] for row in rows for cell in row["cells"]) == 5 * 64 * 64
    assert rows[12]["published"] is None


def test_the_page_is_whole_in_itself_and_well_formed(page):
    reader = Reader(page)
    assert not reader.open
    assert not reader.all("script")
    for tag, attributes in reader.tags:
        for key in ("src", "href"):
            # Links lead to the run's files; nothing of them is loaded.
            allowed = ("#", "./../") if tag == "a" else ("data:",)
            assert attributes.get(key, allowed[0]).startswith(allowed), attributes
    assert "url(" not in page
    assert "@import" not in page
    images = reader.all("img")
    assert len(images) == 3 * 5  # of five patches one of each kind
    for image in images:
        assert len(image["alt"]) > 20
        data = base64.b64decode(image["src"].split(",")[1])
        assert Image.open(io.BytesIO(data)).size == (int(image["width"]), int(image["height"]))
    assert all(th.get("scope") in ("row", "col") for th in reader.all("th"))
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for _, attributes in reader.tags:
        assert attributes.get("aria-labelledby", ids[0]) in ids
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids
    levels = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_the_gallery_shows_what_the_model_predicts(workdir, data_dir, metrics):
    """A model of three bands with metadata: the images have all bands, the input is not."""
    run = collect.read_runs([workdir], "test")[0]
    made = gallery.make_gallery(run, 1)
    assert {kind: len(patches) for kind, patches in made.groups.items()} == {
        "best": 1, "typical": 1, "worst": 1,
    }  # fmt: skip
    shown = made.groups["worst"][0]
    assert [p.name for p in shown.thumbnails] == [
        "colour", "infrared", "truth", "prediction", "confidence",
    ]  # fmt: skip
    truth, predicted = (
        np.array(Image.open(io.BytesIO(base64.b64decode(p.uri.split(",")[1]))))
        for p in shown.thumbnails[2:4]
    )
    scored = truth < 12
    assert (truth == predicted)[scored].mean() == pytest.approx(shown.patch["accuracy"])
    names = [BASELINE.names[i] for i in np.unique(truth[scored])]
    assert len(names) == shown.patch["classes"]
    assert shown.thumbnails[2].note.split(",")[0].rsplit(" ", 1)[0] in names
    assert {int(i) for i in np.unique(predicted)} <= set(made.present)
    # Every pixel has a class here, and each counts in the accuracy that is shown.
    assert shown.labelled == 1
    assert shown.accuracy == pytest.approx((truth == predicted).mean())
    assert scored.mean() < 1
    assert not made.has_unlabelled


def copy(workdir, to, *, without=()):
    shutil.copytree(workdir, to)
    for name in without:
        path = to / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return to


@pytest.mark.parametrize(
    ("without", "expected"),
    [
        (
            ["evaluation"],
            ["There are no scores of the test split", "Test mIoU – not scored on this split"],
        ),
        (["evaluation/test/patches.json"], ["No images: there are no scores of single patches"]),
        (["checkpoints"], ["No images: the scored checkpoint is not available"]),
        (["metrics.jsonl"], ["Nothing has been logged yet", "Epochs 0 not finished: 2 epochs"]),
    ],
)
def test_what_is_missing_is_reported(workdir, tmp_path, without, expected):
    run = copy(workdir, tmp_path / "run", without=without)
    words = Reader(write_report([run]).read_text()).words
    for text in expected:
        assert text in words
    assert (run / "index.html").exists()


def test_a_run_copied_without_its_data_set(workdir, tmp_path, metrics):
    run = copy(workdir, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"data_dir": "/nowhere"}))
    words = Reader(write_report([run]).read_text()).words
    assert "No images: the data set is not available: the data set is not built" in words
    assert f"{metrics['challenge']['miou']:.4f}" in words


def test_a_run_that_is_still_being_written(workdir, tmp_path):
    run = copy(workdir, tmp_path / "run", without=["evaluation"])
    lines = [json.dumps(line) for line in [*LOG[:4], {"step": 5, "loss": float("nan")}]]
    (run / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 6, "lo']))
    page = write_report([run]).read_text()
    words = Reader(page).words
    assert "Epochs 1 not finished: 2 epochs asked for" in words
    assert "Lowest validation loss 2.1250 after epoch 1" in words
    assert "nan" not in page.lower().split("<main>")[1]
    (run / "metrics.jsonl").write_text("\n".join(lines[:3]))  # within the first epoch
    assert "one step" in Reader(write_report([run]).read_text()).words


def test_ema_and_scores_of_an_earlier_version(workdir, tmp_path, metrics):
    run = copy(workdir, tmp_path / "run")
    folder = run / "evaluation/test_ema"
    folder.mkdir()
    ema = metrics | {"challenge": metrics["challenge"] | {"miou": 0.4321}}
    (folder / "metrics.json").write_text(json.dumps(ema))
    log = [line | {"val_loss_ema": 1.9, "val_miou_ema": 0.2} for line in LOG]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, log)))
    old = {k: v for k, v in metrics.items() if k != "intervals" and not k.startswith("by_")}
    (run / "evaluation/test/metrics.json").write_text(json.dumps(old))
    reader = Reader(write_report([run], gallery=0).read_text())
    assert "mIoU, test split 0.4321 by the averaged (EMA) weights of step 0" in reader.words
    assert "averaged: 1.9 at epoch 1" in reader.words
    assert "Averaged: validation with the exponential moving average (EMA)" in reader.words
    assert "validation loss, averaged validation mIoU, averaged" in reader.words
    assert "no interval: an earlier version wrote the scores" in reader.words
    assert "without scores by group: score the run again" in reader.words
    assert not reader.all("img")


def test_names_are_escaped(workdir, tmp_path):
    run = copy(workdir, tmp_path / "<b>&\"'", without=["evaluation"])
    page = write_report([run, workdir], tmp_path / "page.html", gallery=0).read_text()
    assert "<b>&" not in page
    assert "&lt;b&gt;&amp;" in page
    assert "<b>&\"'" in Reader(page).words


def test_several_runs_side_by_side(workdir, tmp_path, metrics):
    other = copy(workdir, tmp_path / "mine")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"seed": 7, "learning_rate": 0.5}))
    better = dict.fromkeys(metrics["challenge"]["iou"], 0.987)
    scores = metrics | {"challenge": {"miou": 0.987, "iou": better}}
    (other / "evaluation/test/metrics.json").write_text(json.dumps(scores))
    page = write_report([workdir, other], tmp_path / "page.html").read_text()
    reader = Reader(page)
    assert str(other) in reader.words  # both folders are named "mine": the paths tell them apart
    assert "learning_rate 0.02 0.5" in reader.words
    assert "seed 2022 7" in reader.words
    assert re.search(rf"water {metrics['challenge']['iou']['water']:.3f} 0.987", reader.words)
    assert "Scores of the test split, challenge definition run mIoU" in reader.words
    assert "cannot be compared:" not in reader.words
    labels = [a["aria-label"] for _, a in reader.tags if a.get("role") == "region"]
    assert len(set(labels)) == len(labels)
    assert f"Confusion matrix, test split , {other}" in reader.words  # landmarks have unique names
    scores["provenance"] = {"data": {"splits": {"test": {"sample": "another"}}}}
    (other / "evaluation/test/metrics.json").write_text(json.dumps(scores))
    page = write_report([workdir, other], tmp_path / "page.html", gallery=0).read_text()
    assert (
        "These scores cannot be compared: they are not of the same patches." in Reader(page).words
    )
    assert len(reader.all("img")) == 2 * 3 * 5
    assert len(reader.all("svg")) == 3 + 2 * 3
    assert len({a["id"] for _, a in reader.tags if "id" in a}) == len(
        [a for _, a in reader.tags if "id" in a]
    )


def test_mistakes(workdir, tmp_path):
    with pytest.raises(UserError, match="is not the workdir of a run"):
        write_report([tmp_path])
    (tmp_path / "index.html").write_text("<html>somebody else's</html>")
    with pytest.raises(UserError, match="is not a report of flair-jax: give another --output"):
        write_report([workdir], tmp_path / "index.html")
    assert [p.name for p in tmp_path.iterdir()] == ["index.html"]


def test_after_training_a_page_is_written_once_and_never_fails(
    workdir, tmp_path, capsys, monkeypatch
):
    run = copy(workdir, tmp_path / "run", without=["evaluation/test/patches.json"])
    run = epath.Path(run)
    update_report(run)
    assert capsys.readouterr().out == f"report: {run / 'index.html'}\n"
    update_report(run)
    assert "is up to date" in capsys.readouterr().out
    later = (run / "index.html").stat().mtime + 10
    os.utime(run / "metrics.jsonl", (later, later))
    with monkeypatch.context() as patch:
        patch.setattr(page_module, "render", lambda *_: 1 / 0)
        update_report(run)
    assert "the report could not be written: ZeroDivisionError" in capsys.readouterr().out
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    update_report(run)
    assert f"write it on one host: flair-jax report {run}" in (
        run / "index.html"
    ).read_text()  # fmt: skip


def test_command(workdir, tmp_path):
    command = [sys.executable, "-m", "flair_jax", "report"]
    output = tmp_path / "a" / "page.html"
    done = subprocess.run(
        [*command, workdir, f"--output={output}", "--gallery=0"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"written to {output}\n"
    assert output.read_text().startswith("<!DOCTYPE html>")
    failed = subprocess.run([*command, "/nowhere"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: there is no /nowhere/config.json")


def test_curves_lie_where_they_belong(workdir):
    loss, miou, rate = figures.curves(collect.read_runs([workdir], "test"))
    assert [line.name for line in loss.lines] == ["one step", "training", "validation"]
    assert [line.name for line in miou.lines] == ["validation"]
    bottom, top = figures.HEIGHT - figures.BOTTOM, figures.TOP
    height = {text: y for y, text in loss.y_ticks}
    assert height["0"] == bottom
    assert height["2.5"] == top
    (x1, y1, text), (x2, _, _) = loss.lines[2].marks
    assert text == "validation, epoch 1: 2.12"
    assert y1 == pytest.approx(bottom - 2.125 / 2.5 * (bottom - top), abs=0.1)
    assert (x2, x1) == pytest.approx((figures.WIDTH - figures.RIGHT, (figures.LEFT + x2) / 2))
    assert "validation: 2.12 at epoch 1, 1.81 at epoch 2" in loss.description
    assert [len(line.marks) for line in miou.lines + rate.lines] == [2, 2]


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_browser_shows_every_image_and_complains_of_nothing(page, tmp_path):
    # The page forbids scripts; this copy has one, which writes down what the browser has loaded.
    probe = (
        "<script>onload=()=>{document.title=[...document.images].map(i=>i.naturalWidth).join()+"
        "' '+Math.max(0,document.documentElement.scrollWidth-innerWidth)}</script></body>"
    )
    copied = re.sub(r"<meta http-equiv.*?>", "", page).replace("</body>", probe)
    (tmp_path / "probed.html").write_text(copied)
    (tmp_path / "written.html").write_text(page)
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--dump-dom",
        "--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}",
    ]  # fmt: skip
    for name, width in (("probed", 1280), ("probed", 500), ("written", 1280)):
        done = subprocess.run(
            [BROWSER, *flags, f"--window-size={width},2000", f"file://{tmp_path / name}.html"],
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        assert "CONSOLE" not in done.stderr
        if name == "probed":
            widths, beyond = re.search(r"<title>([\d,]+) (\d+)</title>", done.stdout).groups()
            assert widths.split(",") == ["64"] * 15
            assert beyond == "0"  # nothing to scroll sideways for but the tables in their frames
