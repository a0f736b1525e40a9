"""One row's fields under our column names, read with checks that name the column of the data."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rlhf_lightning.data.rows.file_readers import Unreadable
from rlhf_lightning.data.rows.messages import Turns, messages_in, shown, turns_of
from rlhf_lightning.data.rows.problems import ProblemKind, RowError
from rlhf_lightning.data.spec import NO_COLUMN

#: Value of a column that a row does not have.
ABSENT = object()
#: Largest number that training can hold, in single precision.
_LARGEST = 3.4028234e38
#: Our columns that hold text or messages, which some tables store as JSON text.
_CONVERSATIONAL = frozenset(
    ("prompt", "chosen", "rejected", "response", "messages", "conversations", "response_0", "response_1")
)
#: Columns that go by several names.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "response": ("response", "completion"),
    "responses": ("responses", "completions"),
    "scores": ("scores", "rewards"),
    "score": ("score", "reward"),
    "steps": ("steps", "completions"),
    "win_chosen": ("win_chosen", "chosen_probs_win"),  # SPPO's published data
    "win_rejected": ("win_rejected", "chosen_probs_lose"),
}


def looked_up(values: Mapping[str, Any], column: str) -> Any:
    """The value of a column, a dot reaching into nested objects; ABSENT where there is none."""
    if column in values:
        return values[column]
    value: Any = values
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return ABSENT
        value = value[part]
    return value


def columns_read(columns: Collection[str], mapping: Mapping[str, str]) -> set[str]:
    """Return some columns with those of the data that a column map reads; of a dotted name its outer column too."""
    return {*columns, *mapping.values(), *(column.partition(".")[0] for column in mapping.values())}


def missing_columns(mapping: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, str]:
    """The part of a column map whose columns are neither in a row nor in objects of its lists, such as responses."""
    listed = [part for value in values.values() if isinstance(value, list) for part in value]
    objects = [values, *(part for part in listed if isinstance(part, Mapping))]
    return {
        name: column
        for name, column in mapping.items()
        if column != NO_COLUMN and all(looked_up(part, column) is ABSENT for part in objects)
    }


def missing_columns_message(
    mapping: Mapping[str, str], names: Collection[str], option: str = "data.spec.columns"
) -> str:
    """A message about mapped columns that the data lacks, with the closest column that it has."""
    parts = []
    for name, column in mapping.items():
        close = difflib.get_close_matches(column, map(str, names), n=1)
        parts.append(f"{option}.{name}={column}: no such column" + (f" (did you mean {close[0]!r}?)" if close else ""))
    return "; ".join(parts)


class Fields:
    """A row's fields under our column names, with errors that name the column of the data."""

    def __init__(self, values: Mapping[str, Any], columns: Mapping[str, str]) -> None:
        self._values, self._columns = values, columns
        self._parsed: dict[str, Any] = {}  # of columns that hold messages as JSON text

    def column(self, name: str) -> str:
        """The data's name of one of our columns."""
        if mapped := self._columns.get(name):
            return mapped
        return next((alias for alias in ALIASES.get(name, ()) if alias in self._values), name)

    def _raw(self, name: str) -> Any:
        column = self.column(name)
        value = ABSENT if column == NO_COLUMN else looked_up(self._values, column)
        return None if value is ABSENT else value

    def get(self, name: str) -> Any:
        """The value, None when it is absent or null.

        Raises:
            RowError: it could not be decoded, or is text that begins like messages but is not JSON.
        """
        value = self._raw(name)
        if isinstance(value, Unreadable):
            raise RowError(ProblemKind.BROKEN, f"{self.column(name)!r}: {value.reason}")
        if name in _CONVERSATIONAL and isinstance(value, str):
            if name not in self._parsed:
                self._parsed[name] = messages_in(value, self.column(name))
            return self._parsed[name]
        return value

    def has(self, *names: str) -> bool:
        """Return whether all of the columns are there and not null."""
        return all(self._raw(name) is not None for name in names)

    def need(self, name: str) -> Any:
        """The value; RowError when it is absent or null."""
        value = self.get(name)
        if value is None:
            raise RowError(ProblemKind.MISSING, f"no {self.column(name)!r} ({self.listed()})")
        return value

    def listed(self) -> str:
        """The row's columns, for messages; those without a value are marked."""
        names = [f"{name} (null)" if value is None else str(name) for name, value in self._values.items()]
        return f"columns: {', '.join(names) or 'none'}"

    def text(self, name: str) -> str:
        """A string field.

        Raises:
            RowError: it is not a string, or holds messages as JSON text.
        """
        value = self.need(name)
        if not isinstance(value, str):
            raise self.wrong(name, "text", value)
        if not isinstance(messages_in(value, self.column(name)), str):
            raise RowError(
                ProblemKind.TYPE,
                f"{self.column(name)!r} must be text, but it holds messages as JSON text: map it to prompt, response "
                "or messages with data.spec.columns",
            )
        return value

    def turns(self, name: str) -> Turns:
        """A list of messages, or one message, in either spelling."""
        return turns_of(self.need(name), self.column(name))

    def either(self, name: str) -> str | Turns:
        """Text or messages."""
        value = self.need(name)
        if isinstance(value, str):
            return value
        if not isinstance(value, Sequence | Mapping) or isinstance(value, bytes) or not value:
            raise self.wrong(name, "text or a list of messages", value)
        return turns_of(value, self.column(name))

    def tools(self) -> list[dict[str, Any]]:
        """The tools of a conversation, also where they are stored as JSON text; empty without any."""
        value = self.get("tools")
        if isinstance(value, str) and value.strip():
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise self._no_tools(value) from error
        if not value or value == "null":
            return []
        listed = [value] if isinstance(value, Mapping) else value
        if isinstance(listed, str) or not isinstance(listed, Sequence):
            raise self._no_tools(value)
        if not all(isinstance(tool, Mapping) and ("name" in tool or "function" in tool) for tool in listed):
            raise self._no_tools(value)
        return [dict(tool) for tool in listed]

    def _no_tools(self, value: Any) -> RowError:
        return self.wrong("tools", "a list of tools with their names (data.spec.columns.tools=- reads none)", value)

    def number(self, name: str) -> float:
        """A finite number; CSV files hold numbers as text."""
        value = self.need(name)
        try:
            number = float(value)
        except OverflowError:
            raise self.wrong(name, "a finite number", value) from None
        except (TypeError, ValueError):
            raise self.wrong(name, "a number", value) from None
        if isinstance(value, bool) or not math.isfinite(number) or abs(number) > _LARGEST:
            raise self.wrong(name, "a finite number (of single precision)", value)
        return number

    def numbers(self, name: str, *, flags: bool = False) -> list[float]:
        """A list of finite numbers; with ``flags``, true and false count as 1 and 0."""
        values = self.need(name)
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise self.wrong(name, "a list of numbers", values)
        listed = [int(value) if flags and isinstance(value, bool) else value for value in values]
        column = self.column(name)
        return [Fields({f"{column}[{at}]": value}, {}).number(f"{column}[{at}]") for at, value in enumerate(listed)]

    def inside(self, values: Mapping[str, Any], columns: Mapping[str, str] | None = None) -> Fields:
        """The fields of an object inside this row, under the same column map or another one."""
        return Fields(values, self._columns if columns is None else columns)

    def flag(self, name: str) -> bool:
        """True or false; also 0 and 1, and either as text."""
        value = self.need(name)
        flags = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
        if str(value).lower() not in flags:
            raise self.wrong(name, "true or false", value)
        return flags[str(value).lower()]

    def wrong(self, name: str, expected: str, value: Any) -> RowError:
        """A RowError that states what the column should hold."""
        return RowError(ProblemKind.TYPE, f"{self.column(name)!r} must be {expected}, not {shown(value)}")
