"""Executes the notebooks: `python notebooks/execute.py` stores them with their outputs.

They run in the order of `NAMES` in an empty temporary folder.
"""

import base64
import hashlib
import io
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
NAMES = ("flair_baseline", "detect_a_raster", "own_images")
DIGEST = "executed_sha256"  # of the code cells, in the notebook's metadata
_JPEG_QUALITY = 85
# What differs from one execution to the next and tells a reader nothing: times, speeds.
_VOLATILE = (
    r"the training step was compiled in .* s\n",
    r", [\d.]+ patches/s",
    r"(?m:, \d+ s$)",
    r"(?<=finished) in [^:\n]+(?=:)",
    r", in \d+ s",
)


def digest(notebook: dict[str, Any]) -> str:
    """SHA-256 of the source of all code cells."""
    cells = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(source) for source in cells]  # a list of lines in the file
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()


def execute(name: str, folder: Path) -> nbformat.NotebookNode:
    """Executes a notebook in a folder; returns it with its outputs, as they are to be stored."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    metadata = {**notebook.metadata}
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=900, resources=resources, record_timing=False).execute()
    notebook.metadata = nbformat.from_dict(metadata | {DIGEST: digest(notebook)})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
            for output in cell.outputs:
                _clean(output, folder)
    return notebook


def _joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The outputs, with neighbouring pieces of one stream as one."""
    joined: list[nbformat.NotebookNode] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def _clean(output: nbformat.NotebookNode, folder: Path) -> None:
    """Removes what belongs to this execution only, and makes images small."""
    if output.output_type == "stream":
        output.text = output.text.replace(f"{folder}/", "")
        for pattern in _VOLATILE:
            output.text = re.sub(pattern, "", output.text)
    data = output.get("data", {})
    if "image/png" in data:
        png = base64.b64decode(data["image/png"])
        buffer = io.BytesIO()
        Image.open(io.BytesIO(png)).convert("RGB").save(
            buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True
        )
        if len(buffer.getvalue()) < len(png):
            del data["image/png"]
            data["image/jpeg"] = base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    """Executes all notebooks and stores them with their outputs."""
    with tempfile.TemporaryDirectory() as folder:
        executed = {name: execute(name, Path(folder).resolve()) for name in NAMES}
    for name, notebook in executed.items():
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    main()
