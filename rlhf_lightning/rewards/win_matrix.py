"""Win matrices: probabilities that one response to a prompt beats another, by a judge that compares them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from rlhf_lightning.rewards.base import ComparingReward, Scores, WinMatrix
from rlhf_lightning.types import SampleGroup

#: What to choose where responses have to be compared.
COMPARING = "choose a judge that compares them (reward=judge, llm_compare, cyclic)"
#: By how much P(i beats j) and P(j beats i) may miss a sum of 1.
_ROUNDING = 1e-6


def win_matrices(reward: Any, groups: Sequence[SampleGroup]) -> list[WinMatrix]:
    """The win matrix of each group by a reward that compares responses.

    Args:
        reward: has ``win_matrix(groups)``.
        groups: prompts with their responses.

    Raises:
        ValueError: the reward compares nothing, or what it returned is no win matrix; the message names both.
    """
    check_compares(reward)
    matrices: list[WinMatrix] = reward.win_matrix(groups)
    if len(matrices) != len(groups):
        raise ValueError(f"reward {reward.name!r} returned {len(matrices)} win matrices for {len(groups)} prompts")
    for group, matrix in zip(groups, matrices, strict=True):
        _check(reward.name, group, matrix)
    return matrices


def without_comparing(scorer: Any) -> str | None:
    """Name of what scores responses one by one, for a message; None: it compares them.

    Args:
        scorer: a reward, a class of rewards, or a partial of one; None: nothing scores.
    """
    if scorer is None:
        return "reward=none"
    made_by = scorer.func if isinstance(scorer, functools.partial) else scorer
    if isinstance(made_by, type):  # to a protocol with attributes no class is a subclass
        compares = callable(getattr(made_by, "win_matrix", None))
    else:
        compares = isinstance(made_by, ComparingReward)
    return None if compares else f"reward: {getattr(made_by, '__name__', 'it')} scores one by one"


def check_compares(reward: Any) -> None:
    """Refuse a reward that compares no responses.

    Args:
        reward: a reward; None: nothing scores.

    Raises:
        ValueError: it has no ``win_matrix``; the message names those that have one.
    """
    if not isinstance(reward, ComparingReward):
        what = "there is no reward" if reward is None else f"reward {reward.name!r} scores each response by itself"
        raise ValueError(f"{what} and compares none: {COMPARING}")


def compared(reward: Any, groups: Sequence[SampleGroup]) -> tuple[Scores, list[WinMatrix]]:
    """The win matrix of each group, and the mean wins as scores, from one verdict a pair.

    Args:
        reward: see :func:`win_matrices`.
        groups: prompts with their responses.

    Raises:
        ValueError: see :func:`win_matrices`.
    """
    matrices = win_matrices(reward, groups)
    return [mean_wins(matrix) for matrix in matrices], matrices


def _check(name: str, group: SampleGroup, matrix: WinMatrix) -> None:
    count = len(group.samples)
    if [len(row) for row in matrix] != [count] * count:
        raise ValueError(f"reward {name!r}: the win matrix of {count} responses has rows of {list(map(len, matrix))}")
    for i, row in enumerate(matrix):
        for j, won in enumerate(row[: i + 1]):
            lost = matrix[j][i]
            if won is None or lost is None:
                consistent = won is lost
            else:
                consistent = 0 <= won <= 1 and abs(won + lost - 1) <= _ROUNDING
            if not consistent:
                raise ValueError(
                    f"reward {name!r}: response {i} beats {j} with probability {won} and {j} beats {i} with {lost} "
                    f"({group.row or group.index}); they must add up to 1"
                )


def matrix_of(count: int, pairs: Sequence[tuple[int, int, float | None]]) -> WinMatrix:
    """A win matrix from the verdicts on its pairs.

    Args:
        count: responses.
        pairs: two different responses and the probability that the first beats the second, None where it is unknown.
            A pair that is not among them is unknown.
    """
    matrix: WinMatrix = [[0.5 if i == j else None for j in range(count)] for i in range(count)]
    for i, j, won in pairs:
        matrix[i][j], matrix[j][i] = won, None if won is None else 1 - won
    return matrix


def mean_wins(matrix: WinMatrix) -> list[float | None]:
    """Mean probability of each response of beating another one, over those with a verdict; None without any.

    Summed exactly, so that responses with the same verdicts in another order are tied.
    """
    wins = [[won for j, won in enumerate(row) if j != i and won is not None] for i, row in enumerate(matrix)]
    return [math.fsum(row) / len(row) if row else None for row in wins]


def matrix_from_scores(scores: Sequence[float | None]) -> WinMatrix:
    r"""The Bradley-Terry win matrix :math:`\sigma(s_i - s_j)` of scores in nats; it knows no circles."""
    return matrix_of(
        len(scores),
        [(i, j, _bradley_terry(scores[i], scores[j])) for i in range(len(scores)) for j in range(i)],
    )


def _bradley_terry(score: float | None, other: float | None) -> float | None:
    if score is None or other is None:
        return None
    return (1 + math.tanh((score - other) / 2)) / 2  # the logistic function, which does not overflow so
