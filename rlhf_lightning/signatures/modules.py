"""Source of modules: the names of a module and what each of them is bound to, read without running anything.

A name that is bound under a condition, in a loop or in a ``try`` is ambiguous, and whoever asks for it is told so
(:class:`UnreadableError`): then only an import can tell.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path


class UnreadableError(Exception):
    """Source that does not say what is asked, or that is not there."""


@dataclass(frozen=True, eq=False)
class Definition:
    """A class or a function as a module's source has it; one object for each."""

    module: Module
    node: ast.ClassDef | ast.FunctionDef

    @property
    def name(self) -> str:
        """Name in its module."""
        return self.node.name

    @property
    def path(self) -> str:
        """Dotted path of module and name."""
        return f"{self.module.name}.{self.name}"


@dataclass(frozen=True, eq=False)
class Expression:
    """An expression whose value a name of a module has."""

    module: Module
    node: ast.expr


@dataclass(frozen=True)
class Import:
    """A name that comes from elsewhere: a name of a module, or a module itself."""

    module: str
    name: str | None = None


class Ambiguous:
    """A name that is bound in a way which only running the module decides."""


Binding = Definition | Expression | Import | Ambiguous


class Module:
    """A module's source.

    Args:
        name: dotted name.
        file: its source.
        folders: where its own modules lie; empty for a module that is no package.
    """

    def __init__(self, name: str, file: Path, folders: tuple[str, ...]) -> None:
        self.name, self.folders = name, folders
        self.names: dict[str, Binding] = {}
        #: Names that are imported under ``if TYPE_CHECKING:``.
        self.checkers_names: dict[str, Binding] = {}
        self.stars: list[str] = []
        for statement in ast.parse(file.read_bytes()).body:
            self._add(statement)

    def _add(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef):
            self.names[statement.name] = Definition(self, statement)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            self.names |= self._imports(statement)
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                self._assign(target, statement.value)
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            self._assign(statement.target, statement.value)
        elif isinstance(statement, ast.If) and ast.unparse(statement.test).endswith("TYPE_CHECKING"):
            for line in statement.body:
                if isinstance(line, ast.Import | ast.ImportFrom):
                    self.checkers_names |= self._imports(line)
            self.names |= {name: Ambiguous() for line in statement.orelse for name in _bound(line)}
        else:
            self.names |= {name: Ambiguous() for name in _bound(statement)}

    def _imports(self, line: ast.Import | ast.ImportFrom) -> dict[str, Binding]:
        if isinstance(line, ast.Import):
            return {
                alias.asname or alias.name.partition(".")[0]: Import(
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
                for alias in line.names
            }
        home = self._absolute(line)
        self.stars += [home for alias in line.names if alias.name == "*"]
        return {alias.asname or alias.name: Import(home, alias.name) for alias in line.names if alias.name != "*"}

    def _absolute(self, line: ast.ImportFrom) -> str:
        if not line.level:
            return line.module or ""
        parts = self.name.split(".")
        base = parts[: len(parts) - line.level + bool(self.folders)]
        return ".".join([*base, line.module] if line.module else base)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = Expression(self, value)
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            for single, its in zip(target.elts, value.elts, strict=True):
                self._assign(single, its)
        else:
            self.names |= {name: Ambiguous() for name in _names(target)}


def _bound(statement: ast.AST) -> Iterator[str]:
    """Names that a statement may bind at any depth; more rather than fewer."""
    for node in ast.walk(statement):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id


def _names(target: ast.expr) -> Iterator[str]:
    return (node.id for node in ast.walk(target) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load))


@functools.cache
def module_of(name: str) -> Module:
    """The source of a module, by its dotted name. No package is imported to find it.

    Raises:
        UnreadableError: there is no such module, or it has no source.
    """
    spec = _spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise UnreadableError(f"{name} has no source")
    try:
        return Module(name, Path(spec.origin), tuple(spec.submodule_search_locations or ()))
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableError(f"{name}: {error}") from error


