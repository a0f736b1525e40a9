"""Docstrings of pure functions, read without importing them: ``rlhf methods`` must not wait for torch."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LABEL = re.compile(r"(Source|Defaults|Differences): *(.*)")
_SECTIONS = ("Args:", "Returns:", "Raises:")


@dataclass(frozen=True)
class FunctionDoc:
    """A loss or a credit function as its source file describes it."""

    name: str
    file: str
    inputs: tuple[str, ...]
    summary: str
    equation: str = ""
    notes: str = ""
    source: str = ""
    defaults: str = ""
    differences: str = ""

    @property
    def compared_with_trl(self) -> bool:
        """True if TRL 1.16 has this loss; then a test compares the numbers."""
        return "TRL 1.16" in self.differences and "TRL 1.16 has no such loss" not in self.differences


def function_docs(folder: Path) -> Iterator[FunctionDoc]:
    """Every function of a package that has a source of its own in its docstring.

    Args:
        folder: of the package.
    """
    for path in sorted(folder.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                text = ast.get_docstring(node) or ""
                if "\nSource:" in text:
                    required = node.args.args[: len(node.args.args) - len(node.args.defaults)]
                    inputs = tuple(argument.arg for argument in required)
                    yield FunctionDoc(node.name, path.name, inputs, **_parts(text))


def class_docs(folder: Path) -> Iterator[FunctionDoc]:
    """Every class of a package that has a source of its own in its docstring.

    Args:
        folder: of the package.
    """
    for path in sorted(folder.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and "\nSource:" in (text := ast.get_docstring(node) or ""):
                yield FunctionDoc(node.name, path.name, (), **_parts(text))


def class_kinds(folder: Path) -> dict[str, str]:
    """By class of method the kind of data that it learns from: its own ``kind``, else that of the first base with one.

    Args:
        folder: of the package.
    """
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.py")))
    classes = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}

    def kind_of(name: str) -> str:
        node = classes.get(name)
        if node is None:
            return ""
        given = (line.value for line in node.body if isinstance(line, ast.AnnAssign) and _names(line.target, "kind"))
        values = [value.value for value in given if isinstance(value, ast.Constant)]
        bases = (base.value if isinstance(base, ast.Subscript) else base for base in node.bases)
        inherited = (kind for base in bases if isinstance(base, ast.Name) and (kind := kind_of(base.id)))
        return str(values[0]) if values else next(inherited, "")

    return {name: kind_of(name) for name in classes}


def _names(target: ast.expr, name: str) -> bool:
    return isinstance(target, ast.Name) and target.id == name


def _parts(docstring: str) -> dict[str, str]:
    """The labelled parts of a docstring, each as one paragraph."""
    lines = inspect.cleandoc(docstring).split("\n")
    parts: dict[str, list[str]] = {"summary": [lines[0]], "equation": [], "notes": []}
    current = "notes"
    for line in lines[1:]:
        if line in _SECTIONS:
            break
        label = _LABEL.match(line)
        if label:
            current = label[1].lower()
            parts[current] = [label[2]]
        elif line.startswith(".. math::"):
            current = "equation"
            parts[current] = [line.removeprefix(".. math::")]
        elif not line.strip():
            current = "notes"
            parts[current].append("")
        else:
            parts[current].append(line.strip())
    notes = "\n".join(parts.pop("notes")).strip()
    texts = {name: " ".join(part.strip() for part in value).strip() for name, value in parts.items()}
    return texts | {"notes": re.sub(r"\n{2,}", "\n\n", notes)}
