"""Limits that keep the code readable, and habits that no linter checks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rlhf_lightning"
SOURCES = sorted(PACKAGE.rglob("*.py"))
CODE = sorted({*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")})
TEXTS = {file: file.read_text() for file in CODE}
TREES = {file: ast.parse(text) for file, text in TEXTS.items()}
FILE_LINES, FUNCTION_LINES = 400, 60


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def test_files_and_functions_are_short():
    long = [(name(file), lines) for file, text in TEXTS.items() if (lines := text.count("\n")) > FILE_LINES]
    sizes = [(name(file), f.name, f.end_lineno - f.lineno + 1) for file, tree in TREES.items() for f in functions(tree)]
    assert long + [row for row in sizes if row[-1] > FUNCTION_LINES] == []


def test_no_print_and_no_bare_except():
    habits = []
    for file in SOURCES:
        for node in ast.walk(TREES[file]):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                habits.append((name(file), node.lineno, "use logging, or rich in the CLI"))
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                habits.append((name(file), node.lineno, "say which exception"))
    assert habits == []


def test_no_method_is_tested_by_name():
    """Comparing anything with a method's name means that the method's nature is declared in the wrong place."""
    methods = {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")}
    comparisons = []
    for file in SOURCES:
        if file.parent.name == "losses":  # an option of a loss may be named after where it comes from
            continue
        for node in ast.walk(TREES[file]):
            compared = node if isinstance(node, ast.Compare) else getattr(node, "pattern", None)
            if compared is not None:
                constants = {n.value for n in ast.walk(compared) if isinstance(n, ast.Constant)}
                comparisons += [(name(file), compared.lineno, hit) for hit in constants & methods]
    assert comparisons == []


def test_nothing_is_left_for_later():
    words = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")
    assert [name(file) for file, text in TEXTS.items() if words.search(text) and file != Path(__file__)] == []
