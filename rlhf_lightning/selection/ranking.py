r"""Pairs of the ranking of a prompt's samples: all of them, or neighbours.

Notation: :math:`s_{(1)} \ge s_{(2)} \ge \dots` are the scores of a prompt's samples from the best one down.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from rlhf_lightning.selection.options import makes, selector
from rlhf_lightning.selection.terms import CutOff, Mask, Scores, counted, eligible, gap, pairs, share
from rlhf_lightning.types import Selected


@selector
@makes("preference")
def all_pairs(score: Scores, truncated: Mask, *, cut_off: CutOff = "drop") -> Selected:
    r"""Every pair of two samples with different scores: up to n (n - 1) / 2 a prompt.

    .. math:: \{(w, l) : s_w > s_l\}

    Source: "Training language models to follow instructions with human feedback", arXiv:2203.02155 (all comparisons of
    a ranking).
    Defaults: that cut-off samples are left out is our choice.
    Differences: that paper weighs each pair by 1 / (number of pairs of its prompt); here prompts with more pairs weigh
    more.

    Args:
        score: of each sample.
        truncated: whether it was cut off.
        cut_off: whether a cut-off sample may lose (``lose``), or win too (``keep``).
    """
    better, worse = torch.triu_indices(score.shape[1], score.shape[1], offset=1)
    return _ranked(score, truncated, cut_off, better, worse)


@selector
@makes("preference")
def adjacent_pairs(score: Scores, truncated: Mask, *, cut_off: CutOff = "drop") -> Selected:
    r"""Every sample of the ranking against the next one: up to n - 1 pairs a prompt.

    .. math:: \{((k), (k+1)) : s_{(k)} > s_{(k+1)}\}

    Source: our choice, beside "Statistical Rejection Sampling Improves Preference Optimization", arXiv:2309.06657:
    public ports of it sort its samples and pair neighbours, while the paper pairs at random (``rejection_sampling``).
    Defaults: that cut-off samples are left out is our choice.
    Differences: neighbours are the pairs of a ranking whose scores differ least.

    Args:
        score: of each sample.
        truncated: whether it was cut off.
        cut_off: whether a cut-off sample may lose (``lose``: where it is the better one of two neighbours they are no
            pair), or win too (``keep``).
    """
    better = torch.arange(score.shape[1] - 1)
    return _ranked(score, truncated, cut_off, better, better + 1)


def _ranked(
    score: Tensor, truncated: Tensor, cut_off: CutOff, better: Int[Tensor, " pairs"], worse: Int[Tensor, " pairs"]
) -> Selected:
    """Pairs by rank, 0 the best, in the order given."""
    members, winners = eligible(score, truncated, cut_off)
    order = score.masked_fill(~members, -torch.inf).argsort(dim=1, descending=True, stable=True)
    chosen, rejected = order[:, better], order[:, worse]
    exists = members.gather(1, chosen) & members.gather(1, rejected)
    margin = gap(score, chosen, rejected)
    selected = pairs(chosen, rejected, margin, exists & (margin > 0) & winners.gather(1, chosen))
    metrics = {"tie_rate": share(exists & (margin == 0), exists), "left_out": float((members.sum(1) < 2).sum())}
    return counted(selected, truncated, score, metrics)
