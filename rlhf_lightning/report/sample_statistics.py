"""Statistics of a round's samples: diversity, ties, cut-off rates, and correlations with the score."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence


def distinct(responses: Iterable[Sequence[Hashable]], n: int) -> float:
    """Share of distinct n-grams among all n-grams of the responses together; nan without any.

    It is 1 if no n-gram occurs twice, and falls when responses repeat themselves or one another. It also falls with
    the number of tokens, so only rounds of similar size can be compared.

    Source: distinct-n of Li et al., arXiv:1510.03055, section 5; they divide by the number of words.

    Args:
        responses: tokens of each response.
        n: length of the n-grams in tokens.
    """
    counts = Counter(gram for tokens in responses for gram in zip(*(tokens[at:] for at in range(n)), strict=False))
    return len(counts) / counts.total() if counts else math.nan


def correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Pearson's correlation over the samples where both numbers are finite; nan if either does not vary.

    Args:
        first: one number per sample.
        second: another number of the same samples.
    """
    pairs = [(x, y) for x, y in zip(first, second, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if len(pairs) < 2:
        return math.nan
    means = [math.fsum(column) / len(pairs) for column in zip(*pairs, strict=True)]
    moved = [(x - means[0], y - means[1]) for x, y in pairs]
    squares = [math.fsum(part[at] ** 2 for part in moved) for at in (0, 1)]
    if not all(squares):
        return math.nan
    return math.fsum(x * y for x, y in moved) / (math.sqrt(squares[0]) * math.sqrt(squares[1]))


def tie_rate(groups: Iterable[Sequence[float]]) -> float:
    """Share of pairs of responses to the same prompt with equal scores; nan without any pair.

    Args:
        groups: scores of the responses to each prompt; non-finite scores are ignored.
    """
    tied = pairs = 0
    for scores in groups:
        finite = [score for score in scores if math.isfinite(score)]
        pairs += math.comb(len(finite), 2)
        tied += sum(math.comb(count, 2) for count in Counter(finite).values())
    return tied / pairs if pairs else math.nan


def mean(values: Iterable[float]) -> float:
    """Mean of the finite values; nan without any."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan
