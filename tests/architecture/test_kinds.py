"""Properties of a kind of data are read from its entry: no source asks what a kind is called."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from rlhf_lightning.data.kinds import KINDS
from tests.architecture.test_imports import FILES, PACKAGE

#: Where kinds are declared.
DECLARED = PACKAGE / "data" / "kinds.py"


def compared(source: str) -> Iterator[int]:
    """Lines in which something called a kind is compared with the name of one, or matched against it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(map(_is_kind, sides)) and any(map(_has_name, sides)):
                yield node.lineno
        elif isinstance(node, ast.Match) and _is_kind(node.subject):
            yield node.lineno


def _is_kind(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name in ("kind", "native") or name.endswith("_kind")


def _has_name(node: ast.expr) -> bool:
    return any(isinstance(part, ast.Constant) and part.value in KINDS for part in ast.walk(node))


def test_no_kind_is_asked_for_its_name():
    comparisons = [
        f"{file.relative_to(PACKAGE)}:{line}"
        for file in FILES
        if file != DECLARED
        for line in compared(file.read_text(encoding="utf-8"))
    ]
    assert comparisons == [], "ask data.kinds.KINDS, or cli.draws whether a job draws"


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("if module.kind == 'prompt': pass", [1]),
        ("x = 1\nif 'preference' != self.kind: pass", [2]),
        ("ok = kind in ('preference', 'safety')", [1]),
        ("ok = native not in frozenset({'ranked'})", [1]),
        ("match record.kind:\n    case 'steps': pass", [1]),
        ("ok = row_kind == 'ranked'", [1]),
        ("ok = critic.kind == 'separate'", []),
        ("ok = column == 'prompt'", []),
        ("ok = KINDS[kind].pair", []),
    ],
)
def test_comparisons_are_noticed(source, lines):
    assert list(compared(source)) == lines
