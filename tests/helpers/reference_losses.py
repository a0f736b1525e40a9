"""Every loss a second time: plain loops over Python floats, written from the formulas.

Each function takes a batch of numbers and returns one number a pair. Nothing is shared with the package, nothing is
vectorised, and no stable form is used except for log sigmoid, so a mistake would have to be made twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.helpers.loss_inputs import Numbers, Rows


@dataclass
class Row:
    """The scalars of one pair in the notation of rlhf_lightning/losses/terms.py."""

    lw: float  #: summed log-prob of chosen
    ll: float
    rw: float  #: the same under the reference
    rl: float
    nw: int
    nl: int

    @property
    def rho_w(self) -> float:
        return self.lw - self.rw

    @property
    def rho_l(self) -> float:
        return self.ll - self.rl

    @property
    def h(self) -> float:
        return self.rho_w - self.rho_l

    @property
    def hbar(self) -> float:
        return self.rho_w / self.nw - self.rho_l / self.nl


def rows(batch: Numbers) -> Iterator[Row]:
    """One row a pair."""
    for i in range(len(batch)):
        w, l = batch.policy_chosen[i], batch.policy_rejected[i]  # noqa: E741
        yield Row(
            lw=sum(w),
            ll=sum(l),
            rw=sum(batch.reference_chosen[i]),
            rl=sum(batch.reference_rejected[i]),
            nw=len(w),
            nl=len(l),
        )


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def smoothed(x: float, eps: float) -> float:
    return -(1 - eps) * log_sigmoid(x) - eps * log_sigmoid(-x)


def sft(responses: Rows, reduction: str, mean_length: float | None = None) -> list[float]:
    if mean_length is None:
        mean_length = sum(len(row) for row in responses) / len(responses)
    divisor: Callable[[list[float]], float] = {
        "token_mean": lambda row: mean_length,
        "response_mean": len,
        "sum": lambda row: 1.0,
    }[reduction]
    return [-sum(row) / divisor(row) for row in responses]


def dft(responses: Rows, reduction: str, mean_length: float | None = None) -> list[float]:
    return sft([[math.exp(x) * x for x in row] for row in responses], reduction, mean_length)


def nll_terms(batch: Numbers, reduction: str) -> list[float]:
    return sft(batch.policy_chosen, reduction, batch.mean_length[0] if batch.mean_length else None)


def dpo(b: Numbers, beta: float) -> list[float]:
    return [-log_sigmoid(beta * r.h) for r in rows(b)]


def cdpo(b: Numbers, beta: float, label_smoothing: float) -> list[float]:
    return [smoothed(beta * r.h, label_smoothing) for r in rows(b)]


def robust_dpo(b: Numbers, beta: float, label_smoothing: float) -> list[float]:
    e = label_smoothing
    return [(-(1 - e) * log_sigmoid(beta * r.h) + e * log_sigmoid(-beta * r.h)) / (1 - 2 * e) for r in rows(b)]


def ipo(b: Numbers, beta: float, aggregate: str) -> list[float]:
    return [((r.hbar if aggregate == "mean" else r.h) - 1 / (2 * beta)) ** 2 for r in rows(b)]


def hinge(b: Numbers, beta: float) -> list[float]:
    return [max(0.0, 1 - beta * r.h) for r in rows(b)]


def exo(b: Numbers, beta: float, label_smoothing: float) -> list[float]:
    out = []
    for r in rows(b):
        win, lose = sigmoid(beta * r.h), sigmoid(-beta * r.h)
        out.append(
            win * (log_sigmoid(beta * r.h) - math.log(1 - label_smoothing))
            + lose * (log_sigmoid(-beta * r.h) - math.log(label_smoothing))
        )
    return out


def discopop(b: Numbers, beta: float, tau: float) -> list[float]:
    out = []
    for r in rows(b):
        z = beta * r.h
        m = sigmoid(z / tau)
        out.append((1 - m) * -log_sigmoid(z) + m * math.exp(-z))
    return out


def sigmoid_norm(b: Numbers, beta: float) -> list[float]:
    return [-log_sigmoid(beta * r.hbar) for r in rows(b)]


def f_dpo(b: Numbers, beta: float, divergence: str, alpha: float, alpha_convention: str) -> list[float]:
    order = alpha if alpha_convention == "f_dpo" else 1 - alpha

    def score(rho: float) -> float:
        u = math.exp(rho)
        if divergence == "alpha" and order > 0:
            return (1 - u**-order) / order
        return {"forward_kl": -1 / u, "js": math.log(2 * u / (1 + u))}.get(divergence, rho)

    return [-log_sigmoid(beta * (score(r.rho_w) - score(r.rho_l))) for r in rows(b)]


def nca(b: Numbers, beta: float) -> list[float]:
    return [
        -log_sigmoid(beta * r.rho_w) - 0.5 * log_sigmoid(-beta * r.rho_w) - 0.5 * log_sigmoid(-beta * r.rho_l)
        for r in rows(b)
    ]


def sppo(b: Numbers, beta: float) -> list[float]:
    return [((r.rho_w - 1 / (2 * beta)) ** 2 + (r.rho_l + 1 / (2 * beta)) ** 2) / 2 for r in rows(b)]


def sppo_soft(b: Numbers, beta: float) -> list[float]:
    return [
        0.5 * ((r.rho_w - (win - 0.5) / beta) ** 2 + (r.rho_l - (lose - 0.5) / beta) ** 2)
        for r, (win, lose) in zip(rows(b), b.win_probability, strict=True)
    ]


def xpo(b: Numbers, beta: float, alpha: float) -> list[float]:
    out = []
    for r, (chosen, rejected) in zip(rows(b), b.reference_sample, strict=True):
        bonus = r.lw if chosen == 1 else r.ll if rejected == 1 else 0.0
        out.append(-log_sigmoid(beta * r.h) + alpha * bonus)
    return out


def apo_zero(b: Numbers, beta: float) -> list[float]:
    return [1 - sigmoid(beta * r.rho_w) + sigmoid(beta * r.rho_l) for r in rows(b)]


def apo_down(b: Numbers, beta: float) -> list[float]:
    return [sigmoid(beta * r.rho_w) + 1 - sigmoid(beta * r.h) for r in rows(b)]


def kto_pair(b: Numbers, beta: float, detach_kl: bool) -> list[float]:
    table = list(rows(b))
    kw = max(0.0, sum(r.rho_w for r in table) / len(table))
    kl = max(0.0, sum(r.rho_l for r in table) / len(table))
    return [((1 - sigmoid(beta * (r.rho_w - kl))) + (1 - sigmoid(beta * (kw - r.rho_l)))) / 2 for r in table]


def aot(b: Numbers, beta: float, label_smoothing: float) -> list[float]:
    u, v = sorted(r.lw - r.ll for r in rows(b)), sorted(r.rw - r.rl for r in rows(b))
    return [smoothed(beta * (x - y), label_smoothing) for x, y in zip(u, v, strict=True)]


def aot_unpaired(b: Numbers, beta: float, label_smoothing: float) -> list[float]:
    u, v = sorted(r.rho_w for r in rows(b)), sorted(r.rho_l for r in rows(b))
    return [smoothed(beta * (x - y), label_smoothing) for x, y in zip(u, v, strict=True)]


def rpo(b: Numbers, beta: float, nll_weight: float, nll_reduction: str) -> list[float]:
    return [x + nll_weight * y for x, y in zip(dpo(b, beta), nll_terms(b, nll_reduction), strict=True)]


def dpop(b: Numbers, beta: float, penalty: float) -> list[float]:
    return [-log_sigmoid(beta * (r.h - penalty * max(0.0, -r.rho_w))) for r in rows(b)]


def odpo(b: Numbers, beta: float, alpha: float) -> list[float]:
    return [-log_sigmoid(beta * r.h - alpha * math.log(gap)) for r, gap in zip(rows(b), b.margin, strict=True)]


def wpo(b: Numbers, beta: float, label_smoothing: float, clamp: bool) -> list[float]:
    out = []
    for i, r in enumerate(rows(b)):
        weight = 1.0
        for policy, collision in (
            (b.policy_chosen[i], b.collision_chosen[i]),
            (b.policy_rejected[i], b.collision_rejected[i]),
        ):
            weight *= math.exp(sum(p - c for p, c in zip(policy, collision, strict=True)) / len(policy))
        weight = min(1.0, weight) if clamp else weight
        out.append(weight * smoothed(beta * r.h, label_smoothing))
    return out


def r_dpo(b: Numbers, beta: float, alpha: float) -> list[float]:
    return [-log_sigmoid(beta * r.h + alpha * (r.nw - r.nl)) for r in rows(b)]


def ld_dpo(b: Numbers, beta: float, alpha: float) -> list[float]:
    out = []
    for w, l, rw, rl in zip(  # noqa: E741
        b.policy_chosen, b.policy_rejected, b.reference_chosen, b.reference_rejected, strict=True
    ):
        m = min(len(w), len(l))
        a, c, d, e = (sum(row[:m]) + alpha * sum(row[m:]) for row in (w, l, rw, rl))
        out.append(-log_sigmoid(beta * ((a - d) - (c - e))))
    return out


def bco_pair(b: Numbers, beta: float, delta: str) -> list[float]:
    d = b.running[0] if delta == "running" else 0.0
    return [-log_sigmoid(beta * r.rho_w - d) - log_sigmoid(-(beta * r.rho_l - d)) for r in rows(b)]


def beta_dpo(b: Numbers, beta: float, alpha: float, min_beta: float, level: str) -> list[float]:
    gaps = [r.h for r in rows(b)]
    mean = sum(gaps) / len(gaps)
    usual = b.running[0] if b.running[2] > 0 else mean
    out = []
    for gap in gaps:
        used = max(min_beta, beta * (1 + alpha * ((mean if level == "batch" else gap) - usual)))
        out.append(-log_sigmoid(used * gap))
    return out


def alpha_dpo(b: Numbers, beta: float, gamma: float, alpha: float, label_smoothing: float, eps: float) -> list[float]:
    out = []
    mu, sigma, _ = b.running
    for r in rows(b):
        z = (r.hbar - mu) / sigma if sigma > eps else 0.0
        out.append(smoothed(beta * (r.lw / r.nw - r.ll / r.nl - gamma - alpha * z), label_smoothing))
    return out


def preferred_ft(b: Numbers, reduction: str) -> list[float]:
    return nll_terms(b, reduction)


def slic(b: Numbers, delta: float, nll_weight: float) -> list[float]:
    return [max(0.0, delta - r.lw + r.ll) - nll_weight * r.lw for r in rows(b)]


def simpo(b: Numbers, beta: float, gamma: float, label_smoothing: float, nll_weight: float) -> list[float]:
    margins = [beta * (r.lw / r.nw - r.ll / r.nl) - gamma for r in rows(b)]
    terms = nll_terms(b, "token_mean")
    return [smoothed(m, label_smoothing) + nll_weight * t for m, t in zip(margins, terms, strict=True)]


def simper(b: Numbers) -> list[float]:
    return [math.exp(r.ll / r.nl) - math.exp(r.lw / r.nw) for r in rows(b)]


def alpha_po(b: Numbers, beta: float, gamma: float, alpha: float) -> list[float]:
    def reward(mean: float) -> float:
        return mean if alpha == 0 else (1 - math.exp(mean) ** -alpha) / alpha

    return [-log_sigmoid(beta * (reward(r.lw / r.nw) - reward(r.ll / r.nl)) - gamma) for r in rows(b)]


def cpo(b: Numbers, beta: float, label_smoothing: float, nll_weight: float, nll_reduction: str) -> list[float]:
    terms = nll_terms(b, nll_reduction)
    return [
        smoothed(beta * (r.lw - r.ll), label_smoothing) + nll_weight * t for r, t in zip(rows(b), terms, strict=True)
    ]


def orpo(b: Numbers, beta: float, nll_reduction: str) -> list[float]:
    def log_odds(mean: float) -> float:
        p = math.exp(mean)
        return math.log(p / (1 - p))

    terms = nll_terms(b, nll_reduction)
    return [
        t - beta * log_sigmoid(log_odds(r.lw / r.nw) - log_odds(r.ll / r.nl))
        for r, t in zip(rows(b), terms, strict=True)
    ]


def odds_ratio_judgment(b: Numbers, weight: float, nll_reduction: str) -> list[float]:
    terms = nll_terms(b, nll_reduction)
    odds = [[math.exp(mean) / (1 - math.exp(mean)) for mean in (r.lw / r.nw, r.ll / r.nl)] for r in rows(b)]
    return [t + weight * math.log(1 + low / high) for (high, low), t in zip(odds, terms, strict=True)]
