"""Statistical rejection sampling: samples of the optimal policy out of samples of the policy at hand (RSO)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from rlhf_lightning.options import NonNegative, Range
from rlhf_lightning.selection.options import makes, selector
from rlhf_lightning.selection.terms import CutOff, Mask, PromptStreams, Scores, counted, eligible, gap, pairs, share
from rlhf_lightning.types import NONE, Selected

Drawn = Int[Tensor, "prompts drawn"]
#: Just below 1 in float64.
_BELOW_ONE = 1 - 2.0**-52


@selector
@makes("preference")
def rejection_sampling(
    score: Scores,
    truncated: Mask,
    generator: torch.Generator,
    *,
    n: Annotated[int, Range("[2, inf)")] = 8,
    beta: NonNegative = 0.5,
    sampler: Literal["sweep", "exact"] = "sweep",
    pairing: Literal["first_round", "tournament"] = "first_round",
    cut_off: CutOff = "drop",
) -> Selected:
    r"""Draw n samples of each prompt in proportion to their reward, and pair them.

    .. math:: \mathrm{accept}\ i\ \text{with probability}\ e^{(s_i - \max_j s_j)/\beta},\quad
        \text{so that}\ i \sim \frac{e^{s_i/\beta}}{\sum_j e^{s_j/\beta}}

    ``sweep`` goes over the prompt's samples in a random order and accepts each with that probability, the maximum being
    that of the samples which are left; it goes over those again until n are accepted, without replacement. ``exact``
    draws with replacement until n are accepted, which is the distribution on the right: a small pool makes ``sweep``
    greedier than that. A prompt with fewer samples gives what it has.

    Source: "Statistical Rejection Sampling Improves Preference Optimization" (RSO), arXiv:2309.06657: 8 of 64 samples,
    algorithm 1 and section 3.2.
    Defaults: the paper's.
    Differences: there is no official code. The paper labels every pair with its pairwise model; here the score does,
    and a pair with equal scores is dropped. The order of a sweep is random, since a fixed one favours early samples.

    Args:
        score: r of each sample.
        truncated: whether it was cut off.
        generator: of acceptance and pairing. A prompt's numbers do not depend on the others.
        n: samples to draw of every prompt.
        beta: score a nat; 0: those with the highest score.
        sampler: how they are drawn; what ``exact`` draws twice is paired as two samples, and with itself is a tie.
        pairing: ``first_round`` pairs them at random, n / 2 pairs; in a ``tournament`` winners are paired again, n - 1.
        cut_off: whether a cut-off sample may be drawn, and lose (``lose``: it advances in a tournament against another
            one only), or win too (``keep``).
    """
    members, winners = eligible(score, truncated, cut_off)
    score = score.double()
    streams = PromptStreams(generator, len(score))
    keys = streams.draw(n)  # ahead of the sweeps, whose number is that of the prompt with the most
    if sampler == "exact":
        drawn, sweeps = _exact(score, members, n, beta, streams), members.any(1).double()
    else:
        drawn, sweeps = _swept(score, members, n, beta, streams)
    rank = score.masked_fill(~winners, -torch.inf)
    first, second = _paired(drawn, rank, pairing, keys)
    exists = (first != NONE) & (second != NONE)
    ahead = gap(score, first.clamp(min=0), second.clamp(min=0))
    chosen, rejected = torch.where(ahead >= 0, first, second), torch.where(ahead >= 0, second, first)
    wins = winners.gather(1, chosen.clamp(min=0))
    selected = pairs(chosen, rejected, ahead.abs(), exists & (ahead != 0) & wins)
    metrics = {
        "tie_rate": share(exists & (ahead == 0), exists),
        "left_out": float((members.sum(1) < 2).sum()),
        "sweeps": float(sweeps.mean()) if len(sweeps) else 0.0,
        **_statistics(score, members, drawn, beta),
    }
    return counted(selected, truncated, score, metrics)


def _log_acceptance(score: Tensor, pool: Tensor, beta: float) -> Tensor:
    """Log of the probability with which each sample of a pool is accepted; -inf outside it."""
    below = score - score.masked_fill(~pool, -torch.inf).amax(1, keepdim=True)
    scaled = below / beta if beta else torch.where(below == 0, 0.0, -torch.inf)
    return torch.where(pool, scaled, -torch.inf)


def _exact(score: Tensor, members: Tensor, n: int, beta: float, streams: PromptStreams) -> Drawn:
    """Independent draws with probabilities that are proportional to the acceptance."""
    reached = _log_acceptance(score, members, beta).exp().cumsum(1)
    total = reached[:, -1:]
    aim = (streams.draw(n) * total).minimum(total * _BELOW_ONE)
    drawn = torch.searchsorted(reached, aim, right=True)
    return torch.where(members.any(1, keepdim=True), drawn, NONE)


def _swept(score: Tensor, members: Tensor, n: int, beta: float, streams: PromptStreams) -> tuple[Drawn, Tensor]:
    """Samples in the order in which sweeps accept them, ``NONE`` behind the last one, and sweeps of each prompt."""
    prompts, samples = score.shape
    pool, count, sweeps = members.clone(), torch.zeros(prompts, dtype=torch.long), torch.zeros(prompts)
    drawn = torch.full((prompts, n), NONE)
    while (active := (count < n) & pool.any(1)).any():
        draws = streams.draw(2 * samples)
        visits, chances = draws[:, :samples], draws[:, samples:]
        accepted = chances.log() < _log_acceptance(score, pool, beta)
        order = visits.argsort(dim=1, stable=True)
        position = count[:, None] + accepted.gather(1, order).cumsum(1)  # from 1, of those that are accepted
        row, visit = (accepted.gather(1, order) & (position <= n)).nonzero(as_tuple=True)
        sample = order[row, visit]
        drawn[row, position[row, visit] - 1] = sample
        pool[row, sample] = False
        count = position[:, -1].clamp(max=n)
        sweeps += active
    return drawn, sweeps


def _paired(drawn: Drawn, rank: Tensor, pairing: str, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Both samples of each pair, ``NONE`` where there is none, in the order of a tournament's rounds."""
    order = keys.masked_fill(drawn == NONE, torch.inf).argsort(dim=1, stable=True)
    players = drawn.gather(1, order)
    firsts, seconds = [], []
    while players.shape[1] > 1:
        if players.shape[1] % 2:
            players = torch.cat([players, torch.full_like(players[:, :1], NONE)], dim=1)
        first, second = players[:, 0::2], players[:, 1::2]
        firsts.append(first)
        seconds.append(second)
        if pairing == "first_round":
            break
        better = rank.gather(1, second.clamp(min=0)) > rank.gather(1, first.clamp(min=0))
        players = torch.where(better & (second != NONE), second, first)
    return torch.cat(firsts, dim=1), torch.cat(seconds, dim=1)


def _statistics(score: Tensor, members: Tensor, drawn: Drawn, beta: float) -> dict[str, float]:
    """Acceptance of the first sweep, mean scores of all and of drawn samples, and the target's KL to the pool, nats."""
    if not members.any():
        return {"acceptance_rate": 0.0, "pool_score": 0.0, "drawn_score": 0.0, "target_kl": 0.0}
    log_acceptance = _log_acceptance(score, members, beta)[members.any(1)]
    target = log_acceptance.softmax(1)
    entropy = torch.special.entr(target).sum(1)
    pool = members.sum(1)[members.any(1)].double()
    return {
        "acceptance_rate": float(log_acceptance.exp().sum() / members.sum()),
        "pool_score": float(score[members].mean()),
        "drawn_score": float(score.gather(1, drawn.clamp(min=0))[drawn != NONE].mean()),
        "target_kl": float((pool.log() - entropy).mean()),
    }
