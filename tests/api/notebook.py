"""Execute a notebook; as a program, store the outputs in it.

python -m tests.api.notebook examples/quickstart.ipynb
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]


def executed(path: Path, folder: Path) -> Any:
    """The notebook as its cells leave it, run in a kernel of its own in `folder`. An error in a cell raises."""
    notebook = nbformat.read(path, as_version=4)
    before = dict(os.environ)
    os.environ |= {
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": str(folder / ".ipython"),
        "JUPYTER_RUNTIME_DIR": str(folder / ".run"),
    }
    try:
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    finally:
        os.environ.clear()
        os.environ |= before
    # What differs each time, or tells of what is installed beside the notebook, and not of it.
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
    return notebook


def texts(notebook: Any) -> list[str]:
    """The text and HTML of all outputs, in order."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            found += [str(data[kind]) for kind in ("text/html", "text/plain") if kind in data]
    return found


def without_digits(text: str) -> str:
    """Text and HTML in which two runs agree: run ids, pictures and last digits are left out."""
    text = re.sub(r'src="data:[^"]*"', "", text)
    return re.sub(r"\b[0-9a-f]{8,}\b|\d+(?:\.\d+)?", "N", text)


if __name__ == "__main__":
    given = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as made:
        nbformat.write(executed(given, Path(made)), given)
