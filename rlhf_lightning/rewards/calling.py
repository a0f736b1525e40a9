"""Calling plain functions of texts with the columns that they name."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

#: Arguments of a function besides columns of the data.
GIVEN = ("prompt", "response")


class TextFunction:
    """A function ``f(prompt, response, **columns)``, called with a mapping of columns.

    A function without ``**columns`` gets those that it names. Options that a partial has bound are not overwritten by
    columns of the same name, and columns that are called ``prompt`` or ``response`` are not passed on.

    Args:
        function: what to call.

    Raises:
        ValueError: it does not take a prompt and a response by name.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        signature = inspect.signature(function)
        parameters = signature.parameters.values()
        self._open = any(p.kind is p.VAR_KEYWORD for p in parameters)
        by_name = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        if not self._open and not by_name.issuperset(GIVEN):
            raise ValueError(
                f"a reward is called as f(prompt=..., response=..., <columns of the row>), and {self.name}{signature} "
                "takes no such arguments: name its parameters prompt and response"
            )
        named = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in GIVEN]
        bound = function.keywords if isinstance(function, functools.partial) else {}
        self._named = {p.name for p in named} - set(bound)
        self._closed = {*GIVEN, *bound}
        #: Columns that it cannot be called without.
        self.required = tuple(p.name for p in named if p.default is p.empty)

    @property
    def reads_columns(self) -> bool:
        """True if it takes any column, needed or not."""
        return self._open or bool(self._named)

    @property
    def name(self) -> str:
        """Name of the function, through partials."""
        function = self.function
        while isinstance(function, functools.partial):
            function = function.func
        return getattr(function, "__name__", type(function).__name__)

    def __call__(self, prompt: str, response: str, columns: Mapping[str, Any]) -> Any:
        """Call the function."""
        wanted = {k: v for k, v in columns.items() if k not in self._closed and (self._open or k in self._named)}
        return self.function(prompt=prompt, response=response, **wanted)


def missing_column(reward: str, column: str, columns: Collection[str]) -> ValueError:
    """The error for a column that a reward reads and the data does not have."""
    close = difflib.get_close_matches(column, columns, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    has = ", ".join(sorted(columns)) or "none"
    return ValueError(f"reward {reward!r} needs the column {column!r} of the data, which has: {has}{hint}")
