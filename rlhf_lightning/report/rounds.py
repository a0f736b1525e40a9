"""Rounds of runs that draw their own responses, side by side: from ``rollouts/*.jsonl`` and ``metrics.csv``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rlhf_lightning.report.reading import Run, read_row, read_rows
from rlhf_lightning.report.sample_statistics import correlation, distinct, mean, tie_rate
from rlhf_lightning.report.samples import Response, clean
from rlhf_lightning.report.statistics import rounded

Item = TypeVar("Item")

#: Maximum number of rounds that are read, evenly spaced; rounds with a validation are preferred.
READ = 24
#: Maximum number of rounds in a table.
_COLUMNS = 12
#: Maximum number of rounds whose samples are shown.
_SHOWN = 6


@dataclass(frozen=True)
class Statistic:
    """A statistic: a line of the table and a panel of the picture."""

    name: str  #: name of the metric, or of a number of the samples
    label: str
    share: bool = False  #: shown in per cent

    @property
    def logged(self) -> bool:
        """True if the statistic is a logged metric."""
        return "/" in self.name

    def shown(self, value: float) -> str:
        """Format a value; a dash if there is none."""
        if not math.isfinite(value):
            return "-"
        return f"{value:.1%}" if self.share else rounded(value)


#: Metrics under ``val/`` are the last values of the round, after its steps; those under ``train/`` are means over its
#: steps. Numbers of the samples belong to the policy that the round began with.
STATISTICS = (
    Statistic("val/gold/reward", "gold reward after the round"),
    Statistic("score", "score of the samples"),
    Statistic("val/gold/kl", "KL to the initial policy after the round (nats)"),
    Statistic("val/kl/reference", "KL to the reference after the round (nats)"),
    Statistic("train/kl/initial", "KL of the samples to the initial policy (nats)"),
    Statistic("train/kl/reference", "KL of the samples to the reference (nats)"),
    Statistic("train/kl/round_start", "KL to the round's start (nats)"),
    Statistic("train/approx_kl", "KL to the round's start (nats a token)"),
    Statistic("length", "length of the samples (tokens)"),
    Statistic("truncated", "cut off", share=True),
    Statistic("tied", "tied pairs of samples", share=True),
    Statistic("score_length", "correlation of score and length"),
    Statistic("log_prob_better", "log-prob of better samples (nats)"),
    Statistic("log_prob_worse", "log-prob of worse samples (nats)"),
    Statistic("train/log_ratio/chosen", "log-ratio of the chosen (nats)"),
    Statistic("train/log_ratio/rejected", "log-ratio of the rejected (nats)"),
    Statistic("train/select/tie_rate", "ties seen by the selector", share=True),
    Statistic("train/select/cut_off_rate", "cut-off samples seen by the selector", share=True),
    Statistic("distinct_1", "distinct-1", share=True),
    Statistic("distinct_2", "distinct-2", share=True),
    Statistic("distinct_3", "distinct-3", share=True),
)


@dataclass(frozen=True)
class Round:
    """One round of a run.

    Attributes:
        number: from 0.
        step: optimiser steps taken before it was drawn.
        samples: rows of its file that its policy drew.
        numbers: values by name of the statistic; missing if unknown.
    """

    number: int
    step: int
    samples: tuple[Mapping[str, Any], ...]
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Followed:
    """A prompt with one sample of every round that used it."""

    prompt: str
    row: str
    responses: tuple[tuple[int, Response, str], ...]  #: number of the round, response, score


@dataclass(frozen=True)
class RoundTable:
    """Rounds of one run.

    Attributes:
        label: label of the run.
        rounds: the rounds that were read.
        count: number of all rounds of the run.
    """

    label: str
    rounds: tuple[Round, ...]
    count: int

    @property
    def columns(self) -> list[Round]:
        """Rounds that fit into a table."""
        validated = [any(name.startswith("val/") for name in one.numbers) for one in self.rounds]
        return chosen(self.rounds, validated, _COLUMNS)

    @property
    def statistics(self) -> list[Statistic]:
        """Statistics with a value in at least one round."""
        return [one for one in STATISTICS if any(one.name in each.numbers for each in self.rounds)]

    @property
    def lines(self) -> list[tuple[Statistic, list[str]]]:
        """Every statistic with its value in each column."""
        columns = self.columns
        return [(one, [one.shown(each.numbers.get(one.name, math.nan)) for each in columns]) for one in self.statistics]

    def followed(self, characters: int = 800) -> Followed | None:
        """The first prompt used by most rounds, with its first sample in each; None without samples.

        Args:
            characters: longer texts are cut and marked.
        """
        first_samples = [_first_samples(each.samples) for each in self.rounds]
        counts: dict[tuple[str, str], int] = {}
        for asked in first_samples:
            for key in asked:
                counts[key] = counts.get(key, 0) + 1
        if not counts:
            return None
        key = max(counts, key=lambda each: counts[each])
        first_rows = [
            (one.number, asked[key]) for one, asked in zip(self.rounds, first_samples, strict=True) if key in asked
        ]
        return Followed(
            clean(key[1], characters),
            key[0],
            tuple((number, _response(row, characters), _score(row)) for number, row in evenly(first_rows, _SHOWN)),
        )


def table_of(run: Run, label: str) -> RoundTable | None:
    """Read the rounds of a run; None if it drew none or kept no files of them.

    Args:
        run: the run.
        label: label of the run in the table.
    """
    files = sorted(path for path in (run.folder / "rollouts").glob("*.jsonl") if path.stem.isdigit())
    drawn = [(path, step) for path in files if (step := _first_version(path)) is not None]
    if not drawn:
        return None
    # Of several files drawn with the same weights, only the last was trained on; the others were skipped.
    ends = [*(step for _, step in drawn[1:]), math.inf]
    spans = [(path, step, end) for (path, step), end in zip(drawn, ends, strict=True)]
    validated = {step for name in run.curves if name.startswith("val/") for step in run.curves[name][0].tolist()}
    has_validation = [any(start <= step < end for step in validated) for _, start, end in spans]
    rounds = [read_round(path, run, start, end) for path, start, end in chosen(spans, has_validation, READ)]
    return RoundTable(label, tuple(rounds), len(spans))


def read_round(path: Path, run: Run, start: int, end: float) -> Round:
    """Read a round from its file and the metrics of its steps.

    Args:
        path: file of the round.
        run: run of the round.
        start: steps taken before the round was drawn.
        end: steps taken before the next round was drawn.
    """
    samples = tuple(row for row in read_rows(path) if row.get("source", "policy") == "policy")
    numbers = (sample_numbers(samples) | step_numbers(run, start, end)).items()
    return Round(int(path.stem), start, samples, {name: value for name, value in numbers if math.isfinite(value)})


def sample_numbers(samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Numbers of a round's samples by name of the statistic; nan if they cannot be computed."""
    # Without a reward, every sample is recorded with 0, which is not a score; then there are no terms either.
    scores = [math.nan if row.get("terms") == {} else _number(row.get("score")) for row in samples]
    lengths = [_number(row.get("tokens")) for row in samples]
    by_prompt: dict[Any, list[float]] = {}
    for row, score in zip(samples, scores, strict=True):
        by_prompt.setdefault(row.get("place"), []).append(score)
    tokens = [row.get("ids") or str(row.get("response", "")).split() for row in samples]
    return {
        "score": mean(scores),
        "length": mean(lengths),
        "truncated": mean(float(row["finish"] == "length") for row in samples if "finish" in row),
        "tied": tie_rate(by_prompt.values()),
        "score_length": correlation(scores, lengths),
        "log_prob_better": mean(_log_prob(row) for row in samples if _side(row) > 0),
        "log_prob_worse": mean(_log_prob(row) for row in samples if _side(row) < 0),
        **{f"distinct_{n}": distinct(tokens, n) for n in (1, 2, 3)},
    }


