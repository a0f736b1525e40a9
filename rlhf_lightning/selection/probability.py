"""Chances of winning: best and worst sample by those against the policy (SPPO), every sample with its own (Nash-MD)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.selection.options import makes, selector
from rlhf_lightning.selection.terms import (
    CutOff,
    Draws,
    Mask,
    Scores,
    Ties,
    best_against,
    counted,
    eligible,
    of_draw,
    one_pair,
    share,
)
from rlhf_lightning.types import NONE, Selected

Preferences = Float[Tensor, "prompts samples samples"]


@selector
@makes("preference", asks={"judge": {"matrix": "preference", "scores": "score"}})
def win_probability(
    truncated: Mask,
    preference: Preferences | None = None,
    score: Scores | None = None,
    *,
    judge: Literal["matrix", "scores"] = "matrix",
    include_self: bool = True,
    target: Literal["policy", "pair"] = "policy",
    ties: Ties = "drop",
    cut_off: CutOff = "drop",
) -> Selected:
    r"""The samples most and least likely to beat the policy's own, with those probabilities.

    .. math:: \hat P(y_i \succ \pi) = \frac{1}{n}\sum_j P_{ij},\quad w, l = \arg\max_i, \arg\min_i \hat P(y_i \succ \pi)

    The number ``win_probability`` of a pair is :math:`\hat P` of either response. Metrics tell whether the judge was a
    real matrix: ``from_scores``, and ``intransitive``, the share of three samples of which each beats the next.

    Source: "Self-Play Preference Optimization for Language Model Alignment" (SPPO), arXiv:2405.00675, and its code
    (uclaml/SPPO): best and worst of 5 samples, each counted against itself too.
    Defaults: ``include_self`` and ``target`` are the code's (``sppo``; ``pair`` is its ``sppo_single``). The matrix is
    what the paper's theory asks for.
    Differences: the code makes the matrix of one PairRM score a sample, :math:`P_{ij} = \sigma(s_i - s_j)`, so it
    never sees an intransitive preference: that is ``judge=scores``. It keeps ties and cut-off samples.

    Args:
        truncated: whether a sample was cut off. Such a sample still is an opponent.
        preference: P, with ``judge=matrix``; an opponent j for whom :math:`P_{ij}` is unknown does not count for i.
        score: s, with ``judge=scores``.
        judge: what P is: any pairwise judge's matrix, or made of scores.
        include_self: whether a sample's chance against itself, 1/2, is part of the mean.
        target: the number is against the policy, or against the other response of the pair.
        ties: what becomes of a prompt whose best and worst chance are equal; as in ``best_and_worst``.
        cut_off: whether a cut-off sample may lose (``lose``), or win too (``keep``).

    Raises:
        ValueError: what ``judge`` asks for was not given, or a preference is no probability.
    """
    chances = _matrix(preference, score, judge)
    against = _against_policy(chances, include_self)
    members, winners = eligible(against, truncated, cut_off)
    best, worst, exists = best_against(against, -against, members, winners)
    rows = torch.arange(len(chances))
    has_verdict = chances[rows, best, worst].isfinite() & chances[rows, worst, best].isfinite()
    selected, metrics = one_pair(against, best, worst, exists & has_verdict if target == "pair" else exists, ties)
    row, (chosen, rejected) = selected.prompt, selected.slots.unbind(1)
    if target == "policy":
        numbers = [against[row, chosen], against[row, rejected]]
    else:
        numbers = [chances[row, chosen, rejected], chances[row, rejected, chosen]]
    selected.numbers = {"win_probability": torch.stack(numbers, dim=1).float()}
    has_chance = against.isfinite()
    metrics |= {
        "from_scores": float(judge == "scores"),
        "near_even": share(has_chance & ((against - 0.5).abs() <= 0.1), has_chance),
        "intransitive": _intransitive(chances),
    }
    return counted(selected, truncated, against, metrics)


@selector
@makes(
    "ranked",
    asks={"judge": {"matrix": "preference", "scores": "score"}},
    sources=(("policy",), ("mixture", "reference", "policy", "data")),
)
def win_rates(
    truncated: Mask,
    source: Draws,
    preference: Preferences | None = None,
    score: Scores | None = None,
    *,
    judge: Literal["matrix", "scores"] = "matrix",
    cut_off: CutOff = "drop",
) -> Selected:
    r"""Every sample of the policy, with its probability of beating those of a rival.

    .. math:: \hat P(y_i \succ \mu) = \frac{1}{|R|}\sum_{j \in R} P_{ij},\quad y_i \sim \pi,\ y_j \sim \mu

    The first draw of a round is the policy's, the second the rival's (R), whose samples are in no group. A prompt is
    one list of the policy's samples; the number ``score`` is :math:`\hat P`.

    Source: "Nash Learning from Human Feedback" (Nash-MD), arXiv:2312.00886, section 7: one sample of either, the rival
    being a geometric mixture of policy and reference.
    Defaults: the matrix is what the paper's theory asks for; that cut-off samples are left out is our choice.
    Differences: TRL 1.13, the last release that had the method, makes P of two scores,
    :math:`P_{ij} = \sigma(s_i - s_j)`: that is ``judge=scores``.

    Args:
        truncated: whether a sample was cut off. Such a rival still is one.
        source: the draw of each sample.
        preference: P, with ``judge=matrix``; a rival j for whom :math:`P_{ij}` is unknown does not count for i.
        score: s, with ``judge=scores``.
        judge: what P is: any pairwise judge's matrix, or made of scores.
        cut_off: a cut-off sample of the policy is left out, has lost (``lose``: its number is 0), or counts as any
            other (``keep``).

    Raises:
        ValueError: what ``judge`` asks for was not given, or a preference is no probability.
    """
    policy, rivals = of_draw(source, 0), of_draw(source, 1)
    against = _matrix(preference, score, judge)[:, policy][:, :, rivals].nanmean(2)
    members, winners = eligible(against, truncated[:, policy], cut_off)
    against = against.masked_fill(~winners, 0.0)
    order = members.logical_not().long().argsort(dim=1, stable=True)  # members first
    present = members.gather(1, order)
    kept = members.any(1)
    selected = Selected(
        kept.nonzero()[:, 0],
        torch.where(present, policy[order], NONE)[kept],
        {"score": torch.where(present, against.gather(1, order), 0.0)[kept].float()},
    )
    metrics = {
        "win_rate": float(against[members].mean()) if members.any() else 0.0,
        "from_scores": float(judge == "scores"),
        "left_out": float((~kept).sum()),
    }
    return counted(selected, truncated, score, metrics)


def _matrix(preference: Tensor | None, score: Tensor | None, judge: str) -> Tensor:
    """P in float64, with 1/2 on the diagonal of every sample that was judged."""
    if judge == "scores" and score is not None:
        judged = score.isfinite()
        values = score.double().masked_fill(~judged, torch.nan)
        chances = (values[:, :, None] - values[:, None, :]).sigmoid()
    elif judge == "matrix" and preference is not None:
        itself = torch.eye(preference.shape[1], dtype=torch.bool)
        chances = preference.double()
        judged = (chances.isfinite() & ~itself).any(2)
        if ((chances < 0) | (chances > 1)).any():
            raise ValueError("a preference is outside [0, 1]: a judge must give probabilities")
    else:
        asked = {"scores": "scores", "matrix": "a matrix of pairwise preferences"}[judge]
        raise ValueError(f"judge={judge} needs {asked}: set rounds.selector.judge, or another reward")
    diagonal = torch.where(judged, 0.5, torch.nan).double()
    return torch.diagonal_scatter(chances, diagonal, dim1=1, dim2=2)


def _against_policy(chances: Tensor, include_self: bool) -> Tensor:
    """Mean chance of each sample against those of its prompt, (prompts, samples); nan where nothing is known.

    To 12 decimals: the means of equal samples differ by the order of their sums, and would be no tie.
    """
    counted_in = chances.isfinite()
    if not include_self:
        counted_in = counted_in & ~torch.eye(chances.shape[1], dtype=torch.bool)
    return (torch.where(counted_in, chances, 0.0).sum(2) / counted_in.sum(2)).round(decimals=12)


def _intransitive(chances: Tensor) -> float:
    """Share of three samples of a prompt, all compared, of which each beats the next one."""
    beats = (chances > 0.5).double()
    compared = chances.isfinite() & chances.transpose(1, 2).isfinite()
    compared = (compared & ~torch.eye(chances.shape[1], dtype=torch.bool)).double()
    cycles = float(torch.einsum("pij,pjk,pki->", beats, beats, beats)) / 3
    triples = float(torch.einsum("pij,pjk,pki->", compared, compared, compared)) / 6
    return cycles / triples if triples else 0.0
