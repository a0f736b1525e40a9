"""``{{ item.field }}`` and ``{{ sample.output_text }}`` in a grader's texts.

Our own resolver, not a template language: a path of names and list positions, nothing that computes. A text is
resolved once; braces in what it is filled with stay braces.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Fields of ``sample``.
SAMPLE_FIELDS = ("output_text", "output_json", "finish_reason")

_SLOT = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_PATH = re.compile(r"\s*(item|sample)((?:\.\w+|\[\d+\])+)\s*", re.ASCII)
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]", re.ASCII)


class FieldError(ValueError):
    """A path that leads nowhere in one response or row."""


@dataclass(frozen=True)
class Context:
    """Inputs of a grader for one response."""

    sample: Mapping[str, Any]  #: :data:`SAMPLE_FIELDS`
    item: Mapping[str, Any]  #: the row's columns
    row: str = ""  #: "file:row" of the prompt, for messages
    broken_json: bool = field(default=False)  #: whether the response is no JSON, so ``output_json`` is None


class Template:
    """A text with slots.

    Args:
        text: such as ``"{{ item.answer }}"``.
        where: the option that it stands under, for messages.

    Raises:
        ValueError: a slot that is no path in ``item`` or ``sample``, an unknown field of ``sample``, a lone brace pair.
    """

    def __init__(self, text: str, where: str) -> None:
        self.where = where
        #: Literal texts and paths in turn; a path is the namespace, then names and positions.
        self._parts: list[str | tuple[str | int, ...]] = []
        end = 0
        for slot in _SLOT.finditer(text):
            self._parts += [text[end : slot.start()], self._path(slot[1])]
            end = slot.end()
        self._parts.append(text[end:])
        if lone := next((part for part in self._parts[::2] if "{{" in part or "}}" in part), None):
            raise ValueError(f"{where}: braces without their partner in {lone!r}")

    def _path(self, text: str) -> tuple[str | int, ...]:
        match = _PATH.fullmatch(text)
        if match is None:
            raise ValueError(
                f"{self.where}: {{{{{text}}}}} is no field; write {{{{ item.column }}}}, {{{{ sample.output_text }}}} "
                "or a path such as {{ item.answers[0].text }}"
            )
        steps = [name or int(position) for name, position in _STEP.findall(match[2])]
        if match[1] == "sample" and steps[0] not in SAMPLE_FIELDS:
            raise ValueError(f"{self.where}: a sample has no field {steps[0]!r}; it has {', '.join(SAMPLE_FIELDS)}")
        return (match[1], *steps)

    @property
    def paths(self) -> list[tuple[str | int, ...]]:
        """Every path in the text."""
        return [part for part in self._parts if isinstance(part, tuple)]

    @property
    def columns(self) -> list[str]:
        """Columns of the row that the text needs."""
        return [str(path[1]) for path in self.paths if path[0] == "item"]

    def check(self, columns: Iterable[str]) -> None:
        """Refuse columns that do not have what the text needs.

        Raises:
            ValueError: the message has the closest name.
        """
        names = sorted(columns)
        for name in self.columns:
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                hint = f" Did you mean item.{close[0]}?" if close else ""
                raise ValueError(
                    f"{self.where}: the data has no column {name!r}.{hint} It has {', '.join(names) or 'none'}"
                )

    def render(self, context: Context) -> str:
        """The text for one response.

        Raises:
            FieldError: a path that leads nowhere, or to null.
        """
        return "".join(part if isinstance(part, str) else _text(_value(part, context)) for part in self._parts)


def _value(path: tuple[str | int, ...], context: Context) -> Any:
    value: Any = context.sample if path[0] == "sample" else context.item
    for depth, step in enumerate(path[1:], start=2):
        in_range = isinstance(step, int) and isinstance(value, (list, tuple)) and step < len(value)
        if in_range or (isinstance(value, Mapping) and step in value):
            value = value[step]
            continue
        raise FieldError(f"{_written(path[:depth])} is not there{_of(context)}")
    if value is None:
        raise FieldError(f"{_written(path)} is null{_of(context)}")
    return value


def _written(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def _of(context: Context) -> str:
    return f" ({context.row})" if context.row else ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
