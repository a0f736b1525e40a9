"""The code that a job depends on, as one digest: a result whose digest differs from today's is stale.

The rule: every yaml that the job's options choose or that those include, and every module of the package that the
``_target_`` lines of these files reach by imports, whether at the top of a file or in a function. Of modules all lines
count but docstrings, comments and empty ones; of yaml the content. Importing a module also runs the ``__init__.py`` of
its package; of that file only the line that names the import is followed. What starts the trainer
(``cli``), loggers and folders do not count.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from rlhf_lightning.conf_dir import conf_dir

PACKAGE = Path(__file__).resolve().parents[1]
#: Groups of conf/ that decide nothing that a job computes.
_ASIDE = frozenset({"hydra", "logger", "paths", "sweep", "debug", "local"})
_TARGET = re.compile(rf"_target_[:=]\s*['\"]?({PACKAGE.name}(?:\.\w+)+)")
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def digest(options: Sequence[str]) -> str:
    """Digest of the code that ``rlhf train`` with these options depends on: 16 hexadecimal digits."""
    files = yamls(options)
    named = [*_targets("\n".join(options)), *(target for path in files for target in _targets_of(path))]
    parts = [f"{path.relative_to(conf_dir())} {_digest_of_yaml(path)}" for path in files]
    parts += [f"{module} {_digest_of_module(module)}" for module in sorted(closure(named))]
    return _digest_of("\n".join(parts))


def yamls(options: Sequence[str]) -> list[Path]:
    """Files of conf/ that the options of ``rlhf train`` choose, and those that they include, in a fixed order."""
    given = [_choice(option) for option in options]
    chosen = [(group, name) for group, names in filter(None, given) for name in names]
    choices = {group: names[0] for group, names in filter(None, given)}
    root = conf_dir() / "train.yaml"
    overridden: dict[str, list[str]] = {}
    for name in [name for group, name in chosen if group == "experiment"]:
        overridden |= dict(_overrides(conf_dir() / "experiment" / f"{name}.yaml"))
    files: dict[Path, None] = {root: None}
    for group, names in {**dict(_defaults(root)), **overridden}.items():
        if group not in choices:
            chosen += [(group, name) for name in names]
            choices[group] = names[0]
    names_of = {"model": choices.get("model"), "method": choices.get("method"), "rounds": choices.get("rounds")}
    optional = ["world/{model}/{method}", "world/rounds/{model}/{rounds}"]
    for path in [conf_dir() / f"{group}/{name}.yaml" for group, name in chosen if group not in _ASIDE] + [
        conf_dir() / f"{pattern.format(**names_of)}.yaml" for pattern in optional
    ]:
        files |= dict.fromkeys(_with_included(path))
    return sorted(files)


def closure(targets: Sequence[str]) -> frozenset[str]:
    """Modules of the package that dotted names reach by imports."""
    reached: set[str] = set()
    waiting = [module for target in targets for module in _home(target)]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += _imports(module)
    return frozenset(reached)


def _choice(option: str) -> tuple[str, list[str]] | None:
    """Group and files that an option chooses; None where it sets a value."""
    key, _, value = option.lstrip("+").partition("=")
    group = key.partition("@")[0]
    if not (conf_dir() / group).is_dir():
        return None
    return group, [name.strip() for name in value.strip("[]").split(",")]


def _defaults(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Groups of the list of defaults with their files, what is optional or depends on other choices left out."""
    for entry in _loaded(path).get("defaults", []):
        if isinstance(entry, dict):
            for key, value in entry.items():
                if not str(key).startswith(("optional ", "override ")) and value is not None:
                    yield str(key).partition("@")[0], value if isinstance(value, list) else [str(value)]


def _overrides(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Choices of an experiment that replace train.yaml's defaults."""
    for entry in _loaded(path).get("defaults", []):
        if isinstance(entry, dict):
            for key, value in entry.items():
                if str(key).startswith("override /"):
                    yield str(key).removeprefix("override /"), value if isinstance(value, list) else [str(value)]


def _with_included(path: Path) -> Iterator[Path]:
    """A file, where there is one, and those that its list of defaults includes."""
    if not path.is_file():
        return
    yield path
    for entry in _loaded(path).get("defaults", []):
        for name in _included(entry):
            base = conf_dir() if name.startswith("/") else path.parent
            yield from _with_included(base / f"{name.lstrip('/')}.yaml")


def _included(entry: Any) -> Iterator[str]:
    """Files that one line of a list of defaults includes."""
    if isinstance(entry, str):
        yield from [] if entry == "_self_" else [entry]
        return
    for key, value in entry.items():
        if not str(key).startswith("override ") and value is not None:
            group = str(key).removeprefix("optional ").partition("@")[0]
            yield from (f"{group}/{name}" for name in (value if isinstance(value, list) else [value]))


def _file(module: str) -> Path | None:
    """The file of a module of the package; None: there is none of that name."""
    path = PACKAGE.parent / Path(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return file if module.partition(".")[0] == PACKAGE.name and file.is_file() else None


@cache
def _tree(module: str) -> ast.Module:
    file = _file(module)
    assert file is not None
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def _digest_of_module(module: str) -> str:
    file = _file(module)
    assert file is not None
    return _digest_of("\n".join(counting_lines(file.read_text(encoding="utf-8"), _tree(module))))


def counting_lines(source: str, tree: ast.Module) -> Iterator[str]:
    """Lines of a module but docstrings, lines that are nothing but a comment, and empty ones.

    Args:
        source: of the module.
        tree: of the same.
    """
    documentation, text = set[int](), set[int]()
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            documentation |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
        if isinstance(node, ast.Constant | ast.JoinedStr):  # a line in the middle of a text may look like a comment
            text |= set(range(node.lineno + 1, (node.end_lineno or 0) + 1))
    for number, line in enumerate(source.splitlines(), start=1):
        comment = not line.strip() or line.lstrip().startswith("#")
        if number not in documentation and (number in text or not comment):
            yield line


@cache
def _imports(module: str) -> tuple[str, ...]:
    """Modules of the package that a module's imports lead to; of an ``__init__.py`` only names that others import."""
    file = _file(module)
    if file is None or file.name == "__init__.py":
        return ()
    return tuple(home for name in _imported(_tree(module)) for home in _home(name))


def _imported(tree: ast.Module) -> Iterator[str]:
    """Dotted names that a module imports, at its top and in functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def _home(name: str) -> tuple[str, ...]:
    """The modules behind a dotted name: its module, or the one that an ``__init__.py`` takes it from."""
    if _file(name) is not None:
        return (name,)
    package, _, member = name.rpartition(".")
    file = _file(package) if package else None
    if file is None:
        return ()
    if file.name != "__init__.py":
        return (package,)
    for node in ast.walk(_tree(package)):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == member:
                    return _home(f"{node.module}.{alias.name}")
    return (package,)


@cache
def _loaded(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


@cache
def _digest_of_yaml(path: Path) -> str:
    return _digest_of(repr(_loaded(path)))


@cache
def _targets_of(path: Path) -> tuple[str, ...]:
    return _targets(path.read_text(encoding="utf-8"))


def _targets(text: str) -> tuple[str, ...]:
    """Names of the package that a text instantiates."""
    return tuple(_TARGET.findall(text))


def _digest_of(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
