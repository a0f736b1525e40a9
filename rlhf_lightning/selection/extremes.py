r"""One pair a prompt: its best sample against its worst, another one, or the best after a price on length.

Notation: :math:`s_i` is the score of sample i of a prompt and :math:`|y_i|` its length.
"""

from __future__ import annotations

from typing import Literal

import torch

from rlhf_lightning.options import NonNegative
from rlhf_lightning.selection.options import makes, selector
from rlhf_lightning.selection.terms import (
    CutOff,
    Lengths,
    Mask,
    Scores,
    Ties,
    best_against,
    counted,
    eligible,
    one_pair,
)
from rlhf_lightning.types import Selected


@selector
@makes("preference")
def best_and_worst(score: Scores, truncated: Mask, *, ties: Ties = "drop", cut_off: CutOff = "drop") -> Selected:
    r"""The sample with the highest score against the one with the lowest.

    .. math:: w = \arg\max_i s_i,\quad l = \arg\min_i s_i

    Source: "RLHF Workflow: From Reward Modeling to Online RLHF", arXiv:2405.07863 (``max_min``); the same in
    "Self-Rewarding Language Models", arXiv:2401.10020, and in iterative DPO.
    Defaults: ties are dropped as in both papers; that cut-off samples are left out is our choice.
    Differences: RLHFlow does not know which samples were cut off, and TRL 1.16's online DPO lets the first sample win
    a tie.

    Args:
        score: of each sample.
        truncated: whether it was cut off.
        ties: what becomes of a prompt whose best and worst score are equal; ``keep``: the first sample of the highest
            and the last of the lowest score are a pair.
        cut_off: whether a cut-off sample may lose (``lose``: where its score is above all that may win there is no
            pair), or win too (``keep``).
    """
    members, winners = eligible(score, truncated, cut_off)
    selected, metrics = one_pair(score, *best_against(score, -score, members, winners), ties)
    return counted(selected, truncated, score, metrics)


@selector
@makes("preference")
def best_and_another(
    score: Scores,
    truncated: Mask,
    *,
    other: Literal["random", "second"] = "random",
    ties: Ties = "drop",
    cut_off: CutOff = "drop",
) -> Selected:
    r"""The sample with the highest score against a random other one or the second best.

    .. math:: w = \arg\max_i s_i,\quad l = \min\{i : i \ne w\}\ \text{or}\ \arg\max_{i \ne w} s_i

    Source: "RLHF Workflow: From Reward Modeling to Online RLHF", arXiv:2405.07863; the rules ``max_random`` and
    ``max_max`` of its code (RLHFlow/Online-RLHF, ``dpo_iteration/run_dpo.py``).
    Defaults: ``random`` is the default of that code.
    Differences: none in which samples are compared. As there, the random sample is the first other one, which is a
    random one since samples are independent.

    Args:
        score: of each sample.
        truncated: whether it was cut off.
        other: which sample loses.
        ties: as in ``best_and_worst``.
        cut_off: as in ``best_and_worst``.
    """
    members, winners = eligible(score, truncated, cut_off)
    first = -torch.arange(score.shape[1], dtype=score.dtype).expand_as(score)
    rival = first if other == "random" else score
    selected, metrics = one_pair(score, *best_against(score, rival, members, winners), ties)
    return counted(selected, truncated, score, metrics)


@selector
@makes("preference")
def length_penalised(
    score: Scores,
    length: Lengths,
    truncated: Mask,
    *,
    penalty: NonNegative,
    label: Literal["score", "penalised"] = "score",
    ties: Ties = "drop",
    cut_off: CutOff = "drop",
) -> Selected:
    r"""The best against the worst sample of scores less a price on length, labelled by the scores themselves.

    .. math:: \{w, l\} = \{\arg\max_i, \arg\min_i\}\, (s_i - p\,|y_i|),\quad s_w > s_l

    Source: "RLHF Workflow: From Reward Modeling to Online RLHF", arXiv:2405.07863; the rule ``max_min_p`` of its code
    (RLHFlow/Online-RLHF, ``dpo_iteration/run_dpo.py``).
    Defaults: ``label`` is what that code does. The penalty has no default: its 0 there makes the rule ``max_min``.
    Differences: that code measures length in characters; here it is what ``rounds.length_unit`` says.

    Args:
        score: of each sample.
        length: of each sample.
        truncated: whether it was cut off.
        penalty: p, score a unit of length.
        label: ``score``: of the two samples the one with the higher score is chosen, be it the longer one;
            ``penalised``: the one with the higher score less the price.
        ties: as in ``best_and_worst``, of the label.
        cut_off: as in ``best_and_worst``.
    """
    members, winners = eligible(score, truncated, cut_off)
    penalised = score.double() - penalty * length.double()
    best, worst, exists = best_against(penalised, -penalised, members, winners)
    if label == "penalised":
        selected, metrics = one_pair(penalised, best, worst, exists, ties)
        return counted(selected, truncated, score, metrics)
    rows = torch.arange(len(score))
    swapped = (score[rows, worst] > score[rows, best]) & winners[rows, worst]
    chosen, rejected = torch.where(swapped, worst, best), torch.where(swapped, best, worst)
    selected, metrics = one_pair(score, chosen, rejected, exists, ties)
    return counted(selected, truncated, score, metrics)
