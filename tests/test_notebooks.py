"""The notebooks: what is stored in them, and that they run from top to bottom."""

import json
import re
import tomllib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = ("flair_baseline", "detect_a_raster", "own_images")
MOST_BYTES = 1_000_000
AGAIN = "store the notebooks again, with their outputs: python notebooks/execute.py"


def _stored(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text())


def _code(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def _outputs(notebook):
    return [output for cell in _code(notebook) for output in cell["outputs"]]


def _printed(notebook):
    return "".join("".join(output.get("text", "")) for output in _outputs(notebook))


def _kinds(cell):
    """What a code cell shows, without warnings, which differ between versions of libraries."""
    return [
        output.get("name")
        or ("image" if {"image/png", "image/jpeg"} & {*output["data"]} else "data")
        for output in cell["outputs"]
        if output.get("name") != "stderr"
    ]


def test_every_notebook_is_tested():
    execute = pytest.importorskip("notebooks.execute")
    assert set(NAMES) == {path.stem for path in FOLDER.glob("*.ipynb")}
    assert execute.NAMES == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_are_of_the_present_cells(name):
    execute = pytest.importorskip("notebooks.execute")
    notebook = _stored(name)
    assert notebook["metadata"][execute.DIGEST] == execute.digest(notebook), AGAIN
    counts = [cell["execution_count"] for cell in _code(notebook)]
    assert counts == list(range(1, len(counts) + 1)), AGAIN
    assert "error" not in [output["output_type"] for output in _outputs(notebook)]
    assert "stderr" not in [output.get("name") for output in _outputs(notebook)]
    assert sum("image" in _kinds(cell) for cell in _code(notebook)) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_are_small_and_of_no_machine(name):
    assert (FOLDER / f"{name}.ipynb").stat().st_size < MOST_BYTES
    shown = _printed(_stored(name))
    assert not re.findall(r"(?<![\w.>/])(?:/|~/|[A-Z]:\\)\w[^\s,]*", shown)  # absolute paths
    assert not re.findall(r"patches/s|\bin [\d.]+ s\b", shown)  # times


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_installed_and_opened_from_the_repository(name):
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    repository = project["urls"]["Source"]
    sources = ["".join(cell["source"]) for cell in _stored(name)["cells"]]
    assert f'REPOSITORY = "git+{repository}"' in sources[1]
    assert not re.findall(r"install.*\bflair-jax\b", sources[1])  # nobody owns it on PyPI
    path = repository.removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{path}/blob/main/notebooks/{name}.ipynb"
    assert f"({colab})" in sources[0]


@pytest.mark.parametrize("name", NAMES)
def test_linked_files_exist(name):
    cells = [cell for cell in _stored(name)["cells"] if cell["cell_type"] == "markdown"]
    links = re.findall(r"\]\((?!https:)([^)#]+)", "".join("".join(c["source"]) for c in cells))
    assert all((FOLDER / link).is_file() for link in links)
    assert links or name != "own_images"


@pytest.mark.slow
def test_notebooks_run_and_show_what_is_stored(tmp_path, monkeypatch):
    pytest.importorskip("nbclient")
    from notebooks import execute

    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")  # as the commands do
    miou = {}
    for name in NAMES:
        run, stored = execute.execute(name, tmp_path), _stored(name)
        shown = [_kinds(cell) for cell in _code(run)]
        assert shown == [_kinds(cell) for cell in _code(stored)], f"{name}: {AGAIN}"
        miou[name] = [
            float(re.search(r"mIoU \(challenge definition\): ([\d.]+)", _printed(notebook))[1])
            for notebook in (run, stored)
        ]
        assert " ha" in _printed(run) or name == "flair_baseline"
    for now, then in miou.values():  # versions of JAX round differently
        assert now == pytest.approx(then, abs=0.15)
    assert min(miou["flair_baseline"]) > 0.4
    assert min(miou["own_images"]) > 0.5
    assert (tmp_path / "runs" / "land_cover.tif").exists()
    assert (tmp_path / "runs" / "held_out.tif").exists()
