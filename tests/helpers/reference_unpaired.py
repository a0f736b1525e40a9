"""The losses of labelled responses a second time: plain loops over Python floats, written from the formulas."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tests.helpers.reference_losses import log_sigmoid, sigmoid
from tests.helpers.unpaired_inputs import Labelled


def rows(batch: Labelled) -> Iterator[tuple[float, bool]]:
    """(log-ratio, desirable) of each response."""
    for policy, reference, label in zip(batch.policy, batch.reference, batch.desirable, strict=True):
        yield sum(policy) - sum(reference), label == 1.0


def kto(b: Labelled, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> list[float]:
    out = []
    for rho, good in rows(b):
        if good:
            out.append(desirable_weight - desirable_weight * sigmoid(beta * (rho - b.kl)))
        else:
            out.append(undesirable_weight - undesirable_weight * sigmoid(beta * (b.kl - rho)))
    return out


def bco(b: Labelled, beta: float = 0.01, delta: str = "running") -> list[float]:
    centre = b.running[0] if delta == "running" else 0.0
    out = []
    for i, (rho, good) in enumerate(rows(b)):
        logit = beta * rho - centre if good else centre - beta * rho
        out.append(-(b.weight[i] if b.weight else 1.0) * log_sigmoid(logit))
    return out


def apo_zero_unpaired(
    b: Labelled, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> list[float]:
    return [
        desirable_weight * (1 - sigmoid(beta * rho)) if good else undesirable_weight * sigmoid(beta * rho)
        for rho, good in rows(b)
    ]


def unlikelihood(b: Labelled, weight: float = 1.0, reduction: str = "token_mean") -> list[float]:
    mean_length = b.mean_length or sum(map(len, b.policy)) / len(b)
    out = []
    for row, label in zip(b.policy, b.desirable, strict=True):
        total = 0.0
        for token in row:
            total += -token if label == 1.0 else -weight * math.log(1 - math.exp(token))
        out.append(total / {"token_mean": mean_length, "response_mean": len(row), "sum": 1}[reduction])
    return out
