"""Signatures of classes and functions, read from source: bases are followed, dataclasses and decorators understood."""

from __future__ import annotations

import ast
import importlib
import inspect
from abc import ABC, ABCMeta
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol

from rlhf_lightning.signatures.modules import (
    Definition,
    Expression,
    Import,
    Module,
    UnreadableError,
    follow,
)

#: Default of a parameter that is no literal.
UNREAD = object()
#: Decorators of the standard library that leave a signature as it is.
_PLAIN = frozenset(
    {
        "abc.abstractmethod",
        "contextlib.contextmanager",
        "functools.cache",
        "functools.lru_cache",
        "functools.total_ordering",
        "typing.final",
        "typing.no_type_check",
        "typing.override",
        "typing.runtime_checkable",
        "typing_extensions.override",
    }
)
_MARKERS = (object, Generic, Protocol, ABC)


@dataclass(frozen=True)
class Annotated:
    """A parameter with its annotation, which is an expression of the module that it stands in; None: it has none."""

    parameter: inspect.Parameter
    annotation: Expression | None


def parameters_of(definition: Definition) -> dict[str, Annotated]:
    """Parameters of calling a class or a function, as ``inspect.signature`` gives them.

    Raises:
        UnreadableError: the source does not say.
    """
    node = definition.node
    if isinstance(node, ast.FunctionDef):
        return _of_function(definition.module, node)
    for owner in lineage(definition):
        made = _of_class(owner)
        if made is not None:
            return made
    return {}


def is_dataclass(definition: Definition) -> bool:
    """Check whether a class is decorated as a dataclass."""
    return isinstance(definition.node, ast.ClassDef) and _dataclass_call(definition) is not None


def is_protocol(definition: Definition) -> bool:
    """Check whether a class declares a protocol."""
    return any(base is Protocol for base in _bases(definition))


def lineage(definition: Definition) -> Iterator[Definition]:
    """A class and its bases in the order in which names are looked up.

    Raises:
        UnreadableError: a base cannot be read, or has a metaclass.
    """
    bases = [base for base in _bases(definition) if base not in _MARKERS]
    yield definition
    if len(bases) == 1 and isinstance(bases[0], Definition):  # read no further than is asked for
        yield from lineage(bases[0])
        return
    chains = [list(lineage(_definition(base))) for base in bases]
    yield from _merged([*chains, [_definition(base) for base in bases]])


def is_subclass(definition: Definition, base: Definition) -> bool:
    """Check whether a class has a base, at any depth.

    Raises:
        UnreadableError: a base cannot be read.
    """
    if definition is base:
        return True
    return any(is_subclass(above, base) for above in _bases(definition) if isinstance(above, Definition))


def methods_of(definition: Definition) -> Iterator[str]:
    """Names of the methods and properties in a class's body."""
    assert isinstance(definition.node, ast.ClassDef)
    return (line.name for line in definition.node.body if isinstance(line, ast.FunctionDef))


def _merged(chains: list[list[Definition]]) -> Iterator[Definition]:
    """Chains of bases as one order (C3)."""
    while chains := [chain for chain in chains if chain]:
        heads = (chain[0] for chain in chains)
        following = next((head for head in heads if not any(head in chain[1:] for chain in chains)), None)
        if following is None:
            raise UnreadableError("bases have no common order")
        yield following
        chains = [[one for one in chain if one is not following] for chain in chains]


def _definition(base: Any) -> Definition:
    if not isinstance(base, Definition):
        raise UnreadableError(f"the base {base!r} is no class with a source")
    return base


def _bases(definition: Definition) -> list[Any]:
    """Bases of a class: definitions, and classes of the standard library."""
    node = definition.node
    assert isinstance(node, ast.ClassDef)
    for keyword in node.keywords:
        if keyword.arg == "metaclass" and _named(definition.module, keyword.value) is not ABCMeta:
            raise UnreadableError(f"{definition.path} has a metaclass")
    return [_named(definition.module, base.value if isinstance(base, ast.Subscript) else base) for base in node.bases]


def _named(module: Module, node: ast.expr) -> Any:
    """A definition, or an object of the standard library."""
    if isinstance(node, ast.Name) and node.id == "object":
        return object
    reached = follow(module, node)
    if isinstance(reached, Import) and reached.name is not None:
        return standard(reached)
    if not isinstance(reached, Definition):
        raise UnreadableError(f"{ast.unparse(node)} in {module.name} is no class")
    return reached


