"""Pairs whose sides are given beforehand: data or reference against the policy, and two random samples."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from rlhf_lightning.selection.options import makes, selector
from rlhf_lightning.selection.terms import (
    CutOff,
    Draws,
    Mask,
    PromptStreams,
    Scores,
    Ties,
    counted,
    eligible,
    gap,
    of_draw,
    one_pair,
    pairs,
    share,
)
from rlhf_lightning.types import DATA, Selected


@selector
@makes("preference", samples=1)
def data_vs_policy(
    truncated: Mask,
    same_as: Int[Tensor, "prompts samples"],
    *,
    equal: Literal["drop", "keep"] = "drop",
    cut_off: CutOff = "drop",
) -> Selected:
    r"""The data's own response against every sample of the policy.

    .. math:: w = y_\mathrm{data},\quad l = y_i,\ i = 1 \dots n

    Source: "Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models" (SPIN), arXiv:2401.01335,
    with one sample; "Adversarial Preference Optimization", arXiv:2311.08045, with four.
    Defaults: equal texts and cut-off samples are left out, which is our choice.
    Differences: SPIN's code gives cut-off samples an end-of-sequence token that they did not draw, which is the
    cheapest thing to tell both sides apart by; here they are left out, or lose without one (``cut_off=lose``). It
    keeps pairs of equal texts, whose gradient is zero. Samples are marked as such (``policy_sample``), which APO's
    reward model reads.

    Args:
        truncated: whether a sample was cut off.
        same_as: which samples have the text of the data's response.
        equal: what becomes of such samples.
        cut_off: whether a cut-off sample may lose: ``lose`` and ``keep`` are one, since no sample wins here.
    """
    same = same_as == DATA
    kept = ~truncated if cut_off == "drop" else torch.ones_like(truncated)
    if equal == "drop":
        kept = kept & ~same
    prompt, sample = kept.nonzero(as_tuple=True)
    slots = torch.stack([torch.full_like(sample, DATA), sample], dim=1)
    selected = Selected(prompt, slots, {"policy_sample": (slots != DATA).float()})
    metrics = {"equal_rate": share(same, torch.ones_like(same)), "left_out": float((~kept.any(1)).sum())}
    return counted(selected, truncated, None, metrics)


@selector
@makes("preference", sources=(("policy",), ("reference",)))
def policy_vs_reference(
    score: Scores, truncated: Mask, source: Draws, *, ties: Ties = "drop", cut_off: CutOff = "drop"
) -> Selected:
    r"""A sample of the policy against one of the reference, whichever of them won.

    .. math:: \{w, l\} = \{y_{\pi,i},\, y_{\mathrm{ref},i}\},\quad s_w > s_l

    The first draw of a round is the policy's and the second the reference's; the i-th sample of one is compared with
    the i-th of the other. The number ``reference_sample`` of a pair is 1 for the response that the reference drew.

    Source: "Exploratory Preference Optimization: Harnessing Implicit Q*-Approximation for Sample-Efficient RLHF" (XPO),
    arXiv:2405.21046, algorithm 1, with one sample of each.
    Defaults: ties are dropped and cut-off samples left out, which is our choice.
    Differences: in TRL 1.13, the last release that had the method, the policy's sample wins a tie: that is
    ``ties=keep``.

    Args:
        score: of each sample.
        truncated: whether it was cut off.
        source: the draw of each sample.
        ties: what becomes of two samples with equal scores; ``keep``: the policy's is chosen.
        cut_off: whether a cut-off sample may lose (``lose``: where its score is the higher one there is no pair), or
            win too (``keep``).
    """
    first, second = of_draw(source, 0), of_draw(source, 1)
    count = min(len(first), len(second))
    policy, reference = first[:count].expand(len(score), count), second[:count].expand(len(score), count)
    members, winners = eligible(score, truncated, cut_off)
    exists = members.gather(1, policy) & members.gather(1, reference)
    ahead = gap(score, policy, reference)
    chosen, rejected = torch.where(ahead >= 0, policy, reference), torch.where(ahead >= 0, reference, policy)
    tied = exists & (ahead == 0)
    kept = exists & winners.gather(1, chosen) & (torch.ones_like(tied) if ties == "keep" else ~tied)
    selected = pairs(chosen, rejected, ahead.abs(), kept)
    selected.numbers["reference_sample"] = (source[selected.slots] == 1).float()
    metrics = {
        "tie_rate": share(tied, exists),
        "policy_wins": share(exists & (ahead > 0), exists),
        "left_out": float((~kept.any(1)).sum()),
    }
    return counted(selected, truncated, score, metrics)


@selector
@makes("preference")
def random_pair(
    score: Scores,
    truncated: Mask,
    generator: torch.Generator,
    *,
    label: Literal["score", "random"] = "score",
    cut_off: CutOff = "drop",
) -> Selected:
    r"""Two random samples of every prompt, labelled by their scores or by a coin: a control for every other rule.

    .. math:: \{w, l\} \sim \mathrm{Uniform},\quad s_w > s_l

    Source: "RLHF Workflow: From Reward Modeling to Online RLHF", arXiv:2405.07863, the rule ``random`` of its code;
    the coin is ours.
    Defaults: ``label`` is what that code does; that cut-off samples are left out is our choice.
    Differences: that code takes the first two samples, which are random too.

    Args:
        score: of each sample.
        truncated: whether it was cut off.
        generator: of the pairs and the coin.
        label: ``score``: the higher one is chosen, ties are dropped; ``random``: either, so that nothing can be
            learned from the pairs, and no margin is given.
        cut_off: whether a cut-off sample may lose (``lose``), or win too (``keep``).
    """
    members, winners = eligible(score, truncated, cut_off)
    draws = PromptStreams(generator, len(score)).draw(score.shape[1] + 1)
    order = draws[:, :-1].masked_fill(~members, torch.inf).argsort(dim=1, stable=True)
    first, second = order[:, 0], order[:, min(1, score.shape[1] - 1)]
    rows = torch.arange(len(score))
    swapped = draws[:, -1] < 0.5 if label == "random" else score[rows, second] > score[rows, first]
    chosen, rejected = torch.where(swapped, second, first), torch.where(swapped, first, second)
    exists = (members.sum(1) > 1) & winners[rows, chosen]
    ranks = score if label == "score" else torch.zeros_like(score)
    selected, metrics = one_pair(ranks, chosen, rejected, exists, "drop" if label == "score" else "keep")
    if label == "random":
        del selected.numbers["margin"]
        metrics["tie_rate"] = 0.0
    return counted(selected, truncated, score, metrics)
