"""The losses of ranked lists a second time: plain loops over Python floats, written from the formulas."""

from __future__ import annotations

import math

from tests.helpers.ranked_inputs import Item, Lists


def nll(item: Item, reduction: str) -> float:
    return -sum(item.policy) / (len(item.policy) if reduction == "response_mean" else 1)


def best_nll(items: list[Item], reduction: str) -> float:
    top = [item for item in items if item.score == max(other.score for other in items)]
    return sum(nll(item, reduction) for item in top) / len(top)


def log_ratio(item: Item) -> float:
    return sum(item.policy) - sum(item.reference)


def pro(
    b: Lists,
    aggregate: str = "mean",
    temperature: str = "dynamic",
    nll_weight: float = 0.05,
    nll_scale: str = "squared_length",
    nll_reduction: str = "sum",
) -> list[float]:
    out = []
    for items in b.lists:
        value = [sum(item.policy) / (len(item.policy) if aggregate == "mean" else 1) for item in items]
        total = 0.0
        for k, item in enumerate(items):
            worse = [i for i, other in enumerate(items) if other.score < item.score]
            if not worse:
                continue
            gaps = {i: item.score - items[i].score if temperature == "dynamic" else 1.0 for i in worse}
            weight = math.exp(max(gaps.values()) * value[k])
            total -= math.log(weight / (weight + sum(math.exp(gaps[i] * value[i]) for i in worse)))
        scale = (len(items) - 1) ** 2 if nll_scale == "squared_length" else 1
        out.append(total + nll_weight * scale * best_nll(items, nll_reduction))
    return out


def rrhf(
    b: Lists,
    rank_weight: float = 1.0,
    length_penalty: float = 1.0,
    nll_weight: float = 1.0,
    nll_reduction: str = "response_mean",
) -> list[float]:
    out = []
    for items in b.lists:
        p = [sum(item.policy) / len(item.policy) ** length_penalty for item in items]
        hinge = 0.0
        for k, better in enumerate(items):
            for i, other in enumerate(items):
                if other.score < better.score:
                    hinge += max(0.0, p[i] - p[k])
        out.append(rank_weight * hinge + nll_weight * best_nll(items, nll_reduction))
    return out


def plackett_luce(b: Lists, beta: float = 0.1) -> list[float]:
    out = []
    for items in b.lists:
        total = 0.0
        for item in items:
            weight = math.exp(beta * log_ratio(item))
            total -= math.log(
                weight / (weight + sum(math.exp(beta * log_ratio(i)) for i in items if i.score < item.score))
            )
        out.append(total)
    return out


def exo_k(b: Lists, beta: float = 0.5, score_beta: float = 0.5) -> list[float]:
    out = []
    for items in b.lists:
        p, q = [math.exp(beta * log_ratio(i)) for i in items], [math.exp(i.score / score_beta) for i in items]
        out.append(sum(x / sum(p) * (math.log(x / sum(p)) - math.log(y / sum(q))) for x, y in zip(p, q, strict=True)))
    return out


def best_of_n(b: Lists, top_fraction: float = 0.0, reduction: str = "response_mean") -> list[float]:
    out = []
    for items in b.lists:
        count = max(1, math.floor(top_fraction * len(items) + 1e-6))
        last = sorted((item.score for item in items), reverse=True)[count - 1]
        kept = [nll(item, reduction) for item in items if item.score >= last]
        out.append(sum(kept) / len(kept))
    return out


def reward_weighted(
    b: Lists,
    beta: float = 1.0,
    normalise: str = "group",
    max_weight: float = 20.0,
    reduction: str = "response_mean",
) -> list[float]:
    mean, _, count = b.running
    out = []
    for items in b.lists:
        if normalise == "group":
            weights = [math.exp(item.score / beta) for item in items]
            divisor = sum(weights)
        else:
            weights = [min(max_weight, math.exp((i.score - mean) / beta)) if count else 1.0 for i in items]
            divisor = len(items)
        out.append(sum(w * nll(item, reduction) for w, item in zip(weights, items, strict=True)) / divisor)
    return out


def nash_md(b: Lists, beta: float = 0.1, kl: str = "sequence") -> list[float]:
    out = []
    for items in b.lists:
        total = 0.0
        for item in items:
            ratio = [p - r for p, r in zip(item.policy, item.reference, strict=True)]
            for t, log_prob in enumerate(item.policy):
                paid = {"sequence": ratio, "reward_to_go": ratio[t:], "token": ratio[t : t + 1]}[kl]
                total -= (item.score - 0.5 - beta * sum(paid)) * log_prob
        out.append(total / len(items) if items else 0.0)
    return out
