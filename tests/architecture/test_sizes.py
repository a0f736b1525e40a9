"""Limits that keep the code readable, and habits that no linter knows."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rlhf_lightning"
SOURCES = sorted(PACKAGE.rglob("*.py"))
CODE = sorted({*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")})
FILE_LINES, FUNCTION_LINES = 400, 60


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("file", CODE, ids=name)
def test_sizes(file):
    text = file.read_text()
    assert text.count("\n") <= FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            assert size <= FUNCTION_LINES, f"{node.name} has {size} lines"


@pytest.mark.parametrize("file", SOURCES, ids=name)
def test_no_print_and_no_bare_except(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{file}:{node.lineno}: use logging, or rich in the CLI"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{file}:{node.lineno}: say which exception"


@pytest.mark.parametrize("file", [file for file in SOURCES if file.parent.name != "losses"], ids=name)
def test_no_method_is_tested_by_name(file):
    """Comparing anything with a method's name means that the method's nature is declared in the wrong place."""
    methods = {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, (ast.Compare, ast.match_case)):
            constants = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            if isinstance(node, ast.match_case):
                constants = {n.value for n in ast.walk(node.pattern) if isinstance(n, ast.Constant)}
            assert not constants & methods, f"{file}:{node.lineno} tests for {constants & methods}"


@pytest.mark.parametrize("file", CODE, ids=name)
def test_nothing_is_left_for_later(file):
    if file == Path(__file__):
        return
    words = re.findall(r"\b(?:TODO|FIXME|XXX|HACK)\b", file.read_text())
    assert not words
