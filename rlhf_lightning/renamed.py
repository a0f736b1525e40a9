"""Names of an earlier version, which modules still give for one version, with a warning."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def renamed(module: str, names: Mapping[str, str], *, stacklevel: int = 2) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a module some of whose names have changed.

    Args:
        module: name of the module.
        names: the earlier names with the present ones.
        stacklevel: of the warning; 2 where the result is the ``__getattr__`` itself.
    """

    def getattr_(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is now called {names[name]}", DeprecationWarning, stacklevel=stacklevel)
        return getattr(sys.modules[module], names[name])

    return getattr_


def argument(name: str, *, earlier: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator of a function that may still get a keyword argument under its earlier name, with a warning.

    Args:
        name: of the argument.
        earlier: its earlier name.
    """

    def decorator(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            if earlier in kwargs:
                warnings.warn(f"the argument {earlier} is now called {name}", DeprecationWarning, stacklevel=2)
                kwargs[name] = kwargs.pop(earlier)
            return function(*args, **kwargs)

        return wrapper

    return decorator


def class_attribute(owner: type, name: str, *, earlier: str) -> Any:
    """Value of a class attribute, which a subclass may still define under its earlier name, with a warning.

    Args:
        owner: the class.
        name: of the attribute.
        earlier: its earlier name.

    Raises:
        AttributeError: neither is defined.
    """
    for cls in owner.__mro__:
        if earlier in vars(cls):
            warnings.warn(f"{cls.__name__}.{earlier} is now called {name}", DeprecationWarning, stacklevel=2)
            return vars(cls)[earlier]
        if name in vars(cls):
            return vars(cls)[name]
    raise AttributeError(f"{owner.__name__} has no attribute {name!r}")
