"""Who may import whom. An import in the wrong direction anywhere in the package fails here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "rlhf_lightning"
FILES = sorted(PACKAGE.rglob("*.py"))

#: Parts of the package that each part may import; itself always. Top-level modules are parts of their own.
MAY_IMPORT = {
    "ops": set(),
    "types": {"ops"},
    "losses": {"types", "ops"},
    "models": {"types", "ops"},
    "data": {"types", "ops"},
    "callbacks": {"types", "ops"},
    "methods": {"types", "ops", "losses", "models"},
    "signals": set(),
    "checkpointing": set(),
    "schedules": set(),
    "strategies": {"checkpointing"},
    "loggers": set(),
    "conf_dir": set(),
    "_hydra": {"conf_dir"},
    "quickstart": {"types", "ops", "losses", "models", "data", "methods", "cli", "conf_dir"},
    "cli": None,  # everything
    "": None,  # the package's lazy names
}
#: Packages that only some parts may import.
ONLY_IN = {
    "lightning": {
        "methods",
        "callbacks",
        "data",
        "strategies",
        "checkpointing",
        "signals",
        "loggers",
        "cli",
        "quickstart",
    },
    "hydra": {"cli", "_hydra"},
    "omegaconf": {"cli", "_hydra"},
}
#: What must answer without torch: help, completion, and the plugin that every Hydra application loads.
TORCH_FREE = (
    "__init__.py",
    "conf_dir.py",
    "_hydra/*.py",
    "cli/__init__.py",
    "cli/main.py",
    "cli/help.py",
    "cli/complete.py",
    "cli/errors.py",
)
#: What losses may import beside our types and ops.
LOSSES_MAY = {
    "torch",
    "jaxtyping",
    "__future__",
    "collections",
    "dataclasses",
    "functools",
    "inspect",
    "math",
    "typing",
    "difflib",
    "itertools",
    "enum",
}


def part(file: Path) -> str:
    relative = file.relative_to(PACKAGE)
    return "" if relative.parts == ("__init__.py",) else relative.parts[0].removesuffix(".py")


def imports(file: Path, *, at_import_time: bool = False) -> Iterator[str]:
    """Modules that a file imports; with ``at_import_time`` only those that importing the file imports."""
    for node in _nodes(ast.parse(file.read_text()), at_import_time):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _nodes(tree: ast.AST, at_import_time: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if at_import_time and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if at_import_time and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _nodes(node, at_import_time)


def test_every_part_has_a_rule():
    assert {part(file) for file in FILES} <= MAY_IMPORT.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_import_direction(file):
    mine = part(file)
    allowed = MAY_IMPORT[mine]
    for module in imports(file):
        root, _, rest = module.partition(".")
        if root == "rlhf_lightning":
            theirs = rest.split(".")[0]
            home = theirs if theirs in MAY_IMPORT else ""
            assert allowed is None or home in {*allowed, mine, ""}, f"{mine} must not import {module}"
        elif root in ONLY_IN:
            assert mine in ONLY_IN[root], f"{mine} must not import {module}"


@pytest.mark.parametrize("file", sorted((PACKAGE / "losses").glob("*.py")), ids=lambda file: file.name)
def test_losses_are_pure_torch(file):
    foreign = {module for module in imports(file) if module.split(".")[0] not in {*LOSSES_MAY, "rlhf_lightning"}}
    assert not foreign


@pytest.mark.parametrize("pattern", TORCH_FREE)
def test_no_torch_at_import(pattern):
    for file in PACKAGE.glob(pattern):
        heavy = {"torch", "lightning", "transformers", "jaxtyping", "numpy", "peft"}
        assert not {module for module in imports(file, at_import_time=True) if module.split(".")[0] in heavy}, file
