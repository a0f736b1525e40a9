"""Rounds of runs that draw their own responses, side by side: from ``rollouts/*.jsonl`` and ``metrics.csv``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rlhf_lightning.report.reading import Run, read_row, read_rows
from rlhf_lightning.report.sample_statistics import correlation, distinct, mean, tie_rate
from rlhf_lightning.report.samples import Answer, clean
from rlhf_lightning.report.statistics import rounded

Item = TypeVar("Item")

#: Rounds of a run that are read; of more, so many at even distances, those with a validation before others.
READ = 24
#: Rounds in a table.
_COLUMNS = 12
#: Rounds whose samples are shown.
_SHOWN = 6


@dataclass(frozen=True)
class Statistic:
    """A line of the table and a panel of the picture."""

    name: str  #: of the metric, or of a number of the samples
    label: str
    share: bool = False  #: shown in per cent

    @property
    def logged(self) -> bool:
        """Whether it is a metric."""
        return "/" in self.name

    def shown(self, value: float) -> str:
        """The value as people read it; a dash where there is none."""
        if not math.isfinite(value):
            return "-"
        return f"{value:.1%}" if self.share else rounded(value)


#: Metrics under ``val/`` are the last of the round, when its steps were taken; those under ``train/`` the mean over its
#: steps. Numbers of the samples are those of the policy that the round began with.
STATISTICS = (
    Statistic("val/gold/reward", "gold reward, after the round"),
    Statistic("score", "score of the samples"),
    Statistic("val/gold/kl", "KL to the initial policy, after the round"),
    Statistic("val/kl/reference", "KL to the reference, after the round"),
    Statistic("train/kl/initial", "KL to the initial policy, of the samples"),
    Statistic("train/kl/reference", "KL to the reference, of the samples"),
    Statistic("train/kl/round_start", "KL to the round's start"),
    Statistic("train/approx_kl", "KL to the round's start, nats a token"),
    Statistic("length", "tokens of a sample"),
    Statistic("truncated", "cut off", share=True),
    Statistic("tied", "tied pairs of samples", share=True),
    Statistic("score_length", "correlation of score and length"),
    Statistic("log_prob_better", "log-prob of better samples"),
    Statistic("log_prob_worse", "log-prob of worse samples"),
    Statistic("train/log_ratio/chosen", "log-ratio of the chosen"),
    Statistic("train/log_ratio/rejected", "log-ratio of the rejected"),
    Statistic("train/select/tie_rate", "ties that the selector met", share=True),
    Statistic("train/select/cut_off_rate", "cut-off samples that the selector met", share=True),
    Statistic("distinct_1", "distinct-1", share=True),
    Statistic("distinct_2", "distinct-2", share=True),
    Statistic("distinct_3", "distinct-3", share=True),
)


@dataclass(frozen=True)
class Round:
    """One round of a run.

    Attributes:
        number: from 0.
        step: optimiser steps that were taken when it was drawn.
        samples: rows of its file that its policy drew.
        numbers: by name of a statistic; absent where it is not known.
    """

    number: int
    step: int
    samples: tuple[Mapping[str, Any], ...]
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Followed:
    """A prompt with one sample of every round that asked it."""

    prompt: str
    row: str
    answers: tuple[tuple[int, Answer, str], ...]  #: number of the round, response, score


@dataclass(frozen=True)
class RoundTable:
    """Rounds of one run.

    Attributes:
        label: of the run.
        rounds: that were read.
        count: of all rounds of the run.
    """

    label: str
    rounds: tuple[Round, ...]
    count: int

    @property
    def columns(self) -> list[Round]:
        """The rounds that a table has room for."""
        validated = [any(name.startswith("val/") for name in one.numbers) for one in self.rounds]
        return chosen(self.rounds, validated, _COLUMNS)

    @property
    def statistics(self) -> list[Statistic]:
        """Those that are known of any round."""
        return [one for one in STATISTICS if any(one.name in each.numbers for each in self.rounds)]

    @property
    def lines(self) -> list[tuple[Statistic, list[str]]]:
        """Every known statistic with its value in each column."""
        columns = self.columns
        return [(one, [one.shown(each.numbers.get(one.name, math.nan)) for each in columns]) for one in self.statistics]

    def followed(self, characters: int = 800) -> Followed | None:
        """The prompt that most rounds asked, the first of these, with its first sample in each; None without samples.

        Args:
            characters: longer texts are cut, and say so.
        """
        first_samples = [_first_samples(each.samples) for each in self.rounds]
        counts: dict[tuple[str, str], int] = {}
        for asked in first_samples:
            for key in asked:
                counts[key] = counts.get(key, 0) + 1
        if not counts:
            return None
        key = max(counts, key=lambda each: counts[each])
        found = [
            (one.number, asked[key]) for one, asked in zip(self.rounds, first_samples, strict=True) if key in asked
        ]
        return Followed(
            clean(key[1], characters),
            key[0],
            tuple((number, _answer(row, characters), _score(row)) for number, row in evenly(found, _SHOWN)),
        )


def table_of(run: Run, label: str) -> RoundTable | None:
    """The rounds of a run; None where it drew none, or keeps no files of them.

    Args:
        run: to read.
        label: that it is shown under.
    """
    files = sorted(path for path in (run.folder / "rollouts").glob("*.jsonl") if path.stem.isdigit())
    drawn = [(path, step) for path in files if (step := _first_version(path)) is not None]
    if not drawn:
        return None
    # Of files with the same weights the last one was trained on, the others taught nothing and were skipped.
    ends = [*(step for _, step in drawn[1:]), math.inf]
    spans = [(path, step, end) for (path, step), end in zip(drawn, ends, strict=True)]
    validated = {step for name in run.curves if name.startswith("val/") for step in run.curves[name][0].tolist()}
    telling = [any(start <= step < end for step in validated) for _, start, end in spans]
    rounds = [read_round(path, run, start, end) for path, start, end in chosen(spans, telling, READ)]
    return RoundTable(label, tuple(rounds), len(spans))


def read_round(path: Path, run: Run, start: int, end: float) -> Round:
    """A round from its file and the metrics of its steps.

    Args:
        path: of its file.
        run: whose it is.
        start: steps that were taken when it was drawn.
        end: the same of the next round.
    """
    samples = tuple(row for row in read_rows(path) if row.get("source", "policy") == "policy")
    numbers = (sample_numbers(samples) | step_numbers(run, start, end)).items()
    return Round(int(path.stem), start, samples, {name: value for name, value in numbers if math.isfinite(value)})


def sample_numbers(samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the samples of a round say, by the name of the statistic; nan where they do not say it."""
    # Without a reward every sample counts 0, which is no score; then there are no terms either.
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

    A validation before the first step says nothing of a round.

    Args:
        run: whose curves are read.
        start: steps that were taken when the round was drawn: its first step is logged under this number.
        end: the same of the next round.
    """
    found = {}
    for name in (one.name for one in STATISTICS if one.logged and one.name in run.curves):
        steps, values = run.curves[name]
        validated = name.startswith("val/")
        if validated and len(steps) and steps[0] == 0:
            steps, values = steps[1:], values[1:]
        inside = values[(steps >= start) & (steps < end)]
        if len(inside):
            found[name] = float(inside[-1] if validated else inside.mean())
    return found


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many items at even distances, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(at * (len(items) - 1) / (most - 1))] for at in range(most)]


def chosen(items: Sequence[Item], telling: Sequence[bool], most: int) -> list[Item]:
    """At most so many items in their order: the first, the last, the telling ones, then others at even distances.

    Args:
        items: to choose from.
        telling: whether each of them says more than others.
        most: of them; at least 3.
    """
    if len(items) <= most:
        return list(items)
    last = len(items) - 1
    inner = [at for at, tells in enumerate(telling) if tells and 0 < at < last]
    places = {0, last, *evenly(inner, most - 2)}
    for at in evenly(range(len(items)), most):
        if len(places) < most:
            places.add(at)
    return [items[at] for at in sorted(places)]


def _side(row: Mapping[str, Any]) -> float:
    """Above 0 for a sample that was taught as good, below for one that was taught as bad."""
    kept = row.get("kept") or ()
    if kept:
        return float("chosen" in kept) - float("rejected" in kept)
    advantage = _number(row.get("advantage"))
    return advantage if math.isfinite(advantage) else 0.0


def _log_prob(row: Mapping[str, Any]) -> float:
    """Of a whole response under the policy that drew it, nats; nan where the engine could not say."""
    values = row.get("log_probs") or ()
    return math.fsum(values) if values else math.nan


def _first_version(path: Path) -> int | None:
    """Optimiser steps that were taken when a round was drawn; None where its file has no rows."""
    with path.open(encoding="utf-8", errors="replace") as file:
        row = read_row(file.readline())
    return None if row is None else _whole(row.get("version"))


def _first_samples(samples: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """The first sample of every prompt."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in samples:
        found.setdefault((str(row.get("row", "")), str(row.get("prompt", ""))), row)
    return found


def _answer(row: Mapping[str, Any], characters: int) -> Answer:
    tokens, finish = row.get("tokens"), row.get("finish")
    return Answer(
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