def _spec(name: str) -> ModuleSpec | None:
    parent = name.rpartition(".")[0]
    if parent:  # importlib.util.find_spec would import the parent
        return PathFinder.find_spec(name, list(module_of(parent).folders))
    try:
        return importlib.util.find_spec(name)
    except ValueError as error:  # a module that was made by hand
        raise UnreadableError(f"{name}: {error}") from error


def is_standard(module: str) -> bool:
    """Check whether a module is of the standard library, or as light: it may be imported."""
    return module.partition(".")[0] in sys.stdlib_module_names or module == "typing_extensions"


def look_up(
    module: Module, name: str, *, for_types: bool = False, passed: frozenset[tuple[str, str]] = frozenset()
) -> Definition | Expression | Import:
    """Resolve a name of a module: imports are followed up to the standard library.

    Args:
        module: where the name stands.
        name: of the module, without dots.
        for_types: names that only type checkers see count, as in an annotation.
        passed: modules and names on the way here; modules may import one another in a circle.

    Returns:
        A definition or an expression, or the import of a module, or of a name of the standard library.

    Raises:
        UnreadableError: there is no such name, or it is ambiguous.
    """
    if (module.name, name) in passed:
        raise UnreadableError(f"{module.name}.{name} is imported in a circle")
    passed |= {(module.name, name)}
    binding = module.names.get(name)
    lazy = "__getattr__" in module.names  # names that a package loads when they are first used stand there for checkers
    if binding is None and (for_types or lazy):
        binding = module.checkers_names.get(name)
    if binding is None and module.stars:
        return _of_star(module, name, passed)
    if binding is None or isinstance(binding, Ambiguous):
        raise UnreadableError(f"{module.name}.{name} cannot be read")
    return _followed(binding, passed)


def _followed(
    binding: Definition | Expression | Import, passed: frozenset[tuple[str, str]] = frozenset()
) -> Definition | Expression | Import:
    if not isinstance(binding, Import) or binding.name is None or is_standard(binding.module):
        return binding
    home = module_of(binding.module)
    itself = home.names.get(binding.name) == binding  # a package's `from package import part`
    if home.folders and (itself or binding.name not in {**home.names, **home.checkers_names}):
        spec = PathFinder.find_spec(f"{home.name}.{binding.name}", list(home.folders))
        if spec is not None:
            return Import(f"{home.name}.{binding.name}")
    return look_up(home, binding.name, passed=passed)


def _of_star(module: Module, name: str, passed: frozenset[tuple[str, str]]) -> Definition | Expression | Import:
    """A name that one of several ``from ... import *`` brings."""
    having = []
    for home in module.stars:
        try:
            having.append(look_up(module_of(home), name, passed=passed))
        except UnreadableError:
            continue
    if len(having) != 1 or name.startswith("_"):
        raise UnreadableError(f"{module.name}.{name} cannot be read")
    return having[0]


def follow(module: Module, node: ast.expr, *, for_types: bool = False) -> Definition | Expression | Import:
    """Resolve a name, or a dotted one, in the source of a module; names of other names are followed.

    Raises:
        UnreadableError: see :func:`look_up`; or the node is no name.
    """
    if isinstance(node, ast.Name):
        reached = look_up(module, node.id, for_types=for_types)
    elif isinstance(node, ast.Attribute):
        owner = follow(module, node.value, for_types=for_types)
        if not isinstance(owner, Import) or owner.name is not None:
            raise UnreadableError(f"{ast.unparse(node)} in {module.name} is no name of a module")
        reached = _followed(Import(owner.module, node.attr))
    else:
        raise UnreadableError(f"{ast.unparse(node)} in {module.name} is no name")
    if isinstance(reached, Expression) and isinstance(reached.node, ast.Name | ast.Attribute):
        try:
            return follow(reached.module, reached.node, for_types=for_types)
        except UnreadableError:
            return reached  # an attribute of an object
    return reached


def definition_of(path: str) -> Definition:
    """The class or function that a dotted path names: a module and one of its names.

    Raises:
        UnreadableError: its source does not say.
    """
    home, _, name = path.rpartition(".")
    module = module_of(home)
    reached = follow(module, ast.Name(name))
    if not isinstance(reached, Definition):
        raise UnreadableError(f"{path} is no class or function in its source")
    return reached
