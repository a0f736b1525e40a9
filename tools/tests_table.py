"""Tests that exercise each module: writes tests/README.md, for the modules that no test file is named after.

    python tools/tests_table.py

A module's tests are those whose files import it or a name of it, name it in a string, or do so through a file of
tests/helpers. A module that no test imports is exercised through the modules that use it, nearest first.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, TESTS, TABLE = ROOT / "rlhf_lightning", ROOT / "tests", ROOT / "tests" / "README.md"
#: Folders of tests that are no packages, and what their tests are about.
ACROSS = {
    "architecture": "how the code is written: who imports whom, sizes of files, what every method needs",
    "configs": "compositions of `conf/` and the commands that run them, from the command line to the files they leave",
    "docs": "pages of the documentation: links, commands, numbers",
    "faults": "commands that are killed at drawn points, and resumed",
    "helpers": "no tests: jobs, models, inputs and plain-Python twins that tests share",
    "learning": "every method trained in the tiny world, and what it must have learned there",
    "trajectory": "whole trainings compared: cuts, processes, resumes, Fabric, FSDP2",
}
#: Modules, and packages whose modules, are imported by something else than an import statement, and their tests.
UNSEEN = {
    "rlhf_lightning._hydra.plugin": "cli/test_packaging.py",
    "rlhf_lightning.claims.cases": "learning/test_learning.py",
    "rlhf_lightning.claims.papers": "cli/test_claims.py",
}
#: Tests that a row names; of more, the nearest to the module's own folder.
_NAMED = 3
_DOTTED = re.compile(r"rlhf_lightning(?:\.\w+)+")


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name; a package's own file has the name of the package."""
    return {_dotted(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def _dotted(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def named_after(module: str) -> Path:
    """Where the test file of a module is."""
    *folders, name = module.split(".")[1:]
    return TESTS.joinpath(*folders, f"test_{name}.py")


@cache
def _public() -> dict[str, str]:
    """By public name of a package (``rlhf_lightning.data.Files``), the name that it is imported under there."""
    return {
        f"{module}.{alias.asname or alias.name}": f"{node.module}.{alias.name}"
        for module, file in modules().items()
        if file.name == "__init__.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def _home(name: str) -> str | None:
    """The module that a dotted name is or comes from; None for a name of another package."""
    while name and name not in modules():
        name = _public().get(name) or name.rpartition(".")[0]
    return name or None


@cache
def used(file: Path) -> frozenset[str]:
    """Modules of the package that a file imports, takes a name of, or names in a string."""
    return frozenset(home for name in _names(file) if (home := _home(name)))


@cache
def _names(file: Path) -> frozenset[str]:
    """Dotted names that a file imports, takes of what it imports, or has in strings."""
    return frozenset(_names_in(ast.parse(file.read_text(encoding="utf-8"))))


def _names_in(tree: ast.AST) -> Iterator[str]:
    local: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            local |= {alias.asname or alias.name: alias.name for alias in node.names}
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            local |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _DOTTED.findall(node.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in local:
            yield f"{local[node.value.id]}.{node.attr}"


@cache
def _direct() -> dict[str, frozenset[Path]]:
    """By module, the test files that use it."""
    by_module: dict[str, set[Path]] = {module: set() for module in modules()}
    for file in sorted(TESTS.rglob("test_*.py")):
        for module in frozenset[str]().union(*(used(part) for part in (file, *_helpers(file)))):
            by_module[module].add(file)
    return {module: frozenset(files) for module, files in by_module.items()}


@cache
def _helpers(file: Path) -> tuple[Path, ...]:
    """Files of tests that a test file imports, at any depth."""
    waiting, reached = [file], dict[Path, None]()
    while waiting:
        for name in sorted(name for name in _names(waiting.pop()) if name.startswith("tests.")):
            for dotted in (name, name.rpartition(".")[0]):
                helper = ROOT / f"{dotted.replace('.', '/')}.py"
                if helper not in reached and helper.is_file():
                    reached[helper] = None
                    waiting.append(helper)
    return tuple(reached)


@cache
def _users() -> dict[str, set[str]]:
    """By module, the modules of the package that use it."""
    users: dict[str, set[str]] = {module: set() for module in modules()}
    for user, file in modules().items():
        for module in used(file) - {user}:
            users[module].add(user)
    return users


def exercised_by(module: str) -> tuple[str | None, frozenset[Path]]:
    """The tests of a module, and the module through which they exercise it; None: they use it themselves."""
    seen, level = {module}, [module]
    while level:
        for name in level:
            if tests := _tests(name):
                return None if name == module else name, tests
        level = sorted(set().union(*(_users()[name] for name in level)) - seen)
        seen |= {*level}
    return None, frozenset()


def _tests(module: str) -> frozenset[Path]:
    same_name = named_after(module)
    unseen = UNSEEN.get(module) or UNSEEN.get(module.rpartition(".")[0])
    return _direct()[module] | {test for test in (same_name, unseen and TESTS / unseen) if test and test.is_file()}


def rows() -> Iterator[tuple[str, str | None, list[Path]]]:
    """Modules without a test file of their name, through which module they are tested, and the nearest tests."""
    for module, file in modules().items():
        if file.name != "__init__.py" and not named_after(module).is_file():
            through, tests = exercised_by(module)
            yield module, through, nearest(module, tests)


def nearest(module: str, tests: Iterable[Path]) -> list[Path]:
    """A few of the tests: those in the module's own folder of tests first."""
    folders = named_after(module).parent.relative_to(TESTS).parts

    def distance(test: Path) -> tuple[int, str]:
        parts = test.relative_to(TESTS).parts[:-1]
        shared = next((at for at, pair in enumerate(zip(parts, folders, strict=False)) if pair[0] != pair[1]), None)
        return -(min(len(parts), len(folders)) if shared is None else shared), test.as_posix()

    return sorted(tests, key=distance)[:_NAMED]


def text(across: Mapping[str, str] = ACROSS) -> str:
    """The page."""
    lines = [
        "# Where the tests of a module are",
        "",
        "The tests of `rlhf_lightning/losses/terms.py` are in `tests/losses/test_terms.py`, and so on. Folders that",
        "belong to no package cut across all of them and keep their names:",
        "",
        "| folder | what its tests are about |",
        "|---|---|",
        *(f"| `{folder}/` | {about} |" for folder, about in across.items()),
        "",
        "Modules without a test file of their name are tested with others. The table is made from imports by",
        "`python tools/tests_table.py` (part of `make docs`), and a test says when it is out of date. It names up to",
        "three test files, those in the module's own folder first; *through* is the nearest user of a module that no",
        "test imports.",
        "",
        "| module | through | tests |",
        "|---|---|---|",
    ]
    for module, through, tests in rows():
        names = ", ".join(f"`{test.relative_to(TESTS).as_posix()}`" for test in tests)
        lines.append(f"| `{_short(module)}` | {f'`{_short(through)}`' if through else ''} | {names} |")
    return "\n".join(lines) + "\n"


def _short(module: str) -> str:
    return module.removeprefix("rlhf_lightning.")


if __name__ == "__main__":
    TABLE.write_text(text(), encoding="utf-8")
