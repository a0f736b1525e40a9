"""Names of the package that programs and pages import, which no other default test imports: they are there."""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = [
    *(file for folder in ("benchmarks", "examples", "tools") for file in sorted((ROOT / folder).glob("*.py"))),
    *(file for file in sorted((ROOT / "tests").rglob("*.py")) if not file.name.startswith("test_")),
]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")])


def sources(file: Path) -> Iterator[str]:
    """Python of a program, of a page's fenced blocks, or of a notebook's cells."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        cells = [cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        yield from (re.sub(r"^\s*[%!].*$", "pass", "".join(lines), flags=re.MULTILINE) for lines in cells)
    elif file.suffix == ".md":
        yield from re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    else:
        yield text


def absent(source: str) -> Iterator[str]:
    """Dotted names that a source imports from the package, and that are not there; a part of a file has none."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except SyntaxError:  # a page's lines with an ellipsis, or a diff
        return
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rlhf_lightning":
            yield from (f"{node.module}.{name.name}" for name in node.names if not exists(str(node.module), name.name))


def exists(module: str, name: str) -> bool:
    """Return whether a module can be imported and has a name, or a module of that name in it."""
    try:
        if hasattr(importlib.import_module(module), name):
            return True
        importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return False
    return True


@pytest.mark.parametrize("files", [PROGRAMS, PAGES], ids=["programs", "pages"])
def test_what_is_imported_is_there(files: list[Path]) -> None:
    assert {
        file.relative_to(ROOT).as_posix(): names
        for file in files
        if (names := [name for source in sources(file) for name in absent(source)])
    } == {}


def test_an_absent_name_is_noticed() -> None:
    source = "from rlhf_lightning.models.roles.models import Models, Builder\nfrom rlhf_lightning.model import roles\n"
    assert list(absent(source)) == ["rlhf_lightning.models.roles.models.Builder", "rlhf_lightning.model.roles"]
