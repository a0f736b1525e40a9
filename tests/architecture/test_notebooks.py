"""Committed notebooks were executed from beginning to end, and show nothing of the machine that did it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
#: Folders and addresses of a machine, colours and bars of a terminal, warnings.
MACHINE = re.compile(r"/(?:home|root|work|tmp|Users)/\S*| at 0x[0-9a-f]+|\x1b\[|\r|\d(?:it/s|s/it)|\w*Warning")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_those_of_one_execution(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    shown = [{"text/plain": output.get("text", "")} | output.get("data", {}) for output in outputs]
    texts = ["".join(part) for parts in shown for kind, part in parts.items() if kind.startswith("text/")]
    assert not MACHINE.findall("\n".join(texts))
