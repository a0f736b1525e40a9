"""Keep of executed notebooks what a reader wants: no warnings, progress bars and times of the machine that ran them.

python notebooks/tidy.py [notebook ...]; without names all of this folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat


def tidy(path: Path) -> None:
    """Drop what cells wrote to stderr, and when they ran."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, path)


for file in [Path(name) for name in sys.argv[1:]] or sorted(Path(__file__).parent.glob("*.ipynb")):
    tidy(file)
