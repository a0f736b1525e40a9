"""The corrections of engine mismatch as plain loops over lists: nothing shared with the package's own."""

from __future__ import annotations

import math


def weights(
    old: list[list[float]],
    rollout: list[list[float]],
    correction: str,
    low: float,
    high: float,
    ratio: str = "product",
    outside: str = "mask",
) -> list[list[float]]:
    """The weight of each token of each response."""
    out = []
    for response_old, response_rollout in zip(old, rollout, strict=True):
        ratios = [math.exp(a - b) for a, b in zip(response_old, response_rollout, strict=True)]
        if correction == "none":
            ratios = [1.0 for _ in ratios]
        elif correction == "tis":
            ratios = [min(w, high) for w in ratios]
        elif correction == "clamp":
            ratios = [max(low, min(w, high)) for w in ratios]
        elif correction == "icepop":
            ratios = [w if low <= w <= high else 0.0 for w in ratios]
        else:
            whole = math.prod(ratios)
            if ratio == "geometric_mean":
                whole = whole ** (1 / len(ratios))
            whole = max(low, min(whole, high)) if outside == "truncate" else whole if low <= whole <= high else 0.0
            ratios = [whole for _ in ratios]
        out.append(ratios)
    return out


def kept(
    behaviour: list[list[float]], policy: list[list[float]], advantage: list[float], threshold: float
) -> list[list[float]]:
    """1 where a token is trained on; one advantage a response."""
    out = []
    for response_old, response_new, a in zip(behaviour, policy, advantage, strict=True):
        fall = sum(x - y for x, y in zip(response_old, response_new, strict=True)) / len(response_old)
        out.append([0.0 if a < 0 and fall > threshold else 1.0 for _ in response_old])
    return out
