"""The selectors in plain Python, one prompt and one sample at a time: twins for the tests.

Where chance is involved a twin reads the same random numbers, in the order that the selector says it draws them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from rlhf_lightning.types import DATA, NONE
from tests.helpers.selection_inputs import Group, SampleRound


def members_of(b: SampleRound, p: int, cut_off: str) -> list[int]:
    """Samples of a prompt that may be in a group."""
    return [i for i, s in enumerate(b.score[p]) if math.isfinite(s) and (cut_off != "drop" or not b.truncated[p][i])]


def may_win(b: SampleRound, p: int, i: int, cut_off: str) -> bool:
    """Return whether a sample may be chosen."""
    return cut_off == "keep" or not b.truncated[p][i]


def winners_of(b: SampleRound, p: int, cut_off: str) -> list[int]:
    """Samples of a prompt that may be chosen."""
    return [i for i in members_of(b, p, cut_off) if may_win(b, p, i, cut_off)]


def pair(
    b: SampleRound, p: int, values: list[float], winner: int, loser: int, ties: str = "drop", cut_off: str = "drop"
) -> Iterator[Group]:
    """A pair if its winner may win and is ahead."""
    margin = values[winner] - values[loser]
    if may_win(b, p, winner, cut_off) and (margin > 0 or (margin == 0 and ties == "keep")):
        yield p, (winner, loser), {"margin": margin}


def extremes(values: list[float], winners: list[int], members: list[int]) -> tuple[int, int] | None:
    """First highest and last lowest of the others."""
    if not winners or len(members) < 2:
        return None
    best = max(winners, key=lambda i: (values[i], -i))
    return best, min((i for i in members if i != best), key=lambda i: (values[i], -i))


def best_and_worst(b: SampleRound, ties: str = "drop", cut_off: str = "drop") -> Iterator[Group]:
    for p, values in enumerate(b.score):
        ends = extremes(values, winners_of(b, p, cut_off), members_of(b, p, cut_off))
        if ends:
            yield from pair(b, p, values, *ends, ties, cut_off)


def best_and_another(
    b: SampleRound, other: str = "random", ties: str = "drop", cut_off: str = "drop"
) -> Iterator[Group]:
    for p, values in enumerate(b.score):
        winners, members = winners_of(b, p, cut_off), members_of(b, p, cut_off)
        if not winners or len(members) < 2:
            continue
        best = max(winners, key=lambda i: (values[i], -i))
        others = [i for i in members if i != best]
        rival = others[0] if other == "random" else max(others, key=lambda i: (values[i], i))
        yield from pair(b, p, values, best, rival, ties, cut_off)


def length_penalised(
    b: SampleRound, penalty: float, label: str = "score", ties: str = "drop", cut_off: str = "drop"
) -> Iterator[Group]:
    for p, values in enumerate(b.score):
        priced = [s - penalty * n for s, n in zip(values, b.length[p], strict=True)]
        ends = extremes(priced, winners_of(b, p, cut_off), members_of(b, p, cut_off))
        if not ends:
            continue
        if label == "score":
            if values[ends[1]] > values[ends[0]]:
                ends = ends[::-1]
            yield from pair(b, p, values, *ends, ties, cut_off)
        else:
            yield from pair(b, p, priced, *ends, ties, cut_off)


def length_calibrated(
    b: SampleRound,
    alpha: float | None = None,
    step: float = 0.001,
    largest: float = 1.0,
    least: int = 2,
    ties: str = "drop",
    cut_off: str = "drop",
) -> Iterator[Group]:
    usable = [members_of(b, p, cut_off) for p in range(len(b.score))]
    usable = [samples if len(samples) >= least else [] for samples in usable]

    def priced(price: float) -> list[list[float]]:
        return [[s - price * n for s, n in zip(*rows, strict=True)] for rows in zip(b.score, b.length, strict=True)]

    def mean_gap(price: float) -> float:
        gaps = []
        for p, values in enumerate(priced(price)):
            ends = extremes(values, usable[p], usable[p])
            if ends:
                gaps.append(b.length[p][ends[0]] - b.length[p][ends[1]])
        return abs(sum(gaps) / len(gaps)) if gaps else 0.0

    if alpha is None:
        curve = []
        for k in range(int(largest / step + 1e-9) + 1):
            curve.append(mean_gap(k * step))
            if curve[-1] > min(curve):
                break
        alpha = curve.index(min(curve)) * step
    for p, values in enumerate(priced(alpha)):
        ends = extremes(values, usable[p], usable[p])
        if ends:
            yield from pair(b, p, values, *ends, ties, cut_off)


def ranking(b: SampleRound, p: int, cut_off: str) -> list[int]:
    return sorted(members_of(b, p, cut_off), key=lambda i: (-b.score[p][i], i))


def all_pairs(b: SampleRound, cut_off: str = "drop") -> Iterator[Group]:
    for p, values in enumerate(b.score):
        order = ranking(b, p, cut_off)
        for rank, winner in enumerate(order):
            for loser in order[rank + 1 :]:
                yield from pair(b, p, values, winner, loser, cut_off=cut_off)


def adjacent_pairs(b: SampleRound, cut_off: str = "drop") -> Iterator[Group]:
    for p, values in enumerate(b.score):
        for winner, loser in pairwise(ranking(b, p, cut_off)):
            yield from pair(b, p, values, winner, loser, cut_off=cut_off)


def best_of_n(
    b: SampleRound, keep: str = "local", fraction: float = 0.2, ties: str = "keep", cut_off: str = "drop"
) -> Iterator[Group]:
    everything = [(p, i) for p in range(len(b.score)) for i in winners_of(b, p, cut_off)]
    if keep == "top":
        everything.sort(key=lambda at: -b.score[at[0]][at[1]])
        count = max(int(fraction * len(everything)), 1)
        for p, i in sorted(everything[:count]):
            yield p, (i,), {}
        return
    for p, values in enumerate(b.score):
        members = [i for q, i in everything if q == p]
        if members and not (ties == "drop" and len(members) > 1 and len({values[i] for i in members}) == 1):
            yield p, (max(members, key=lambda i: (values[i], -i)),), {}


def threshold(
    b: SampleRound,
    above: float = 0.0,
    quantile: float | None = None,
    undesirable: str = "drop",
    balance: bool = False,
    cut_off: str = "drop",
) -> Iterator[Group]:
    members = [(p, i) for p in range(len(b.score)) for i in members_of(b, p, cut_off)]
    values = sorted(b.score[p][i] for p, i in members)
    if quantile is not None and values:
        at = quantile * (len(values) - 1)
        rest = at - math.floor(at)
        low, high = values[math.floor(at)], values[math.ceil(at)]
        above = low + rest * (high - low)
    good = [(p, i) for p, i in members if b.score[p][i] > above and may_win(b, p, i, cut_off)]
    bad = [(p, i) for p, i in members if b.score[p][i] <= above] if undesirable == "keep" else []
    if balance:
        draws = b.streams.draw(len(b.score[0]) if b.score else 2).tolist()
        more, fewer = (good, bad) if len(good) > len(bad) else (bad, good)
        for at in sorted(more, key=lambda at: draws[at[0]][at[1]])[: len(more) - len(fewer)]:
            more.remove(at)
    for p, i in sorted(good + bad):
        yield p, (i,), {"desirable": [float((p, i) in good)]} if undesirable == "keep" else {}


def data_vs_policy(b: SampleRound, equal: str = "drop", cut_off: str = "drop") -> Iterator[Group]:
    for p, row in enumerate(b.same_as):
        for i, same in enumerate(row):
            if not (equal == "drop" and same == DATA) and not (cut_off == "drop" and b.truncated[p][i]):
                yield p, (DATA, i), {"policy_sample": [0.0, 1.0]}


def random_pair(b: SampleRound, label: str = "score", cut_off: str = "drop") -> Iterator[Group]:
    samples = len(b.score[0]) if b.score else 2
    for p, (values, draws) in enumerate(zip(b.score, b.streams.draw(samples + 1).tolist(), strict=True)):
        members = sorted(members_of(b, p, cut_off), key=lambda i: draws[i])
        if len(members) < 2:
            continue
        winner, loser = members[:2]
        if label == "random":
            winner, loser = (loser, winner) if draws[-1] < 0.5 else (winner, loser)
            if may_win(b, p, winner, cut_off):
                yield p, (winner, loser), {}
        else:
            winner, loser = (loser, winner) if values[loser] > values[winner] else (winner, loser)
            yield from pair(b, p, values, winner, loser, cut_off=cut_off)


def policy_vs_reference(b: SampleRound, ties: str = "drop", cut_off: str = "drop") -> Iterator[Group]:
    policy, reference = ([i for i, draw in enumerate(b.source) if draw == number] for number in (0, 1))
    for p, values in enumerate(b.score):
        members = members_of(b, p, cut_off)
        for i, j in zip(policy, reference, strict=False):
            if i in members and j in members:
                winner, loser = (j, i) if values[j] > values[i] else (i, j)
                for _, slots, numbers in pair(b, p, values, winner, loser, ties, cut_off):
                    yield p, slots, numbers | {"reference_sample": [float(b.source[s]) for s in slots]}


def win_rates(b: SampleRound, judge: str = "matrix", cut_off: str = "drop") -> Iterator[Group]:
    policy, rivals = ([i for i, draw in enumerate(b.source) if draw == number] for number in (0, 1))
    for p in range(len(b.score)):
        chance, rates = chances(b, p, judge), {}
        for i in policy:
            win_chances = [chance[i][j] for j in rivals if not math.isnan(chance[i][j])]
            if win_chances and not (b.truncated[p][i] and cut_off == "drop"):
                rates[i] = sum(win_chances) / len(win_chances) if may_win(b, p, i, cut_off) else 0.0
        if rates:
            empty = len(policy) - len(rates)
            yield p, (*rates, *[NONE] * empty), {"score": [*rates.values(), *[0.0] * empty]}


def win_probability(
    b: SampleRound,
    judge: str = "matrix",
    include_self: bool = True,
    target: str = "policy",
    ties: str = "drop",
    cut_off: str = "drop",
) -> Iterator[Group]:
    for p in range(len(b.score)):
        chance = chances(b, p, judge)
        against = []
        for i, row in enumerate(chance):
            finite = [x for j, x in enumerate(row) if not math.isnan(x) and (include_self or i != j)]
            against.append(round(sum(finite) / len(finite), 12) if finite else math.nan)
        members = [i for i, x in enumerate(against) if not (math.isnan(x) or (cut_off == "drop" and b.truncated[p][i]))]
        ends = extremes(against, [i for i in members if may_win(b, p, i, cut_off)], members)
        if not ends:
            continue
        winner, loser = ends
        to_policy, to_other = [against[winner], against[loser]], [chance[winner][loser], chance[loser][winner]]
        numbers = to_policy if target == "policy" else to_other
        if not any(math.isnan(x) for x in numbers):
            for _, slots, _ in pair(b, p, against, winner, loser, ties, cut_off):
                yield p, slots, {"win_probability": numbers}


def chances(b: SampleRound, p: int, judge: str) -> list[list[float]]:
    """P of a prompt, 1/2 on the diagonal of samples that were judged."""
    values = b.score[p]
    made = [[math.nan] * len(values) for _ in values]
    for i, s in enumerate(values):
        for j, other in enumerate(values):
            if judge == "matrix" and i != j:
                made[i][j] = b.preference[p][i][j]
            elif judge == "scores" and math.isfinite(s) and math.isfinite(other):
                made[i][j] = 1 / (1 + math.exp(other - s))
        judged = math.isfinite(s) if judge == "scores" else any(not math.isnan(x) for x in made[i])
        made[i][i] = 0.5 if judged else math.nan
    return made


def rejection_sampling(
    b: SampleRound,
    n: int = 8,
    beta: float = 0.5,
    sampler: str = "sweep",
    pairing: str = "first_round",
    cut_off: str = "drop",
) -> Iterator[Group]:
    streams, samples = b.streams, len(b.score[0]) if b.score else 2
    pools = [members_of(b, p, cut_off) for p in range(len(b.score))]

    def acceptance(p: int, i: int, pool: list[int]) -> float:
        below = b.score[p][i] - max(b.score[p][j] for j in pool)
        return math.exp(below / beta) if beta else float(below == 0)

    drawn: list[list[int]] = [[] for _ in pools]
    pairing_draws = streams.draw(n).tolist()
    if sampler == "exact":
        for p, draws in enumerate(streams.draw(n).tolist()):
            weights = [acceptance(p, i, pools[p]) for i in pools[p]]
            for u in draws if weights else []:
                reached = [sum(weights[: k + 1]) for k in range(len(weights))]
                drawn[p].append(next(i for i, r in zip(pools[p], reached, strict=True) if r > u * reached[-1]))
    else:
        left = [list(pool) for pool in pools]
        while any(left[p] and len(drawn[p]) < n for p in range(len(pools))):
            for p, draws in enumerate(streams.draw(2 * samples).tolist()):
                pool = list(left[p])
                for i in sorted(pool, key=lambda i: draws[i]):
                    if len(drawn[p]) < n and draws[samples + i] < acceptance(p, i, pool):
                        drawn[p].append(i)
                        left[p].remove(i)
    for p, draws in enumerate(pairing_draws):
        keys = draws[: len(drawn[p])]
        players = [drawn[p][k] for k in sorted(range(len(keys)), key=lambda k: keys[k])]
        yield from _matches(b, p, players, pairing, cut_off)


def _matches(b: SampleRound, p: int, players: list[int], pairing: str, cut_off: str) -> Iterator[Group]:
    values = b.score[p]
    while len(players) > 1:
        winners = []
        for i, j in zip(players[::2], [*players[1::2], NONE][: (len(players) + 1) // 2], strict=True):
            if j == NONE:
                winners.append(i)
                continue
            winner, loser = (i, j) if values[i] >= values[j] else (j, i)
            yield from pair(b, p, values, winner, loser, cut_off=cut_off)
            rank: list[Any] = [values[k] if may_win(b, p, k, cut_off) else -math.inf for k in (i, j)]
            winners.append(j if rank[1] > rank[0] else i)
        players = winners if pairing == "tournament" else []
