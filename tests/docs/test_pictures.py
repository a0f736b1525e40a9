"""Pictures of the pages that are made by scripts of the project."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def module(monkeypatch):
    """Modules of tools/, which are no package that is installed."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"tools.{name}")


def test_diagrams_are_what_their_script_draws(module):
    for name, draw in module("diagrams").ALL.items():
        stored = (ROOT / "docs" / "learn" / f"{name}.svg").read_text(encoding="utf-8")
        assert draw().svg() == stored, f"{name}.svg: run python tools/diagrams.py"


def test_the_picture_of_offline_methods_has_a_name_for_every_row_of_its_table(module):
    figures = module("figures")
    lines = (ROOT / "docs" / "compare_offline.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    axes = figures.compare().figure.axes
    written = [text.get_text() for panel in axes for text in panel.texts]
    assert sorted(written) == sorted([*(row.split("`")[1] for row in rows), "before training"])
