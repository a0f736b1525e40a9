"""Check of a yaml value against a parameter's annotation.

A yaml scalar can only ever match the plain members of an annotation (``float`` of ``float | Tensor``), so those are
what it is held against. Where an annotation has none (a protocol, a callable), nothing but a ``_target_`` fits. An
infinite number, and what is no number, is refused unless the annotation's range includes it.
"""

from __future__ import annotations

import ast
import collections.abc
import dataclasses
import enum
import functools
import inspect
import json
import math
import operator
import sys
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

_PLAIN = (int, float, bool, str, type(None), Path)
_CONTAINERS: dict[Any, Any] = {
    list: list,
    tuple: tuple,
    dict: dict,
    set: set,
    frozenset: frozenset,
    collections.abc.Sequence: list,
    collections.abc.Iterable: list,
    collections.abc.Collection: list,
    collections.abc.Mapping: dict,
    collections.abc.MutableMapping: dict,
}
_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    Path: "a path",
}


def annotations_of(target: Callable[..., Any]) -> dict[str, Any]:
    """Annotation of each parameter, with its metadata; of one without any, the type of its default.

    Names that a module imports for type checkers only are known here, too: as what they name if that is loaded already,
    else as a class that no value of a yaml is.

    Raises:
        NameError: an annotation has a name that its module does not have.
    """
    function = target.__init__ if inspect.isclass(target) else target
    function = inspect.unwrap(getattr(function, "__func__", function))
    hints: dict[str, Any] = {}
    if inspect.isclass(target) and dataclasses.is_dataclass(target) and "__init__" in vars(target):
        for owner in reversed(target.__mro__):  # each field in the module that declares it
            declared = vars(owner).get("__annotations__", {})
            fields = {name: hint for name, hint in declared.items() if not str(hint).startswith("ClassVar")}
            hints |= _evaluated(fields, owner.__module__) if fields else {}
    else:
        hints = _evaluated(getattr(function, "__annotations__", {}), getattr(function, "__module__", None))
    return _by_default(function) | hints


def _evaluated(annotations: Mapping[str, Any], module: str | None) -> dict[str, Any]:
    """Annotations of one module, evaluated."""
    names = {**_checkers_names(module), **(vars(sys.modules[module]) if module in sys.modules else {})}
    carrier = types.SimpleNamespace(__annotations__=dict(annotations))
    hints = typing.get_type_hints(carrier, globalns=names, include_extras=True)
    return {name: hint for name, hint in hints.items() if name != "return"}


