r"""Single responses: the best of each prompt, the best of the round, or all on one side of a score.

Notation: :math:`s_i` is the score of sample i of a prompt.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from rlhf_lightning.options import OpenShare, PositiveShare, Real
from rlhf_lightning.selection.options import makes, selector
from rlhf_lightning.selection.terms import (
    CutOff,
    DropOrKeep,
    Mask,
    PromptStreams,
    Scores,
    Ties,
    counted,
    eligible,
    share,
)
from rlhf_lightning.types import Selected


@selector
@makes("supervised", samples=1)
def best_of_n(
    score: Scores,
    truncated: Mask,
    *,
    keep: Literal["local", "top"] = "local",
    fraction: PositiveShare = 0.2,
    ties: Ties = "keep",
    cut_off: DropOrKeep = "drop",
) -> Selected:
    r"""The best sample of every prompt, or the best samples of the round whatever their prompts.

    .. math:: \{\arg\max_i s_{x,i}\}_x \quad\text{or}\quad \text{the } \lfloor f N \rfloor \text{ largest } s_{x,i}

    N is the number of samples of the round that have a score and may be kept.

    Source: "RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment", arXiv:2304.06767, and its code
    (OptimalScale/LMFlow): ``local`` and ``top``.
    Defaults: ``local`` is what the authors' script runs and .2 their fraction (the script: .125, that is the best of
    8). The keeping of ties is theirs too.
    Differences: ``top`` ends in a NameError in LMFlow, so all published runs are ``local``. LMFlow also drops
    responses that hold '#'; cut-off samples are left out here unless ``cut_off=keep``.

    Args:
        score: of each sample.
        truncated: whether it was cut off.
        keep: ``local``: one sample a prompt; ``top``: the best of all, at least one, more from easy prompts.
        fraction: f, with ``top`` alone.
        ties: with ``local``, what becomes of a prompt all of whose samples have the same score; ``keep``: the first.
        cut_off: whether a cut-off sample may be kept.
    """
    _, winners = eligible(score, truncated, cut_off)
    ranked = score.masked_fill(~winners, -torch.inf)
    lowest = score.masked_fill(~winners, torch.inf).amin(1)
    equal = (winners.sum(1) > 1) & (ranked.amax(1) == lowest)
    metrics = {"tie_rate": share(equal, winners.sum(1) > 1), "left_out": float((~winners.any(1)).sum())}
    if keep == "top":
        kept = torch.zeros_like(winners).flatten()
        count = max(math.floor(fraction * float(winners.sum()) + 1e-9), 1)
        kept[ranked.flatten().argsort(descending=True, stable=True)[:count]] = True
        kept = kept.view_as(winners) & winners
    else:
        best = torch.zeros_like(winners).scatter(1, ranked.argmax(1, keepdim=True), True)
        kept = best & winners & (~equal[:, None] if ties == "drop" else True)
    return counted(_singles(kept), truncated, score, metrics)


@selector
@makes("supervised", "unpaired", samples=1)
def threshold(
    score: Scores,
    truncated: Mask,
    generator: torch.Generator,
    *,
    above: Real = 0.0,
    quantile: OpenShare | None = None,
    undesirable: Literal["drop", "keep"] = "drop",
    balance: bool = False,
    cut_off: CutOff = "drop",
) -> Selected:
    r"""Every sample above a score, and with ``undesirable=keep`` the others as bad examples.

    .. math:: \{i : s_i > \tau\}

    Source: "Reinforced Self-Training (ReST) for Language Modeling", arXiv:2308.08998 (the indicator of its improve
    step); with the bad examples and ``balance`` the iterations of "The CRINGE Loss", arXiv:2211.05826.
    Defaults: 0 is the middle of a classifier's logit and of a log-ratio, and our choice; ReST raises its thresholds
    from step to step. The CRINGE authors' code balances.
    Differences: cut-off samples are desirable with ``cut_off=keep`` alone; neither paper says.

    Args:
        score: of each sample.
        truncated: whether it was cut off.
        generator: of the samples that ``balance`` drops.
        above: the threshold; a sample at it is not above.
        quantile: the threshold is the score below which this share of the round's scored samples lies (interpolated),
            instead of ``above``.
        undesirable: whether samples at or below the threshold are groups too, with the number ``desirable`` 0.
        balance: drop random samples of the label that the round has more of, until there are as many of both.
        cut_off: whether a cut-off sample may be undesirable (``lose``: one above the threshold is in no group), or
            desirable too (``keep``).
    """
    members, winners = eligible(score, truncated, cut_off)
    values = score[members].double()
    border = above if quantile is None else _quantile(values, quantile)
    good, bad = winners & (score > border), members & (score <= border)
    metrics = {"above_rate": share(good, members), "left_out": float((~members.any(1)).sum()), "threshold": border}
    kept = good | bad if undesirable == "keep" else good
    if balance:
        kept = kept & ~_surplus(kept & good, kept & bad, PromptStreams(generator, len(score)).draw(score.shape[1]))
    selected = _singles(kept)
    if undesirable == "keep":
        selected.numbers["desirable"] = good[kept].float()[:, None]
    return counted(selected, truncated, score, metrics)


def _quantile(values: Tensor, share_below: float) -> float:
    """A quantile, interpolated; 0 of no values."""
    if not len(values):
        return 0.0
    ordered, position = values.sort().values, share_below * (len(values) - 1)
    low = math.floor(position)
    high = min(low + 1, len(values) - 1)
    return float(ordered[low] + (position - low) * (ordered[high] - ordered[low]))


def _singles(kept: Tensor) -> Selected:
    """One group a sample, in the order of prompts and samples."""
    prompt, sample = kept.nonzero(as_tuple=True)
    return Selected(prompt, sample[:, None])


def _surplus(good: Tensor, bad: Tensor, draws: Tensor) -> Tensor:
    """Random samples of the more frequent label, as many as there are more of it."""
    more, fewer = (good, bad) if good.sum() > bad.sum() else (bad, good)
    surplus = torch.zeros_like(more).flatten()
    order = draws.masked_fill(~more, torch.inf).flatten().argsort(stable=True)
    surplus[order[: int(more.sum() - fewer.sum())]] = True
    return surplus.view_as(more)
