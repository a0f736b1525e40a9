"""Problems of rows, with the file and row of each, and the report that decides whether a run stops.

Every check runs before weights load. A row that cannot be used is never dropped silently: it becomes a
:class:`Problem` with its file and row number, it is counted in the :class:`DataReport`, and
``data.spec.on_bad_row`` decides whether the run stops.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from itertools import groupby, islice
from typing import Any

from rlhf_lightning.data.kinds import KINDS
from rlhf_lightning.data.spec import DataSpec

#: Problems kept with their text; later ones are only counted.
MAX_LISTED = 10_000
#: Problems shown in an error message.
_SHOWN = 10


class ProblemKind(StrEnum):
    """Kinds of problems; the value is what users read."""

    BROKEN = "broken row"
    MISSING = "missing field"
    TYPE = "wrong type"
    TEMPLATE = "template error"
    EMPTY_PROMPT = "empty prompt"
    EMPTY_RESPONSE = "empty response"
    NO_BOUNDARY = "no boundary"
    IDENTICAL = "chosen equals rejected"
    UNSCORED = "nothing scored"
    TWO_BOS = "misplaced BOS"
    NO_EOS = "no EOS"
    TWO_EOS = "EOS inside"
    TOO_LONG = "too long"
    DUPLICATE = "duplicate"
    TRUNCATED = "truncated"


#: Reported, but the row is used.
WARNINGS = frozenset({ProblemKind.DUPLICATE, ProblemKind.TRUNCATED})

#: What to do about each kind, for reports.
ADVICE: Mapping[ProblemKind, str] = {
    ProblemKind.BROKEN: "repair the row or the file, or leave it out",
    ProblemKind.MISSING: "fill the field, or map it with data.spec.columns",
    ProblemKind.TYPE: "convert the field, or map another one with data.spec.columns",
    ProblemKind.TEMPLATE: "choose another data.spec.template, or remove from the row what the template does not show",
    ProblemKind.EMPTY_PROMPT: "fill the prompt",
    ProblemKind.EMPTY_RESPONSE: "fill the response",
    ProblemKind.NO_BOUNDARY: "raise data.spec.max_prompt_length, or leave prompts whole: data.spec.prompt_start=any, "
    "data.spec.prompt_end=any",
    ProblemKind.IDENTICAL: "a pair without a difference teaches nothing: leave it out",
    ProblemKind.UNSCORED: "raise the length limits, or set data.spec.mask",
    ProblemKind.TWO_BOS: "remove the BOS text from the row or from the template",
    ProblemKind.NO_EOS: "use a template that ends a turn with an end-of-turn token",
    ProblemKind.TWO_EOS: "remove the end-of-sequence text from the row",
    ProblemKind.TOO_LONG: "raise data.spec.max_length, or cut with data.spec.too_long=keep_end",
    ProblemKind.DUPLICATE: "rows with the same tokens weigh twice",
    ProblemKind.TRUNCATED: "cut as data.spec.too_long asks; a cut response has no EOS",
}


class DataError(ValueError):
    """The data cannot be used as configured; the message names the rows or the option."""


class RowError(Exception):
    """One row cannot be used. Raised by converters, turned into a :class:`Problem` where the row number is known."""

    def __init__(self, kind: ProblemKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


def lone_surrogate(text: str) -> str | None:
    """The first half of a surrogate pair that stands alone in a text, as an escape; None: the text is Unicode."""
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return ascii(text[error.start])
    return None


def _printable(text: str) -> str:
    """A text that every terminal can print: lone surrogates as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class SpecialIds:
    """The token ids that the checks look for."""

    bos: int | None
    ends: frozenset[int]  #: EOS and the template's end-of-turn token
    #: The BOS token opens every turn of a conversation, so more than one of it is right.
    bos_marks_turns: bool = False


def check_ids(
    prompt: Sequence[int],
    responses: Sequence[Sequence[int]],
    masks: Sequence[Sequence[bool]],
    special: SpecialIds,
    *,
    cut: bool = False,
    pair: bool | None = None,
) -> None:
    """Check one tokenised group.

    Args:
        prompt: prompt ids.
        responses: ids of each response.
        masks: for each response, which of its tokens are scored.
        special: ids of BOS and of the tokens that end a response.
        cut: the group was truncated, so a response may lack its EOS.
        pair: the responses are a chosen and a rejected one, which must differ; None: two responses are.

    Raises:
        RowError: no token predicts the first one of a response, no token of one is scored, the responses are equal, a
            BOS is misplaced, or a response does not end with EOS or has one inside a scored turn.
    """
    if not prompt:
        raise RowError(
            ProblemKind.EMPTY_PROMPT, "the prompt has no token, so nothing predicts the first response token"
        )
    _check_bos(prompt, responses, special)
    pair = len(responses) == 2 if pair is None else pair
    slots = KINDS["preference"].slots
    for number, (response, mask) in enumerate(zip(responses, masks, strict=True)):
        which = slots[number] if pair else "response"
        if not any(mask):
            raise RowError(ProblemKind.UNSCORED, f"{which}: none of its {len(response)} tokens is scored")
        if not cut and not (response[-1] in special.ends and mask[-1]):
            raise RowError(
                ProblemKind.NO_EOS, f"{which}: its last token is {response[-1]}, not one of {sorted(special.ends)}"
            )
        inner = [a for a, b, c in zip(response, mask, mask[1:], strict=False) if b and c]
        if special.ends.intersection(inner):
            raise RowError(ProblemKind.TWO_EOS, f"{which}: an end-of-sequence token stands before its end")
    if pair and list(responses[0]) == list(responses[1]):
        raise RowError(ProblemKind.IDENTICAL, f"both have the same {len(responses[0])} tokens")


