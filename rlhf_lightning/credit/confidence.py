"""Credit without any reward: the model's confidence in its response."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from rlhf_lightning.credit.options import credit_function
from rlhf_lightning.ops.segments import segment_sum
from rlhf_lightning.options import NonNegative
from rlhf_lightning.types import Ragged


@credit_function
def self_confidence(
    log_probs: Ragged,
    group: Int[Tensor, " responses"],
    *,
    confidence: Literal["sequence", "length_normalised", "token"] = "sequence",
    alpha: NonNegative = 0.1,
    normalize: bool = False,
) -> Ragged:
    r"""RLSC: each sampled response is made likelier in proportion to how likely it is already.

    .. math:: A = p_{old}(y) + \alpha

    Times :math:`\nabla\log p`, an average over samples of the policy: half the gradient of
    :math:`E_x \sum_y p(y)^2`, the probability that two samples agree. The weights must multiply *sampled* terms; the
    sum over all responses would have no gradient where the policy is the old one. The alpha term has none in
    expectation unless samples are drawn at a lower temperature than they are scored at, as in the paper
    (``rollout.temperature`` 0.5, ``score_temperature`` 1). The optimum is a policy without entropy: watch
    ``val/entropy`` and stop early.

    Source: "Confidence Is All You Need" (RLSC), arXiv:2506.06395. The probability of a response of some hundred tokens
    is 0 in any float, and only alpha is left of it then; ``length_normalised`` (the geometric mean of its tokens'
    probabilities), ``token`` (each token's own) and ``normalize`` are ours.
    Defaults: alpha 0.1 and the probability of the whole response, as secondary sources report of the paper.
    Differences: TRL 1.16 has no such method.

    Args:
        log_probs: of the policy that drew the responses, at the temperature they are trained at.
        group: of each response.
        confidence: see above.
        alpha: added to the weight.
        normalize: divide p by its mean over the prompt's samples (over their tokens for ``token``), before alpha is
            added; then it does not vanish with length.
    """
    log_p = log_probs.token.float()
    if confidence == "sequence":
        log_p = log_probs.sum()[log_probs.sequence]
    elif confidence == "length_normalised":
        log_p = log_probs.mean()[log_probs.sequence]
    if normalize:
        weight = None if confidence == "token" else 1 / log_probs.length[log_probs.sequence]
        log_p = log_p - _log_mean_exp(log_p, group[log_probs.sequence], weight)
    return log_probs.with_token(log_p.exp() + alpha)


def _log_mean_exp(log_p: Tensor, group: Tensor, weight: Tensor | None) -> Tensor:
    """Logarithm of each group's weighted mean of ``exp(log_p)``, at each of its elements; stable far below 0."""
    groups = int(group.max()) + 1 if len(group) else 0
    weight = torch.ones_like(log_p) if weight is None else weight
    highest = log_p.new_full((groups,), -torch.inf).scatter_reduce(0, group, log_p, "amax")
    total = segment_sum((log_p - highest[group]).exp() * weight, group, groups)
    mean = total / segment_sum(weight, group, groups).clamp(min=1e-30)
    return (highest + mean.log())[group]