def step_numbers(run: Run, start: int, end: float) -> dict[str, float]:
    """Metrics of the steps of a round, by name.

    A validation before the first step does not belong to a round.

    Args:
        run: run whose curves are read.
        start: steps taken before the round was drawn: its first step is logged under this number.
        end: steps taken before the next round was drawn.
    """
    numbers = {}
    for name in (one.name for one in STATISTICS if one.logged and one.name in run.curves):
        steps, values = run.curves[name]
        validated = name.startswith("val/")
        if validated and len(steps) and steps[0] == 0:
            steps, values = steps[1:], values[1:]
        inside = values[(steps >= start) & (steps < end)]
        if len(inside):
            numbers[name] = float(inside[-1] if validated else inside.mean())
    return numbers


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """Choose at most ``most`` evenly spaced items, including the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(at * (len(items) - 1) / (most - 1))] for at in range(most)]


def chosen(items: Sequence[Item], preferred: Sequence[bool], most: int) -> list[Item]:
    """Choose at most ``most`` items, in order: the first, the last, preferred ones, then evenly spaced others.

    Args:
        items: items to choose from.
        preferred: whether each item is preferred.
        most: maximum number; at least 3.
    """
    if len(items) <= most:
        return list(items)
    last = len(items) - 1
    inner = [at for at, is_preferred in enumerate(preferred) if is_preferred and 0 < at < last]
    positions = {0, last, *evenly(inner, most - 2)}
    for at in evenly(range(len(items)), most):
        if len(positions) < most:
            positions.add(at)
    return [items[at] for at in sorted(positions)]


def _side(row: Mapping[str, Any]) -> float:
    """Sign of a sample in training: above 0 for a good example, below 0 for a bad one."""
    kept = row.get("kept") or ()
    if kept:
        return float("chosen" in kept) - float("rejected" in kept)
    advantage = _number(row.get("advantage"))
    return advantage if math.isfinite(advantage) else 0.0


def _log_prob(row: Mapping[str, Any]) -> float:
    """Log-prob of a whole response under the policy that drew it, in nats; nan if the engine did not report it."""
    values = row.get("log_probs") or ()
    return math.fsum(values) if values else math.nan


def _first_version(path: Path) -> int | None:
    """Optimiser steps taken before a round was drawn; None if its file has no rows."""
    with path.open(encoding="utf-8", errors="replace") as file:
        row = read_row(file.readline())
    return None if row is None else _whole(row.get("version"))


def _first_samples(samples: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """The first sample of every prompt."""
    by_row_and_prompt: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in samples:
        by_row_and_prompt.setdefault((str(row.get("row", "")), str(row.get("prompt", ""))), row)
    return by_row_and_prompt


def _response(row: Mapping[str, Any], characters: int) -> Response:
    tokens, finish = row.get("tokens"), row.get("finish")
    return Response(
        clean(row.get("response", ""), characters),
        tokens if isinstance(tokens, int) else None,
        None if finish is None else finish != "length",
    )


def _score(row: Mapping[str, Any]) -> str:
    value = _number(row.get("score"))
    return rounded(value) if math.isfinite(value) else ""


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0
