"""Responses of the groups to the same prompts, side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_lightning.report.grouping import Group
from rlhf_lightning.report.reading import Run

#: Control characters, lone surrogates, and marks that change the reading direction: made visible, never applied.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Response:
    """A response as the report shows it."""

    text: str
    tokens: int | None = None
    finished: bool | None = None
    kl: float | None = None  #: log-ratio to the reference, nats


@dataclass(frozen=True)
class Comparison:
    """One prompt with the responses of every column.

    Attributes:
        prompt: the prompt as the model saw it.
        row: "file:row" of the data.
        responses: in the order of the columns; None if a column has none.
    """

    prompt: str
    row: str
    responses: tuple[Response | None, ...]


@dataclass(frozen=True)
class SampleTable:
    """Prompts by columns: the data's own response, the untrained policy, and groups."""

    columns: tuple[str, ...]
    rows: tuple[Comparison, ...]


Column = tuple[str, dict[tuple[str, str], dict[str, Any]]]  #: a name, and samples by row and prompt


def compare(groups: Sequence[Group], *, columns: int = 6, prompts: int = 8, characters: int = 1500) -> SampleTable:
    """Compare the last samples of the best groups for the prompts that most of them share.

    Each group is represented by its first seed with samples of a trained policy. The untrained policy has its own
    column, from the first group that sampled before training.

    Args:
        groups: groups, best first.
        columns: maximum number of groups.
        prompts: maximum number of prompts.
        characters: longer texts are cut and marked.
    """
    sampled_runs = [(group, run) for group in groups if (run := _sampled(group)) is not None][:columns]
    tables = [(column_of(group, run), _by_prompt(run.samples[max(run.samples)])) for group, run in sampled_runs]
    before = next((run.samples[0] for group in groups for run in _finished(group) if run.samples.get(0)), None)
    if before is not None:
        tables.insert(0, ("before training", _by_prompt(before)))
    return side_by_side(tables, prompts=prompts, characters=characters)


def side_by_side(tables: Sequence[Column], *, prompts: int = 8, characters: int = 1500) -> SampleTable:
    """Compare the samples of columns for the prompts that most of them share, next to the data's own response.

    Args:
        tables: name of each column, and its samples by row and prompt.
        prompts: maximum number of prompts.
        characters: longer texts are cut and marked.
    """
    if not tables:
        return SampleTable((), ())
    counts: dict[tuple[str, str], int] = {}
    for _, table in tables:
        for key in table:
            counts[key] = counts.get(key, 0) + 1
    keys = sorted(counts, key=lambda key: -counts[key])[:prompts]
    data = {key: Response(clean(_first(tables, key).get("data", ""), characters)) for key in keys}
    rows = tuple(
        Comparison(
            clean(key[1], characters),
            key[0],
            (data[key], *(_response(table[key], characters) if key in table else None for _, table in tables)),
        )
        for key in keys
    )
    return SampleTable(("in the data", *(name for name, _ in tables)), rows)


def column_of(group: Group, run: Run) -> str:
    """Name of a run's column: the group's label, with the seed if the group has several runs."""
    return group.label if len(group.runs) == 1 or run.seed is None else f"{group.label} (seed {run.seed})"


def _sampled(group: Group) -> Run | None:
    return next((run for run in _finished(group) if any(rows for step, rows in run.samples.items() if step)), None)


def _finished(group: Group) -> tuple[Run, ...]:
    return group.done or group.runs


def _by_prompt(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(str(row.get("row", "")), str(row["prompt"])): row for row in rows if "prompt" in row}


def _first(tables: Sequence[tuple[str, dict[Any, dict[str, Any]]]], key: Any) -> dict[str, Any]:
    return next(table[key] for _, table in tables if key in table)


def _response(row: dict[str, Any], characters: int) -> Response:
    kl, tokens, finished = row.get("kl"), row.get("tokens"), row.get("finished")
    return Response(
        clean(row.get("response", ""), characters),
        tokens if isinstance(tokens, int) else None,
        finished if isinstance(finished, bool) else None,
        float(kl) if isinstance(kl, (int, float)) else None,
    )


def clean(text: Any, characters: int) -> str:
    """Make invisible characters visible and cut the text to a length. The page does the escaping."""
    shown = _INVISIBLE.sub(lambda match: _visible(match.group()), str(text).replace("\r\n", "\n"))
    return shown if len(shown) <= characters else f"{shown[:characters]} … ({len(shown) - characters} more characters)"


def _visible(character: str) -> str:
    """Symbol of a control character; the replacement character for others."""
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"
