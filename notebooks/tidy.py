"""Keep of executed notebooks what a reader wants: no warnings, progress bars, addresses and times of their execution.

python notebooks/tidy.py [notebook ...]; without names all of this folder.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat


def tidy(path: Path) -> None:
    """Drop what cells wrote to stderr, colours, temporary folders, addresses, text beside HTML, and when cells ran."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "text" in output:
                    output.text = re.sub(r"\x1b\[[0-9;]*m|/tmp/tmp\w+/", "", output.text)
                if "text/html" in output.get("data", {}):
                    output.data.pop("text/plain", None)
                if text := output.get("data", {}).get("text/plain"):
                    output.data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", text)
    nbformat.write(notebook, path)


for file in [Path(name) for name in sys.argv[1:]] or sorted(Path(__file__).parent.glob("*.ipynb")):
    tidy(file)
