"""Put another source into a module that is loaded: its functions stay the same objects and get other code.

Whoever imported a function, wrapped it or keeps it in a table then calls the new one, and nothing else is loaded again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FunctionType, ModuleType
from typing import Any


def renew(module: ModuleType, source: str) -> None:
    """Give functions, classes and constants of a module what the source says of them.

    Raises:
        Exception: whatever the source raises when it is run.
    """
    fresh = dict(vars(module))
    exec(compile(source, str(module.__file__), "exec"), fresh)
    for name, new in fresh.items():
        old = vars(module).get(name)
        if new is not old and not name.startswith("__") and not _renewed(old, new, module.__name__):
            _replace(name, old, new)


def _renewed(old: Any, new: Any, module: str) -> bool:
    """Return whether the old object could be turned into the new one."""
    if isinstance(old, (staticmethod, classmethod)):
        return _renewed(old.__func__, new.__func__, module)
    if isinstance(old, property):
        return _renewed(old.fget, new.fget, module)
    if isinstance(old, type) and isinstance(new, type):
        return old.__module__ == module and _renewed_class(old, new, module)
    if hasattr(old, "__wrapped__") and hasattr(new, "__wrapped__"):
        return _renewed(old.__wrapped__, new.__wrapped__, module)
    if isinstance(old, FunctionType) and isinstance(new, FunctionType):
        if len(old.__code__.co_freevars) == len(new.__code__.co_freevars):
            old.__code__ = new.__code__
        old.__defaults__, old.__kwdefaults__ = new.__defaults__, new.__kwdefaults__
        return True
    return type(old) is type(new) and _equal(old, new)


def _renewed_class(old: type, new: type, module: str) -> bool:
    for name, value in vars(new).items():
        before = vars(old).get(name)
        if name in {"__dict__", "__weakref__", "__doc__", "__module__", "_abc_impl"} or value is before:
            continue
        if not _renewed(before, value, module):
            setattr(old, name, value)
    return True


def _equal(old: Any, new: Any) -> bool:
    try:
        return bool(old == new)
    except (RuntimeError, TypeError, ValueError):
        return False


def _replace(name: str, old: Any, new: Any) -> None:
    """Set a constant of a module, here and in every module that imported it under its name."""
    for loaded in list(sys.modules.values()):
        namespace: Mapping[str, Any] | None = getattr(loaded, "__dict__", None)
        if namespace is not None and name in namespace and namespace[name] is old:
            setattr(loaded, name, new)
