"""Token-level losses the plain way: lists of numbers and loops. The twins that tests hold the losses against."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Position:
    """One scored token: every logit of the policy there, and the token that stands there."""

    logits: list[float]
    target: int

    @property
    def log_prob(self) -> float:
        top = max(self.logits)
        return self.logits[self.target] - top - math.log(sum(math.exp(z - top) for z in self.logits))


Response = list[Position]
#: Log-probs of a response behind prompt and judgment (empty: no judgment), and behind the prompt alone.
Row = tuple[list[float], list[float]]


def candidates(position: Position, k: int) -> list[int]:
    """The k most likely tokens other than the one that stands there, most likely first."""
    order = sorted(range(len(position.logits)), key=lambda token: -position.logits[token])
    return [token for token in order if token != position.target][:k]


def contrast(position: Position, alternative: int) -> float:
    """-log of e^z* / (e^z* + e^z), the alternative's share against the token that stands there."""
    z = position.logits
    return -math.log(1 / (1 + math.exp(z[position.target] - z[alternative])))


def likelihood(response: Response) -> float:
    return sum(position.log_prob for position in response)


def contrasts(response: Response, alternatives: list[int]) -> float:
    return sum(contrast(position, v) for position, v in zip(response, alternatives, strict=True))


def cringe(responses: list[Response], desirable: list[int], alternatives: list[list[int]], alpha: float) -> list[float]:
    """Over the mean number of tokens that received either loss."""
    tokens = sum(len(response) for response in responses) / len(responses)
    return [
        (-likelihood(response) if good else alpha * contrasts(response, chosen)) / tokens
        for response, good, chosen in zip(responses, desirable, alternatives, strict=True)
    ]


def pairwise_cringe(
    pairs: list[tuple[Response, Response]],
    alternatives: list[list[int]],
    alpha: float,
    threshold: float,
    tau: float,
    gate: str,
) -> list[float]:
    tokens = sum(len(chosen) + len(rejected) for chosen, rejected in pairs) / len(pairs)
    out = []
    for (chosen, rejected), picked in zip(pairs, alternatives, strict=True):
        margin = likelihood(chosen) - likelihood(rejected)
        opened = 1 / (1 + math.exp(-(threshold - margin) / tau)) if gate == "soft" else float(margin < threshold)
        out.append(opened * (-likelihood(chosen) + alpha * contrasts(rejected, picked)) / tokens)
    return out


def plain_terms(row: Row, threshold: float, weight: float, gamma: float) -> list[float]:
    """Objective that context B maximises at each token of a row."""
    behind, alone = row
    terms = []
    for t, log_prob in enumerate(alone):
        if behind and math.exp(behind[t]) / math.exp(log_prob) > threshold:
            terms.append(weight * math.exp(behind[t]) ** gamma * math.log(1 - min(math.exp(log_prob), 1 - 1e-6)))
        else:
            terms.append(log_prob)
    return terms


def cut(rows: list[Row], threshold: float, unlikelihood_weight: float) -> list[float]:
    """The authors average demonstrations with context A, and context B over criticised rows alone."""
    judged = sum(len(alone) for behind, alone in rows if behind) / len(rows)
    every = sum(len(alone) for _, alone in rows) / len(rows)
    out = []
    for behind, alone in rows:
        likelihood = -sum(behind or alone) / every
        terms = plain_terms((behind, alone), threshold, unlikelihood_weight, 0.0) if behind else []
        out.append((likelihood - sum(terms) / judged) / 2 if judged else likelihood)
    return out


def cut_paper(rows: list[Row], threshold: float, unlikelihood_weight: float, gamma: float) -> list[float]:
    return [
        -sum(plain_terms(row, threshold, unlikelihood_weight, gamma)) / len(row[1])
        - (sum(row[0]) / len(row[0]) if row[0] else 0.0)
        for row in rows
    ]
