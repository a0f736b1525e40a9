"""The loss of a generative preference model: a language model that names the better of two responses."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.losses.options import loss_function
from rlhf_lightning.types import Pair


@loss_function
def pairwise_judge(
    verdict: Pair, verdict_swapped: Pair, *, over: Literal["vocabulary", "letters"] = "vocabulary"
) -> Float[Tensor, " groups"]:
    r"""Pairwise preference model: read both responses, then name A or B; trained in both orders.

    .. math:: -\tfrac12\big(\log p(a \mid x, y_w, y_l) + \log p(b \mid x, y_l, y_w)\big)

    where a and b name the position of the chosen response. The preference that the model states is the mean over both
    orders of the probability of the right letter among the two, which removes its position bias.

    Source: "RLHF Workflow: From Reward Modeling to Online RLHF", arXiv:2405.07863, section 2.2.
    Defaults: likelihood of the letter over the whole vocabulary, as in supervised fine-tuning.
    Differences: both orders of a pair are in one group, so a step sees them together.

    Args:
        verdict: log-prob of the right (chosen) and of the wrong letter (rejected), the chosen response in position A.
        verdict_swapped: the same with the chosen response in position B.
        over: ``vocabulary`` raises the right letter over every token, ``letters`` over the other letter only.

    Returns:
        One loss a pair of responses.

    Raises:
        ValueError: an option is not one of the allowed ones.
    """
    orders = [(order.chosen.sum(), order.rejected.sum()) for order in (verdict, verdict_swapped)]
    if over == "letters":
        return -0.5 * torch.stack([F.logsigmoid(right - wrong) for right, wrong in orders]).sum(0)
    return -0.5 * torch.stack([right for right, _ in orders]).sum(0)


def stated_preference(verdict: Pair, verdict_swapped: Pair) -> Float[Tensor, " groups"]:
    """Probability, in [0, 1], that the chosen response is better: the mean over both orders, among the two letters."""
    return 0.5 * sum(torch.sigmoid(order.chosen.sum() - order.rejected.sum()) for order in (verdict, verdict_swapped))  # type: ignore[return-value]
