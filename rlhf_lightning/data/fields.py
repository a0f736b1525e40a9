"""One row's fields under our column names, read with checks that name the column of the data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_lightning.data.checks import Kind, RowError

Message = dict[str, Any]
Turns = list[Message]

#: Role names in the wild -> the names that chat templates know.
ROLES: Mapping[str, str] = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "ipython": "tool",
}
#: Columns that go by several names.
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "response": ("response", "completion"),
    "responses": ("responses", "completions"),
    "scores": ("scores", "rewards"),
    "score": ("score", "reward"),
    "steps": ("steps", "completions"),
}


class Fields:
    """A row's fields under our column names, with errors that name the column of the data."""

    def __init__(self, values: Mapping[str, Any], columns: Mapping[str, str | None]) -> None:
        self._values, self._columns = values, columns

    def column(self, name: str) -> str:
        """The data's name of one of our columns."""
        if mapped := self._columns.get(name):
            return mapped
        return next((alias for alias in _ALIASES.get(name, ()) if alias in self._values), name)

    def get(self, name: str) -> Any:
        """The value, None when it is absent or null."""
        column = self.column(name)
        if column in self._values:
            return self._values[column]
        value: Any = self._values
        for part in column.split("."):  # a mapped column may reach into a nested object
            if not isinstance(value, Mapping):
                return None
            value = value.get(part)
        return value

    def has(self, *names: str) -> bool:
        """Whether every one of the columns is there and not null."""
        return all(self.get(name) is not None for name in names)

    def need(self, name: str) -> Any:
        """The value; RowError when it is absent or null."""
        value = self.get(name)
        if value is None:
            raise RowError(Kind.MISSING, f"no {self.column(name)!r} (columns: {', '.join(map(str, self._values))})")
        return value

    def text(self, name: str) -> str:
        """A string field."""
        value = self.need(name)
        if not isinstance(value, str):
            raise self.wrong(name, "text", value)
        return value

    def turns(self, name: str) -> Turns:
        """A list of messages, or one message, in either spelling."""
        value = self.need(name)
        messages = [value] if isinstance(value, Mapping) else value
        if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
            raise self.wrong(name, "a list of messages", value)
        return [self._message(name, message) for message in messages]

    def either(self, name: str) -> str | Turns:
        """Text or messages."""
        return self.text(name) if isinstance(self.need(name), str) else self.turns(name)

    def number(self, name: str) -> float:
        """A finite number; CSV files hold numbers as text."""
        value = self.need(name)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise self.wrong(name, "a number", value) from None
        if isinstance(value, bool) or not math.isfinite(number):
            raise self.wrong(name, "a finite number", value)
        return number

    def numbers(self, name: str, *, flags: bool = False) -> list[float]:
        """A list of finite numbers; with ``flags``, true and false count as 1 and 0."""
        values = self.need(name)
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise self.wrong(name, "a list of numbers", values)
        listed = [int(value) if flags and isinstance(value, bool) else value for value in values]
        column = self.column(name)
        return [Fields({f"{column}[{at}]": value}, {}).number(f"{column}[{at}]") for at, value in enumerate(listed)]

    def inside(self, values: Mapping[str, Any], columns: Mapping[str, str | None] | None = None) -> Fields:
        """The fields of an object inside this row, under the same column map or another one."""
        return Fields(values, self._columns if columns is None else columns)

    def flag(self, name: str) -> bool:
        """True or false; also 0 and 1, and either as text."""
        value = self.need(name)
        known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
        if str(value).lower() not in known:
            raise self.wrong(name, "true or false", value)
        return known[str(value).lower()]

    def wrong(self, name: str, expected: str, value: Any) -> RowError:
        """A RowError that says what the column should hold."""
        shown = f"{type(value).__name__} {str(value)[:40]!r}"
        return RowError(Kind.TYPE, f"{self.column(name)!r} must be {expected}, not {shown}")

    def _message(self, name: str, message: Any) -> Message:
        if not isinstance(message, Mapping):
            raise self.wrong(name, "a list of messages", message)
        spelt = ("from", "value") if "from" in message else ("role", "content")
        role, content = (message.get(key) for key in spelt)
        if str(role) not in ROLES:
            raise RowError(Kind.TYPE, f"{self.column(name)!r} has a turn of role {role!r}; known: {', '.join(ROLES)}")
        if content is None and message.get("tool_calls"):
            content = ""
        if isinstance(content, list):  # content parts; only text ones can be used
            content = "".join(part["text"] for part in content) if all(map(_is_text_part, content)) else None
        if not isinstance(content, str):
            raise self.wrong(name, "messages with text content", message)
        # Arrow tables fill fields that a message does not have with nulls; a template must not see them.
        others = {key: value for key, value in message.items() if key not in spelt and value is not None}
        return {**others, "role": ROLES[str(role)], "content": content}


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
