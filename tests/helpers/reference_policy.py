"""The policy-gradient losses in plain Python, one response and one token at a time: twins for the tests."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tests.helpers.policy_inputs import Responses

Tokens = list[list[float]]


def rows(b: Responses) -> Iterator[tuple[list[float], list[float], list[float]]]:
    """Log-probs, log-ratios and advantages of each response."""
    for policy, old, advantage in zip(b.policy, b.old, b.advantage, strict=True):
        yield policy, [p - o for p, o in zip(policy, old, strict=True)], advantage


def surrogate(ratio: float, a: float, low: float, high: float, dual: float | None = None) -> float:
    """The clipped gain of one token, turned into a loss."""
    bounded = min(max(ratio, 1 - low), 1 + high)
    gain = min(ratio * a, bounded * a)
    if dual is not None and a < 0:
        gain = max(gain, dual * a)
    return -gain


def reinforce(b: Responses) -> Tokens:
    return [[-a * lp for lp, a in zip(policy, advantage, strict=True)] for policy, _, advantage in rows(b)]


def ppo(
    b: Responses,
    ratio: str = "token",
    eps_low: float = 0.2,
    eps_high: float = 0.2,
    dual_clip: float | None = None,
) -> Tokens:
    out = []
    for _, delta, advantage in rows(b):
        used = [sum(delta)] * len(delta) if ratio == "sequence" else delta
        out.append(
            [surrogate(math.exp(d), a, eps_low, eps_high, dual_clip) for d, a in zip(used, advantage, strict=True)]
        )
    return out


def gspo(b: Responses, eps_low: float = 3e-4, eps_high: float = 4e-4) -> Tokens:
    return [
        [surrogate(math.exp(sum(delta) / len(delta)), a, eps_low, eps_high) for a in advantage]
        for _, delta, advantage in rows(b)
    ]


gspo_token = gspo


def gmpo(b: Responses, clip_low: float = 0.4, clip_high: float = 0.4) -> Tokens:
    out = []
    for _, delta, advantage in rows(b):
        a = sum(advantage) / len(advantage)
        clipped = [min(d, clip_high) if a > 0 else max(d, -clip_low) for d in delta]
        out.append([-a * math.exp(sum(clipped) / len(clipped))] * len(delta))
    return out


def cispo(
    b: Responses,
    eps_low: float | None = None,
    eps_high: float | None = None,
    eps_abs_high: float | None = 5.0,
) -> Tokens:
    low = 0.0 if eps_low is None else 1 - eps_low
    high = eps_abs_high if eps_abs_high is not None else 1 + (eps_high or 0.0)
    return [
        [-min(max(math.exp(d), low), high) * a * lp for lp, d, a in zip(policy, delta, advantage, strict=True)]
        for policy, delta, advantage in rows(b)
    ]
