"""The win rate of some responses over others to the same prompts, by any reward: of two models, or of two prompts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rlhf_lightning.rewards.base import ComparingReward, Reward, metrics_of, score_groups
from rlhf_lightning.rewards.win_matrix import win_matrices
from rlhf_lightning.types import SampleGroup, sample_groups

#: A prompt's text -> its token ids, and a response's.
Encode = Callable[[str], list[int]]
Rows = dict[str, list[Mapping[str, Any]]]


@dataclass
class WinRate:
    """Two files of responses to the same prompts, such as ``rlhf generate output=...`` writes them.

    The n-th response to a prompt in the first file meets the n-th one in the second. A judge that compares is shown
    each pair in both orders; of a reward that scores one by one the higher score wins.

    Args:
        first: JSONL rows with ``prompt`` and ``response``.
        second: the other file.

    Raises:
        ValueError: a file is missing, has a row without prompt and response, or they have no prompt in common.
    """

    first: str
    second: str

    def __post_init__(self) -> None:
        """Read both files and pair their rows."""
        one, other = _read(self.first, "evaluation.first"), _read(self.second, "evaluation.second")
        common = [prompt for prompt in one if prompt in other]
        self.pairs = [pair for prompt in common for pair in zip(one[prompt], other[prompt], strict=False)]
        self.left_out = max(sum(map(len, one.values())), sum(map(len, other.values()))) - len(self.pairs)
        if not self.pairs:
            raise ValueError(
                f"evaluation.first={self.first} and evaluation.second={self.second} have no prompt in common"
            )

    def __call__(self, reward: Reward, prompt_ids: Encode, response_ids: Encode) -> dict[str, float]:
        """Let a reward judge all pairs.

        Returns:
            ``win_rate`` of the first file with ties one half, its standard error over prompts (``win_rate_error``),
            the shares ``wins``, ``ties`` and ``losses``, the number of ``pairs``, the share ``unjudged``, rows that
            have no partner (``left_out``), and what the reward counts, such as ``consistent`` and ``first``: how often
            both orders agree, and how often what is shown first wins.
        """
        groups = sample_groups(
            [prompt_ids(str(row["prompt"])) for row, _ in self.pairs],
            [[response_ids(str(row["response"])) for row in pair] for pair in self.pairs],
            [
                {name: value for name, value in row.items() if name not in ("response", "score")}
                for row, _ in self.pairs
            ],
        )
        points = _points(reward, groups)
        by_prompt: dict[str, list[float]] = {}
        for (row, _), point in zip(self.pairs, points, strict=True):
            if point is not None:
                by_prompt.setdefault(str(row["prompt"]), []).append(point)
        metrics = {"pairs": float(len(points)), "left_out": float(self.left_out)}
        metrics["unjudged"] = fmean(point is None for point in points)
        return metrics | _statistics(by_prompt) | metrics_of(reward)


def _statistics(by_prompt: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Win rate, error and shares; nothing where nothing was judged."""
    points = [point for group in by_prompt.values() for point in group]
    if not points:
        return {}
    means = [fmean(group) for group in by_prompt.values()]
    return {
        "win_rate": fmean(means),
        "win_rate_error": stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.nan,
        "wins": fmean(point > 0.5 for point in points),
        "ties": fmean(point == 0.5 for point in points),
        "losses": fmean(point < 0.5 for point in points),
    }


def _points(reward: Reward, groups: Sequence[SampleGroup]) -> list[float | None]:
    """Of each pair the first response's share of the win: the judge's mean over both orders, or 1, 1/2 or 0."""
    if isinstance(reward, ComparingReward):
        return [matrix[0][1] for matrix in win_matrices(reward, groups)]
    scores = score_groups(reward, groups)[0]
    return [None if a is None or b is None else (1.0 if a > b else 0.0 if a < b else 0.5) for a, b in scores]


def _read(path: str, option: str) -> Rows:
    """Rows of a file by prompt.

    Raises:
        ValueError: there is no such file, or a row has no prompt and response.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{option}={path}: there is no such file; rlhf generate prompts=... output={path} writes one")
    rows: Rows = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{option}={path}:{number} is not JSON: {error}") from error
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("prompt", "response")):
            raise ValueError(f'{option}={path}:{number} must have texts under "prompt" and "response"')
        rows.setdefault(row["prompt"], []).append(row)
    return rows
