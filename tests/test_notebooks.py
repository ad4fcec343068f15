"""The notebooks run from top to bottom, in the order of the README."""

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = ("flair_baseline", "detect_a_raster")


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_stored_without_what_they_have_shown(name):
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 6
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_notebooks_run(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    shown = {}
    for name in NAMES:  # the second works with what the first has trained
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        resources = {"metadata": {"path": str(tmp_path)}}
        nbclient.NotebookClient(notebook, timeout=900, resources=resources).execute()
        outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
        images = sum("image/png" in output.get("data", {}) for output in outputs)
        text = "".join(output.get("text", "") for output in outputs)
        shown[name] = images, text
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    images, text = shown["flair_baseline"]
    assert images == 6
    assert float(text.split("mIoU (challenge definition): ")[1].split()[0]) > 0.4
    images, text = shown["detect_a_raster"]
    assert images == 2
    assert "training is finished" not in text
    assert " ha" in text
    assert (tmp_path / "runs" / "land_cover.tif").exists()
