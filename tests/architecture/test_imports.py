"""Allowed imports between packages. An import in the wrong direction anywhere in the package fails here."""

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
    "options": set(),
    "chat_templates": set(),
    "losses": {"types", "ops", "options"},
    "credit": {"types", "ops", "options"},
    "selection": {"types", "ops", "options", "renamed"},
    "models": {"types", "ops", "options", "checkpoint_files", "files", "sharded_state"},
    "data": {"types", "ops", "clock", "chat_templates", "options", "renamed"},
    "callbacks": {"types", "ops", "checkpointing", "loggers", "options", "sharded_state", "files"},
    "methods": {"types", "ops", "options", "renamed", "losses", "models", "credit", "chat_templates", "checkpointing"},
    "rewards": {"types", "ops", "losses", "models", "data", "yaml_text", "options", "renamed"},
    "rollout": {"types", "ops", "models", "options", "renamed"},
    "planning": {"models"},
    "prompting": {"types", "options", "ops", "data", "models", "rewards", "rollout", "files"},
    "hardening": {"types", "rewards"},
    "world": {"types", "options", "ops", "data", "models"},
    "lessons": {"types", "ops", "data", "options", "selection"},
    "rounds": {
        "sharded_state",
        "types",
        "ops",
        "models",
        "data",
        "lessons",
        "rewards",
        "rollout",
        "chat_templates",
        "files",
    },
    "clock": set(),
    "signals": set(),
    "signatures": set(),
    "renamed": set(),
    "files": set(),
    "checkpointing": {"files", "checkpoint_files"},
    "checkpoint_files": set(),
    "optimizers": set(),
    "schedules": set(),
    "sharded_state": set(),
    "strategies": {"checkpointing", "sharded_state", "files"},
    "loggers": {"files"},
    "report": {"yaml_text"},
    "claims": {"conf_dir", "files"},
    "version": set(),
    "yaml_text": set(),
    "conf_dir": set(),
    "_hydra": {"conf_dir"},
    "quickstart": {"types", "ops", "losses", "models", "data", "methods", "cli", "conf_dir"},
    "cli": None,  # everything
    "": None,  # the package's lazy names
}
#: Within a package, sub-packages and modules in the order in which they may import: each itself and those before it.
LAYERS = {
    "data": (
        {"kinds", "spec"},
        {"rows"},
        {"sources"},
        {"tokens"},
        {"batches"},
        {"reference"},
        {"inspect", "statistics", "summary"},
        {"module"},
    ),
    "models": (
        {"architectures", "attention", "backbone", "blocks", "buffers", "forwarding", "modes"},
        {"loading", "sharding", "shares"},
        {"gguf"},
        {"adapters"},
        {"actor", "sizes"},
        {"decoding"},
        {"hidden_states"},
        {"scorers"},
        {"export", "fingerprint"},
        {"empty", "sources"},
        {"critics"},
        {"roles"},
        {"guidance", "memory"},
    ),
}
#: Packages that only some parts may import.
ONLY_IN = {
    "lightning": {
        "methods",
        "callbacks",
        "data",
        "rounds",
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
#: What must run without torch: help, completion, and the plugin that every Hydra application loads.
TORCH_FREE = (
    "__init__.py",
    "conf_dir.py",
    "_hydra/*.py",
    "cli/__init__.py",
    "cli/main.py",
    "cli/help.py",
    "cli/complete.py",
    "cli/errors.py",
    "cli/processes.py",
    "cli/failures.py",
    "cli/cpu_defaults.py",
)
#: What losses and selectors may import beside our types and ops.
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


def test_import_direction():
    assert [problem for file in FILES for problem in wrong_imports(file)] == []


def wrong_imports(file: Path) -> Iterator[str]:
    inside = part(file)
    allowed = MAY_IMPORT[inside]
    for module in imports(file):
        root, _, rest = module.partition(".")
        if root == "rlhf_lightning":
            imported = rest.split(".")[0]
            home = imported if imported in MAY_IMPORT else ""
            if allowed is not None and home not in {*allowed, inside}:
                yield f"{file.relative_to(PACKAGE)}: {inside} must not import {module}"
        elif root in ONLY_IN and inside not in ONLY_IN[root]:
            yield f"{file.relative_to(PACKAGE)}: {inside} must not import {module}"


@pytest.mark.parametrize("package", LAYERS)
def test_every_module_of_a_layered_package_has_a_layer(package):
    inside = {path.stem for path in (PACKAGE / package).glob("*") if path.suffix == ".py" or any(path.glob("*.py"))}
    assert inside - {"__init__"} == set().union(*LAYERS[package])


@pytest.mark.parametrize("package", LAYERS)
def test_layers_import_one_way(package):
    files = {*(PACKAGE / package).rglob("*.py")} - {PACKAGE / package / "__init__.py"}
    assert sorted(problem for file in files for problem in wrong_layers(file, package)) == []


def wrong_layers(file: Path, package: str) -> Iterator[str]:
    """Imports of a file from a layer above its own, or of the package's lazy names, which have all layers."""
    level = {name: at for at, layer in enumerate(LAYERS[package]) for name in layer}
    inside = file.relative_to(PACKAGE / package).parts[0].removesuffix(".py")
    for module in imports(file):
        if module.startswith(f"rlhf_lightning.{package}."):
            imported = module.split(".")[2]
            if level.get(imported, len(level)) > level[inside]:
                yield f"{file.relative_to(PACKAGE)}: {inside} must not import {module}"


def test_losses_and_selectors_are_pure_torch():
    allowed = {*LOSSES_MAY, "rlhf_lightning"}
    files = [file for package in ("losses", "selection") for file in (PACKAGE / package).glob("*.py")]
    assert [(file.name, m) for file in files for m in imports(file) if m.split(".")[0] not in allowed] == []


def test_no_torch_at_import():
    heavy = {"torch", "lightning", "transformers", "jaxtyping", "numpy", "peft"}
    files = [file for pattern in TORCH_FREE for file in PACKAGE.glob(pattern)]
    assert len(files) >= len(TORCH_FREE)
    heavy_imports = [(f.name, m) for f in files for m in imports(f, at_import_time=True) if m.split(".")[0] in heavy]
    assert heavy_imports == []


def test_the_rules_would_notice(tmp_path, monkeypatch):
    """The check itself: a loss that imports data, and a model that imports Hydra."""
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "bad.py").write_text("def f():\n    from rlhf_lightning.data import packing\n")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "bad.py").write_text("import hydra\n")
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    assert len([problem for file in tmp_path.rglob("*.py") for problem in wrong_imports(file)]) == 2


def test_the_layers_would_notice(tmp_path, monkeypatch):
    """The check itself: rows that import tokens, late; and a batch that imports a lazy name of the package."""
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    for file, text in (
        ("rows/bad.py", "def f():\n    from rlhf_lightning.data.tokens import encode\n"),
        ("batches/bad.py", "from rlhf_lightning.data import Files\n"),
        (
            "batches/good.py",
            "from rlhf_lightning.data import spec\nfrom rlhf_lightning.data.rows import records\n",
        ),
    ):
        (tmp_path / "data" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / file).write_text(text)
    assert sorted(problem for file in tmp_path.rglob("*.py") for problem in wrong_layers(file, "data")) == [
        "data/batches/bad.py: batches must not import rlhf_lightning.data.Files",
        "data/rows/bad.py: rows must not import rlhf_lightning.data.tokens.encode",
    ]
