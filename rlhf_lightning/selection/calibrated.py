"""Best and worst sample after a price on length that is searched over the whole round (DICE)."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from rlhf_lightning.options import NonNegative, Positive, Range
from rlhf_lightning.selection.options import makes, selector
from rlhf_lightning.selection.terms import (
    DropOrKeep,
    Lengths,
    Mask,
    Scores,
    Ties,
    best_against,
    counted,
    eligible,
    gap,
    one_pair,
)
from rlhf_lightning.types import Selected


@selector
@makes("preference", samples="least")
def length_calibrated(
    score: Scores,
    length: Lengths,
    truncated: Mask,
    *,
    alpha: NonNegative | None = None,
    step: Positive = 0.001,
    largest: Positive = 1.0,
    least: Annotated[int, Range("[2, inf)")] = 2,
    ties: Ties = "drop",
    cut_off: DropOrKeep = "drop",
) -> Selected:
    r"""Best and worst sample of scores less a price on length, at which chosen responses are as long as rejected ones.

    .. math:: \alpha^* = \arg\min_\alpha \Big|\frac{1}{N}\sum_x (|y_w| - |y_l|)\Big|,\quad
        w, l = \arg\max_i, \arg\min_i\, (s_i - \alpha\,|y_i|)

    The mean is over the prompts of the round. :math:`\alpha` runs over a grid from 0 and stops at the first value whose
    absolute mean is above the smallest so far, so a round depends on all of its prompts.

    Source: "Bootstrapping Language Models with DPO Implicit Rewards" (DICE), arXiv:2406.09760; grid and stop rule are
    those of its code (sail-sg/dice).
    Defaults: the grid of that code. It asks for at least 8 of 16 samples (``least=8``); it keeps ties.
    Differences: that code measures characters of the stripped response; here length is what ``rounds.length_unit``
    says, and :math:`\alpha` is score a unit of it. There a prompt with equal responses gives a pair of one response
    with itself.

    Args:
        score: of each sample; for DICE the log-ratio of two policies in nats, without beta.
        length: of each sample.
        truncated: whether it was cut off.
        alpha: the price; None: searched.
        step: of the grid.
        largest: end of the grid.
        least: fewest usable samples of a prompt.
        ties: as in ``best_and_worst``, of the calibrated scores.
        cut_off: whether a cut-off sample counts, for the price and in a pair.
    """
    members, _ = eligible(score, truncated, cut_off)
    members = members & (members.sum(1, keepdim=True) >= least)
    score, length = score.double(), length.double()
    price = _searched(score, length, members, step, largest) if alpha is None else alpha
    calibrated = score - price * length
    best, worst, exists = best_against(calibrated, -calibrated, members, members)
    selected, metrics = one_pair(calibrated, best, worst, exists, ties)
    metrics |= {
        "alpha": price,
        "length_gap_before": _length_gap(score, length, members),
        "length_gap": _length_gap(calibrated, length, members),
        "length_correlation_before": _correlation(score[members], length[members]),
        "length_correlation": _correlation(calibrated[members], length[members]),
    }
    return counted(selected, truncated, score, metrics)


def _searched(score: Tensor, length: Tensor, members: Tensor, step: float, largest: float) -> float:
    """The first price of the grid with the smallest absolute mean gap before the gap grows."""
    alpha, smallest = 0.0, float("inf")
    for number in range(int(largest / step + 1e-9) + 1):
        size = abs(_length_gap(score - number * step * length, length, members))
        if size > smallest:
            break
        if size < smallest:
            alpha, smallest = number * step, size
    return alpha


def _length_gap(score: Tensor, length: Tensor, members: Tensor) -> float:
    """Mean length of the best less that of the worst sample over the prompts that have both; 0 without any."""
    best, worst, exists = best_against(score, -score, members, members)
    gaps = gap(length, best[:, None], worst[:, None])[:, 0][exists]
    return float(gaps.mean()) if len(gaps) else 0.0


def _correlation(first: Tensor, second: Tensor) -> float:
    """Pearson's correlation; 0 where one of them does not vary."""
    if not len(first):
        return 0.0
    first, second = first - first.mean(), second - second.mean()
    scale = float(first.norm() * second.norm())
    return float(first @ second) / scale if scale else 0.0