def _check_bos(prompt: Sequence[int], responses: Sequence[Sequence[int]], special: SpecialIds) -> None:
    bos = special.bos
    if bos is None:
        return
    if list(prompt[:2]) == [bos, bos]:
        raise RowError(ProblemKind.TWO_BOS, "the prompt starts with two BOS tokens")
    if bos in special.ends:  # one token is both (GPT-2): it is right at an end, and TWO_EOS covers the others
        return
    if any(response[0] == bos for response in responses if response):
        raise RowError(ProblemKind.TWO_BOS, "a response starts with a BOS token")
    if not special.bos_marks_turns and (bos in prompt[1:] or any(bos in response for response in responses)):
        raise RowError(ProblemKind.TWO_BOS, "a BOS token is inside the row; only the first token may be one")


@dataclass(frozen=True)
class Problem:
    """Something wrong with one row."""

    row: str  #: "file:row"
    kind: ProblemKind
    message: str

    @property
    def warning(self) -> bool:
        """True where the row is used nevertheless."""
        return self.kind in WARNINGS

    def __str__(self) -> str:
        return f"{self.row}: {self.kind}: {self.message}"


def grouped(problems: Iterable[Problem]) -> Iterator[tuple[Problem, int]]:
    """Yield every problem with its number of rows: many rows of a damaged file have the same problem."""
    for (kind, _), alike in groupby(problems, key=lambda problem: (problem.kind, problem.message)):
        listed = [*alike]
        if kind is ProblemKind.BROKEN:
            yield listed[0], len(listed)
        else:
            yield from ((problem, 1) for problem in listed)


