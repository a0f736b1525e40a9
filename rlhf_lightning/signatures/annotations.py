"""Annotations of source that is not imported, as objects: plain types are themselves, other classes have stand-ins."""

from __future__ import annotations

import ast
import builtins
import functools
import sys
import typing
from typing import Any

from rlhf_lightning.signatures.classes import standard
from rlhf_lightning.signatures.modules import Definition, Expression, Import, Module, UnreadableError, follow


class StandIn:
    """Stands for a class that is not imported: no plain value is one.

    Attributes:
        definition: its source.
    """

    definition: Definition

    def __class_getitem__(cls, item: Any) -> Any:
        return cls


def evaluate(module: Module, node: ast.expr) -> Any:
    """An annotation as an object.

    Args:
        module: whose source it stands in.
        node: the annotation.

    Raises:
        UnreadableError: the source does not say what it is.
    """
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return evaluate(module, ast.parse(node.value, mode="eval").body)
        return type(None) if node.value is None else node.value
    if isinstance(node, ast.Name | ast.Attribute):
        return _named(module, node)
    if isinstance(node, ast.Subscript):
        return _subscript(module, node)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return typing.Union[evaluate(module, node.left), evaluate(module, node.right)]  # noqa: UP007
    if isinstance(node, ast.List):
        return [evaluate(module, item) for item in node.elts]
    if isinstance(node, ast.Call):
        return _called(module, node)
    raise UnreadableError(f"{ast.unparse(node)} in {module.name} is no annotation")


def _subscript(module: Module, node: ast.Subscript) -> Any:
    origin = evaluate(module, node.value)
    items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if origin is typing.Literal:
        try:
            return typing.Literal[tuple(ast.literal_eval(item) for item in items)]
        except ValueError as error:
            raise UnreadableError(f"{ast.unparse(node)} in {module.name}: {error}") from error
    if isinstance(origin, type) and issubclass(origin, StandIn):
        return origin
    if origin is typing.Annotated:
        return typing.Annotated[tuple(evaluate(module, item) for item in items)]
    arguments = tuple(evaluate(module, item) for item in items)
    try:
        return origin[arguments[0] if len(arguments) == 1 else arguments]
    except TypeError as error:
        raise UnreadableError(f"{ast.unparse(node)} in {module.name}: {error}") from error


def _called(module: Module, node: ast.Call) -> Any:
    """An object that stands in an annotation: a range, or a variable of types."""
    maker = evaluate(module, node.func)
    if maker is typing.TypeVar:
        return Any
    if isinstance(maker, type) and not issubclass(maker, StandIn):
        try:
            return maker(*map(ast.literal_eval, node.args))
        except (TypeError, ValueError) as error:
            raise UnreadableError(f"{ast.unparse(node)} in {module.name}: {error}") from error
    raise UnreadableError(f"{ast.unparse(node)} in {module.name} is called")


def _named(module: Module, node: ast.Name | ast.Attribute) -> Any:
    names = {**module.checkers_names, **module.names}
    if isinstance(node, ast.Name) and node.id not in names and not module.stars:
        if not hasattr(builtins, node.id):
            raise UnreadableError(f"{module.name} has no name {node.id}")
        return getattr(builtins, node.id)
    reached = follow(module, node, for_types=True)
    if isinstance(reached, Definition):
        return _class(reached)
    if isinstance(reached, Expression):
        return evaluate(reached.module, reached.node)
    if reached.name is None:
        raise UnreadableError(f"{ast.unparse(node)} in {module.name} is a module")
    return standard(reached)


@functools.cache
def _class(definition: Definition) -> Any:
    """The class itself where it is loaded, else a stand-in."""
    loaded = getattr(sys.modules.get(definition.module.name), definition.name, None)
    if loaded is not None:
        return loaded
    if not isinstance(definition.node, ast.ClassDef):
        raise UnreadableError(f"{definition.path} is no class")
    base = _enum_base(definition)
    if base is not None:
        return base(definition.name, list(_members(definition)))
    return type(definition.name, (StandIn,), {"definition": definition, "__module__": definition.module.name})


def _enum_base(definition: Definition) -> Any | None:
    """The class of the standard library that makes a class an enumeration."""
    assert isinstance(definition.node, ast.ClassDef)
    for base in definition.node.bases:
        try:
            reached = follow(definition.module, base)
        except UnreadableError:
            continue
        if isinstance(reached, Import) and reached.module == "enum":
            return standard(reached)
    return None


def _members(definition: Definition) -> list[tuple[str, Any]]:
    assert isinstance(definition.node, ast.ClassDef)
    lines = [line for line in definition.node.body if isinstance(line, ast.Assign)]
    try:
        return [(target.id, ast.literal_eval(line.value)) for line in lines for target in line.targets]  # type: ignore[attr-defined]
    except (AttributeError, ValueError) as error:
        raise UnreadableError(f"{definition.path}: {error}") from error
