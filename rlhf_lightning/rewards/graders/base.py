"""Interface of graders, and their grades of responses."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from rlhf_lightning.rewards.graders.templates import Context

#: Why a grader has no score: it raised, its time was up, or what it had to read could not be understood.
Failure = Literal["error", "timeout", "parse"]


@dataclass(frozen=True)
class Grade:
    """Grade of one response; a failure is a score of 0 that is counted."""

    score: float
    failure: Failure | None = None
    message: str = ""  #: of a failure
    #: grades that this one is made of, by their path of names
    parts: Mapping[str, Grade] = field(default_factory=dict)


class Grader(Protocol):
    """Something that grades responses, made from a spec."""

    name: str
    pass_threshold: float | None  #: from which score a response passes; only logged
    parts: Sequence[str]  #: paths of the graders within it

    def __call__(self, contexts: Sequence[Context]) -> list[Grade]:
        """One grade a response, in order; never raises for what a response or a grader's code does."""
        ...

    def check(self, columns: Collection[str]) -> None:
        """Refuse data without the columns that the grader reads.

        Raises:
            ValueError: the message names the option and the column.
        """
        ...

    def close(self) -> None:
        """Let go of processes."""
        ...


def failed(error: Exception, context: Context) -> Grade:
    """The grade where a field was not there: unreadable where the response is no JSON, else an error of the data."""
    unread = context.broken_json and "sample.output_json" in str(error)
    return Grade(0.0, "parse" if unread else "error", str(error))


class Options:
    """The fields of a grader's spec, taken one by one; what nobody took is unknown.

    Args:
        spec: the grader as a mapping.
        where: the option that it stands under, such as ``reward.spec.graders.exact``.
        fields: every field of the type of grader.

    Raises:
        ValueError: the spec is no mapping, or has a field that the type does not know.
    """

    def __init__(self, spec: Any, where: str, fields: Collection[str]) -> None:
        if not isinstance(spec, Mapping):
            raise ValueError(f"{where} must be a mapping with a type, not {type(spec).__name__}")
        self.where, self._spec = where, spec
        if unknown := sorted(set(map(str, spec)) - {"type", "name", "pass_threshold", *fields}):
            raise ValueError(
                f"{where}.{unknown[0]}: there is no such field; {spec.get('type')} has {', '.join(fields)}"
            )

    def text(self, name: str, default: str | None = None, *, among: Collection[str] = ()) -> str:
        """A text, one of some where ``among`` says which.

        Raises:
            ValueError: missing, no text, or another one.
        """
        value = self._spec.get(name, default)
        if not isinstance(value, str):
            raise ValueError(f"{self.where}.{name} must be a text" + (f", not {value!r}" if name in self._spec else ""))
        if among and value not in among:
            raise ValueError(f"{self.where}.{name}={value!r} is not one of {', '.join(among)}")
        return value

    def number(self, name: str, default: float | None = None) -> float | None:
        """A number; None where there is none and no default.

        Raises:
            ValueError: no number.
        """
        value = self._spec.get(name, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{self.where}.{name}={value!r} must be a number")
        return float(value)

    def raw(self, name: str, default: Any = None) -> Any:
        """A field as it stands."""
        return self._spec.get(name, default)

    @property
    def pass_threshold(self) -> float | None:
        """From which score a response passes."""
        return self.number("pass_threshold")

    @property
    def name(self) -> str:
        """The grader's name; its type where it has none."""
        return str(self._spec.get("name") or self._spec.get("type"))