@dataclass
class DataReport:
    """Counts of all rows between a source and its examples.

    ``rows == kept + filtered + sum(excluded.values())`` always holds.
    """

    source: str
    kind: str
    template: str = ""
    rows: int = 0  #: rows read
    kept: int = 0  #: rows that can be used
    groups: int = 0  #: groups made of them: pairs, labelled responses, lists, ...
    filtered: int = 0  #: rows left out because of ``data.spec.label``
    formats: dict[str, int] = field(default_factory=dict)  #: rows by recognised format
    excluded: dict[str, int] = field(default_factory=dict)  #: rows left out, by kind of problem
    warnings: dict[str, int] = field(default_factory=dict)  #: rows kept with a warning, by kind of problem
    prompt_tokens: int = 0
    response_tokens: int = 0
    scored_tokens: int = 0
    unknown_tokens: int = 0  #: response tokens that are the tokenizer's unknown token
    cut_prompts: int = 0  #: prompts cut because of ``data.spec.prompt_start`` or ``prompt_end``
    cut_characters: int = 0  #: characters that were cut from them
    conversations: int = 0  #: rows kept that went through the chat template
    unscored_turns: int = 0  #: assistant turns not scored because the template shows them differently later on
    hidden_reasoning: int = 0  #: earlier assistant turns whose reasoning the template leaves out
    #: Of a mixture, by the name of a source: rows read, rows kept, and the first problem.
    parts: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    boundary_checked: int = 0  #: rows whose prompt was also tokenised together with its responses
    boundary_mismatched: int = 0  #: of those, rows where that gave other tokens
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add(self, problem: Problem) -> None:
        """Count a problem and keep its text while there is room."""
        counts = self.warnings if problem.warning else self.excluded
        counts[problem.kind.value] = counts.get(problem.kind.value, 0) + 1
        if len(self.problems) < MAX_LISTED:
            self.problems.append(replace(problem, row=_printable(problem.row), message=_printable(problem.message)))

    def count_part(self, name: str, *, rows: int = 0, kept: int = 0, problem: str = "") -> None:
        """Count rows of a mixture's source; only its first problem is kept."""
        read, used, first = self.parts.get(name, (0, 0, ""))
        self.parts[name] = (read + rows, used + kept, first or _printable(problem))

    def note(self, text: str) -> None:
        """Keep a note about the whole data set, once."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def bad(self) -> int:
        """Rows left out because of a problem."""
        return sum(self.excluded.values())

    @property
    def supervised_fraction(self) -> float:
        """Scored tokens / all tokens."""
        return self.scored_tokens / max(self.prompt_tokens + self.response_tokens, 1)

    @property
    def mismatch_rate(self) -> float:
        """Share of the checked rows whose tokens merge across the boundary of prompt and response."""
        return self.boundary_mismatched / max(self.boundary_checked, 1)

    def enforce(self, spec: DataSpec) -> None:
        """Stop before training on data that the spec does not accept.

        Raises:
            DataError: rows are bad and ``on_bad_row`` is ``error``; rows are too long and ``too_long`` is ``error``;
                no row is left, or none of a mixture's source; or more rows are left out than ``max_left_out`` allows.
                The message lists the first problems with file and row.
        """
        tolerated = {ProblemKind.TOO_LONG.value} if spec.too_long != "error" else set()
        if spec.on_bad_row == "exclude":
            tolerated |= {kind.value for kind in ProblemKind if kind is not ProblemKind.TOO_LONG}
        fatal = {kind for kind in self.excluded if kind not in tolerated}
        if fatal:
            count = sum(self.excluded[kind] for kind in fatal)
            raise DataError(self._message(f"{count} of {self.rows} rows of {self.source} cannot be used", fatal))
        if self.groups == 0:
            why = "it holds no rows" if self.rows == 0 else f"none of its {self.rows} rows can be used"
            if self.rows and self.filtered == self.rows:
                why = f"data.spec.label={spec.label} leaves none of its {self.rows} rows"
            if self.kept:
                why = f"its {self.kept} rows give no {KINDS[self.kind].noun}: {'; '.join(self.notes)}"
            raise DataError(self._message(f"{self.source}: {why}", set(self.excluded)))
        self._enforce_parts()
        self._enforce_share(spec)

    def _enforce_parts(self) -> None:
        """Raise DataError where no row of a mixture's source can be used."""
        for name, (rows, kept, first) in self.parts.items():
            if not kept:
                raise DataError(
                    f"{self.source}: none of the {rows} rows of {name} can be used"
                    f"{f', the first one because: {first}' if first else ''}\n"
                    f"Map its columns with data.source.columns.{name}, or remove {name} from data.source.sources and "
                    "data.source.weights"
                )

    def _enforce_share(self, spec: DataSpec) -> None:
        """Raise DataError where a larger share is left out than ``max_left_out`` allows."""
        unfiltered = self.rows - self.filtered
        if self.bad <= spec.max_left_out * unfiltered:
            return
        share = math.ceil(100 * self.bad / unfiltered) / 100
        reasons = ", ".join(f"{count} {kind}" for kind, count in Counter(self.excluded).most_common(3))
        headline = (
            f"{self.bad} of {unfiltered} rows of {self.source} are left out ({self.bad / unfiltered:.0%}: {reasons}), "
            f"more than data.spec.max_left_out={spec.max_left_out:g} allows. Repair them, or allow it with "
            f"data.spec.max_left_out={share:g}"
        )
        raise DataError(self._message(headline, set(self.excluded), excludable=False))

    def _message(self, headline: str, kinds: set[str], *, excludable: bool = True) -> str:
        listed = [problem for problem in self.problems if problem.kind.value in kinds]
        lines = [headline + (":" if listed else "")]
        alike = [*islice(grouped(listed), _SHOWN)]
        lines += [f"  {problem}" + (f" ({count} rows)" if count > 1 else "") for problem, count in alike]
        hidden = sum(self.excluded[kind] for kind in kinds) - sum(count for _, count in alike)
        if hidden > 0:
            lines.append(f"  ... and {hidden} more")
        lines += [f"{ProblemKind(kind)}: {ADVICE[ProblemKind(kind)]}" for kind in sorted(kinds)]
        if excludable and kinds - {ProblemKind.TOO_LONG.value}:
            lines.append("or leave such rows out with data.spec.on_bad_row=exclude")
        return "\n".join([*lines, "`rlhf data inspect` with the same data options shows every problem"])

    def summary(self) -> str:
        """One line for the log: rows read and kept, and the problems of the others."""
        parts = [f"{self.source}: {self.kept} of {self.rows} rows kept"]
        if self.groups != self.kept:
            parts[0] += f" as {self.groups} {KINDS[self.kind].named(self.groups)}"
        parts += [f"{count} {kind}" for kind, count in sorted(self.excluded.items())]
        if self.filtered:
            parts.append(f"{self.filtered} with another label")
        parts += [f"{count} {kind} (kept)" for kind, count in sorted(self.warnings.items())]
        return ", ".join(parts)

    def by_kind(self) -> Counter[ProblemKind]:
        """Rows by kind of problem, warnings included."""
        return Counter({ProblemKind(kind): count for kind, count in {**self.excluded, **self.warnings}.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain containers only, for JSON and checkpoints."""
        return {**asdict(self), "problems": [[p.row, p.kind.value, p.message] for p in self.problems]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataReport:
        """Undo :meth:`to_dict`."""
        problems = [Problem(row, ProblemKind(kind), message) for row, kind, message in values["problems"]]
        parts = {name: (rows, kept, first) for name, (rows, kept, first) in values["parts"].items()}
        return cls(**{**values, "problems": problems, "parts": parts})