@functools.cache
def _checkers_names(module: str | None) -> dict[str, Any]:
    """Names that a module imports under ``if TYPE_CHECKING:``."""
    loaded = sys.modules.get(module or "")
    try:
        tree = ast.parse(inspect.getsource(loaded)) if loaded is not None else ast.Module([], [])
    except (OSError, TypeError, SyntaxError):  # no source to read
        return {}
    blocks = [node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    imports = [line for block in blocks for line in block.body if isinstance(line, (ast.ImportFrom, ast.Import))]
    names: dict[str, Any] = {}
    for line in imports:
        home = sys.modules.get(getattr(line, "module", None) or "")
        for alias in line.names:
            name = alias.asname or alias.name
            names[name] = getattr(home, alias.name, None) or type(name, (_Unloaded,), {})
    return names


class _Unloaded:
    """Stands for a class that is not imported: nothing that a yaml says is one."""

    def __class_getitem__(cls, item: Any) -> Any:
        return cls


def _by_default(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of defaults, for functions that declare none: bitsandbytes' optimisers."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return {}
    return {p.name: kind for p in parameters if (kind := type_of_default(p.default)) is not None}


def type_of_default(default: Any) -> Any | None:
    """The type of a parameter's default; None where it says too little."""
    if isinstance(default, tuple) and default:
        kinds = [type_of_default(value) for value in default]
        return None if None in kinds else types.GenericAlias(tuple, tuple(kinds))
    return {bool: bool, int: float, float: float, str: str}.get(type(default))


def check_value(value: Any, annotation: Any) -> tuple[Any, str | None]:
    """Hold a plain value against an annotation.

    Returns:
        The value (a whole float becomes an int where only an int fits) and None, or the value and what is wrong.
    """
    plain = _plain_part(annotation)
    if plain is None:
        made = value is not None and _is_made(annotation)
        return value, f"expected an object, which a yaml makes with _target_, got {value!r}" if made else None
    interval = _interval(annotation)
    if not _finite(value) and not (isinstance(value, float) and interval is not None and value in interval):
        return value, f"expected {words(plain)}, got {value!r}"
    if not _accepts(value, plain):
        if isinstance(value, float) and value.is_integer() and _accepts(int(value), plain):
            value = int(value)
        else:
            return value, f"expected {words(plain)}, got {value!r}"
    if interval is not None and isinstance(value, (int, float)) and float(value) not in interval:
        return value, f"{value!r} is not allowed, it must be a number in {interval}"
    return value, None


def json_schema_of(annotation: Any) -> dict[str, Any]:
    """JSON Schema of what a yaml value may be, empty for annotations of objects alone."""
    plain = _plain_part(annotation)
    if plain is None:
        return {}
    schema = _adapter(plain).json_schema()
    interval = _interval(annotation)
    return schema if interval is None else {**schema, "title": f"in {interval}"}


def _is_made(annotation: Any) -> bool:
    """Check whether an annotation is of objects alone: classes that are no plain type, and callables."""
    if get_origin(annotation) in (Union, types.UnionType):
        return all(map(_is_made, get_args(annotation)))
    return annotation not in (Any, object) and (inspect.isclass(annotation) or get_origin(annotation) is Callable)


def _finite(value: Any) -> bool:
    """Check whether no number in a value is infinite or not a number."""
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def words(annotation: Any) -> str:
    """An annotation in words: ``a whole number or null``."""
    if annotation in _WORDS:
        return _WORDS[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        choices = [choice for member in arguments if get_origin(member) is Literal for choice in get_args(member)]
        members = [member for member in arguments if get_origin(member) is not Literal]
        literal = [words(Literal[tuple(dict.fromkeys(map(str, choices)))])] if choices else []
        return " or ".join(dict.fromkeys([*literal, *map(words, members)]))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if inspect.isclass(annotation) and issubclass(annotation, enum.Enum):
        return f"one of {', '.join(str(member.value) for member in annotation)}"
    if origin is tuple and arguments and Ellipsis not in arguments:
        return f"a list of {len(arguments)}"
    return "a mapping" if (origin or annotation) is dict else "a list"


def _plain_part(annotation: Any) -> Any | None:
    """Part of an annotation that a yaml value can match; None if it cannot be checked."""
    if annotation in _PLAIN or get_origin(annotation) is Literal:
        return annotation
    if inspect.isclass(annotation) and issubclass(annotation, enum.Enum):
        return annotation
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _plain_part(arguments[0])
    if origin in (Union, types.UnionType):
        if Any in arguments:
            return None
        members = [part for part in map(_plain_part, arguments) if part is not None]
        return functools.reduce(operator.or_, members) if members else None
    return _plain_container(origin or annotation, arguments)


def _plain_container(origin: Any, arguments: tuple[Any, ...]) -> Any | None:
    container = _CONTAINERS.get(origin)
    if container is None:
        return None
    inner = [member if member is Ellipsis else _plain_part(member) for member in arguments]
    if not arguments or any(member is None for member in inner):
        return container
    if container in (list, set, frozenset):
        inner = inner[:1]
    return container[tuple(inner) if len(inner) > 1 else inner[0]]


@functools.cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation, config=ConfigDict(strict=True, arbitrary_types_allowed=True))


def _accepts(value: Any, annotation: Any) -> bool:
    # Strict JSON is yaml's own idea of types: no text for a number, but a list for a tuple and text for an enum.
    try:
        _adapter(annotation).validate_json(json.dumps(value))
    except ValidationError:
        return False
    return True


def _interval(annotation: Any) -> Any | None:
    """The range in an ``Annotated[float, Range(...)]``, or in one that may also be None."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next((loaded for member in get_args(annotation) if (loaded := _interval(member)) is not None), None)
    if get_origin(annotation) is not Annotated:
        return None
    return next((extra for extra in get_args(annotation)[1:] if hasattr(extra, "__contains__")), None)
