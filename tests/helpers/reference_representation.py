"""Losses on states and on opposite instructions as plain loops over numbers."""

from __future__ import annotations

import math

from tests.helpers.reference_hidden import Vector, reduced

#: Of one layer: responses of tokens of numbers.
Layer = list[list[Vector]]


def representation_fit(
    states: dict[int, Layer],
    base: dict[int, Layer],
    positive: dict[int, Layer],
    negative: dict[int, Layer],
    *,
    alpha: float = 5.0,
) -> Vector:
    first = next(iter(states.values()))
    tokens = [[0.0 for _ in response] for response in first]
    for layer, responses in states.items():
        for r, response in enumerate(responses):
            for t, state in enumerate(response):
                target = [
                    b + alpha * (p - n)
                    for b, p, n in zip(base[layer][r][t], positive[layer][r][t], negative[layer][r][t], strict=True)
                ]
                tokens[r][t] += math.dist(state, target) / len(states)
    return reduced(tokens, "token_mean")


def contrastive_instruction(
    match: list[Vector], opposite: list[Vector], *, label_smoothing: float = 0.2, reduction: str = "token_mean"
) -> Vector:
    likelihood = reduced([[-x for x in row] for row in match], reduction)
    out = []
    for nll, one, other in zip(likelihood, match, opposite, strict=True):
        odds = math.exp(sum(one) / len(one)), math.exp(sum(other) / len(other))
        share = odds[0] / (odds[0] + odds[1])
        out.append(nll - (1 - label_smoothing) * math.log(share) - label_smoothing * math.log(1 - share))
    return out