def standard(reached: Import) -> Any:
    """An object of the standard library."""
    home = importlib.import_module(reached.module)
    try:
        return getattr(home, reached.name or "")
    except AttributeError as error:
        raise UnreadableError(str(error)) from error


def _of_class(owner: Definition) -> dict[str, Annotated] | None:
    """Parameters that a class itself declares; None: a base of it does."""
    node = owner.node
    assert isinstance(node, ast.ClassDef)
    call = _dataclass_call(owner)
    for decorator in node.decorator_list:
        if decorator is not call and not keeps_signature(owner.module, decorator):
            raise UnreadableError(f"{owner.path} is decorated with {ast.unparse(decorator)}")
    made: dict[str, Annotated] | None = None
    for line in node.body:
        if isinstance(line, ast.FunctionDef) and line.name == "__init__":
            made = dict(list(_of_function(owner.module, line).items())[1:])
        elif not isinstance(line, ast.FunctionDef | ast.AnnAssign | ast.ClassDef) and _mentions_maker(line):
            raise UnreadableError(f"{owner.path} makes its __init__ in another way")
        elif isinstance(line, ast.FunctionDef) and line.name == "__new__":
            raise UnreadableError(f"{owner.path} has __new__")
    if made is None and is_protocol(owner):
        raise UnreadableError(f"{owner.path} is a protocol")
    return _of_dataclass(owner) if made is None and call is not None else made


def _mentions_maker(line: ast.stmt) -> bool:
    makers = {"__init__", "__new__", "__signature__"}
    return any(
        (isinstance(node, ast.Name) and node.id in makers)
        or (isinstance(node, ast.FunctionDef) and node.name in makers)
        for node in ast.walk(line)
    )


def _of_function(module: Module, node: ast.FunctionDef) -> dict[str, Annotated]:
    for decorator in node.decorator_list:
        if not keeps_signature(module, decorator):
            raise UnreadableError(f"{module.name}.{node.name} is decorated with {ast.unparse(decorator)}")
    given, kinds = node.args, inspect.Parameter
    out: dict[str, Annotated] = {}

    def add(argument: ast.arg, kind: Any, default: ast.expr | None = None) -> None:
        annotation = None if argument.annotation is None else Expression(module, argument.annotation)
        value = kinds.empty if default is None else _literal(default)
        out[argument.arg] = Annotated(kinds(argument.arg, kind, default=value), annotation)

    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)
    for argument, default in zip(plain, defaults, strict=True):
        add(argument, kinds.POSITIONAL_ONLY if argument in given.posonlyargs else kinds.POSITIONAL_OR_KEYWORD, default)
    if given.vararg is not None:
        add(given.vararg, kinds.VAR_POSITIONAL)
    for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        add(argument, kinds.KEYWORD_ONLY, default)
    if given.kwarg is not None:
        add(given.kwarg, kinds.VAR_KEYWORD)
    return out


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return UNREAD


def _dataclass_call(definition: Definition) -> ast.expr | None:
    """The decorator that makes a class a dataclass."""
    return next(
        (made for made in definition.node.decorator_list if _is(definition.module, made, "dataclasses.dataclass")), None
    )


def _is(module: Module, node: ast.expr, path: str) -> bool:
    """Check whether a decorator is a name of the standard library, called or not."""
    try:
        reached = follow(module, node.func if isinstance(node, ast.Call) else node)
    except UnreadableError:
        return False
    return isinstance(reached, Import) and f"{reached.module}.{reached.name}" == path


def _of_dataclass(definition: Definition) -> dict[str, Annotated]:
    """Parameters of the constructor that a dataclass gets."""
    fields: dict[str, Annotated | None] = {}
    for owner in reversed(list(lineage(definition))):
        call = _dataclass_call(owner)
        if call is None:
            continue
        options = {word.arg: _literal(word.value) for word in call.keywords} if isinstance(call, ast.Call) else {}
        if options.get("init", True) is not True:
            raise UnreadableError(f"{owner.path} has no constructor of its own")
        fields |= dict(_fields(owner, kw_only=bool(options.get("kw_only"))))
    given = [one for one in fields.values() if one is not None]
    given.sort(key=lambda one: one.parameter.kind is inspect.Parameter.KEYWORD_ONLY)
    return {one.parameter.name: one for one in given}


