"""Whether a yaml value fits a parameter's annotation.

A yaml scalar can only ever match the plain members of an annotation (``float`` of ``float | Tensor``), so those are
what it is held against. An annotation without any (a protocol, a callable) judges nothing.
"""

from __future__ import annotations

import collections.abc
import enum
import functools
import inspect
import json
import math
import operator
import types
import typing
from collections.abc import Callable
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
    """Annotation of each parameter, with its metadata; a parameter whose annotation cannot be evaluated is left out."""
    function = target.__init__ if inspect.isclass(target) else target
    function = inspect.unwrap(getattr(function, "__func__", function))
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        found = getattr(function, "__annotations__", {})
        return {name: hint for name, hint in found.items() if not isinstance(hint, str)}


def check_value(value: Any, annotation: Any) -> tuple[Any, str | None]:
    """Hold a plain value against an annotation.

    Returns:
        The value (a whole float becomes an int where only an int fits) and None, or the value and what is wrong.
    """
    plain = _plain_part(annotation)
    if plain is None:
        return value, None
    if isinstance(value, float) and not math.isfinite(value):
        return value, None if _accepts(1.5, plain) else f"expected {words(plain)}, got {value!r}"
    if not _accepts(value, plain):
        if isinstance(value, float) and value.is_integer() and _accepts(int(value), plain):
            value = int(value)
        else:
            return value, f"expected {words(plain)}, got {value!r}"
    interval = _interval(annotation)
    if interval is not None and isinstance(value, (int, float)) and float(value) not in interval:
        return value, f"{value!r} is not allowed, it must be a number in {interval}"
    return value, None


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
    """What of an annotation a yaml value can match, None where nothing can be said."""
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
        return next((found for member in get_args(annotation) if (found := _interval(member)) is not None), None)
    if get_origin(annotation) is not Annotated:
        return None
    return next((extra for extra in get_args(annotation)[1:] if hasattr(extra, "__contains__")), None)