def _fields(owner: Definition, *, kw_only: bool) -> Iterator[tuple[str, Annotated | None]]:
    """Fields by name; None for those that the constructor does not take, even if a base's does."""
    assert isinstance(owner.node, ast.ClassDef)
    for line in owner.node.body:
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        hint = ast.unparse(line.annotation)
        if hint.rpartition(".")[2] == "KW_ONLY" or "InitVar" in hint:
            raise UnreadableError(f"{owner.path} has {hint}")
        if "ClassVar" in hint.partition("[")[0]:
            continue
        name, default = line.target.id, line.value
        words: dict[str | None, ast.expr] = {}
        if isinstance(default, ast.Call) and _is(owner.module, default, "dataclasses.field"):
            words = {word.arg: word.value for word in default.keywords}
            default = words.get("default", words.get("default_factory"))
        if "init" in words and _literal(words["init"]) is not True:
            yield name, None
            continue
        only = _literal(words["kw_only"]) if "kw_only" in words else kw_only
        kind = inspect.Parameter.KEYWORD_ONLY if only else inspect.Parameter.POSITIONAL_OR_KEYWORD
        value = inspect.Parameter.empty if default is None else UNREAD if words else _literal(default)
        yield name, Annotated(inspect.Parameter(name, kind, default=value), Expression(owner.module, line.annotation))


def keeps_signature(module: Module, decorator: ast.expr) -> bool:
    """Check whether a decorator returns what it was given, or a function that ``functools.wraps`` it."""
    called = isinstance(decorator, ast.Call)
    try:
        reached = follow(module, decorator.func if isinstance(decorator, ast.Call) else decorator)
        function = _function(reached)
    except UnreadableError:
        return False
    if function is None:
        return isinstance(reached, Import) and f"{reached.module}.{reached.name}" in _PLAIN
    if not called:
        return _returns_given(function)
    made = {line.name: line for line in function.body if isinstance(line, ast.FunctionDef)}
    returned = [made.get(name or "") for name in _returned(function)]
    return bool(returned) and all(inner is not None and _returns_given(inner) for inner in returned)


def _function(reached: Definition | Expression | Import) -> ast.FunctionDef | None:
    """The function that a decorator is; a method, where it is one of an object that the module makes."""
    if isinstance(reached, Definition):
        return reached.node if isinstance(reached.node, ast.FunctionDef) else None
    if not isinstance(reached, Expression) or not isinstance(reached.node, ast.Attribute):
        return None
    maker = maker_of(reached)
    if maker is None:
        return None
    assert isinstance(maker[0].node, ast.ClassDef)
    methods = (line for line in maker[0].node.body if isinstance(line, ast.FunctionDef))
    method = next((line for line in methods if line.name == reached.node.attr), None)
    return None if method is None else _unbound(method)


def maker_of(reached: Expression) -> tuple[Definition, ast.Call] | None:
    """The class of the object that a method belongs to, and the call that makes it: ``_LOSS.function``."""
    assert isinstance(reached.node, ast.Attribute)
    owner = follow(reached.module, reached.node.value)
    if not isinstance(owner, Expression) or not isinstance(owner.node, ast.Call):
        return None
    cls = follow(owner.module, owner.node.func)
    return (cls, owner.node) if isinstance(cls, Definition) and isinstance(cls.node, ast.ClassDef) else None


def _unbound(method: ast.FunctionDef) -> ast.FunctionDef:
    """A method without ``self``."""
    given = method.args
    rest = ast.arguments(given.posonlyargs, given.args[1:], given.vararg, given.kwonlyargs, given.kw_defaults, None, [])
    return ast.FunctionDef(method.name, rest, method.body, method.decorator_list)


def _returns_given(function: ast.FunctionDef) -> bool:
    first = function.args.args[0].arg if function.args.args else ""
    wrapping = {
        line.name
        for line in function.body
        if isinstance(line, ast.FunctionDef)
        for made in line.decorator_list
        if ast.unparse(made).removeprefix("functools.") == f"wraps({first})"
    }
    returned = list(_returned(function))
    return bool(returned) and all(name == first or name in wrapping for name in returned)


def _returned(function: ast.FunctionDef) -> Iterator[str | None]:
    """Names that a function returns; None for anything else."""
    queue: list[ast.AST] = list(function.body)
    for node in queue:
        if isinstance(node, ast.Return):
            value = node.value
            if isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] == "cast":
                value = value.args[-1]
            yield value.id if isinstance(value, ast.Name) else None
        elif not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            queue.extend(ast.iter_child_nodes(node))
