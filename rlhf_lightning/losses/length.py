"""Losses against length bias: DPO likes long responses, because a summed log-ratio grows with length.

``sigmoid_norm`` (in ``losses/preference.py``) and the reference-free losses divide by length; these two keep the sum.
Notation: ``losses/terms.py``. Every loss raises ValueError when an option is outside its range.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.losses.options import NonNegative, Positive, Share, loss_function
from rlhf_lightning.losses.terms import log_ratios, logistic
from rlhf_lightning.types import Pair, PreferenceLoss, Ragged


@loss_function
def r_dpo(policy: Pair, reference: Pair, *, beta: Positive = 0.1, alpha: NonNegative = 0.01) -> PreferenceLoss:
    r"""Length-regularised DPO: the part of a preference that length explains is not learnt.

    .. math:: -\log\sigma\big(\beta h + \alpha(n_w - n_l)\big)

    The sign follows from a reward that pays alpha for every token less: a pair whose chosen response is the longer one
    starts with a margin in its favour, gets a smaller gradient and teaches less.

    Source: "Disentangling Length from Quality in Direct Preference Optimization", arXiv:2403.19159. Repeated on pairs
    that the current policy wrote and a reward model ranked, it is iterative length-regularised DPO, arXiv:2406.11817.
    Defaults: beta 0.1, DPO's. alpha 0.01 is our choice, not the paper's: a difference of 100 tokens shifts the logit by
    1. Tune it together with beta.
    Differences: we know of no code by the authors. The ``rDPO`` branch of junkangwu/alpha-DPO subtracts the term,
    and it is always 0 there, because batch sizes are passed as lengths. TRL 1.16 has no such loss.

    Args:
        policy: log-probs of the policy, summed here over each response; it also carries the lengths.
        reference: log-probs of the reference.
        beta: strength of the pull towards the reference, 1/nats.
        alpha: logits per token of length difference; 0 is DPO.

    Returns:
        One loss a pair; implicit rewards beta * rho.

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected = (beta * ratio for ratio in log_ratios(policy, reference))
    longer = policy.chosen.length - policy.rejected.length
    return PreferenceLoss(logistic(chosen - rejected + alpha * longer), chosen.detach(), rejected.detach())


@loss_function
def ld_dpo(policy: Pair, reference: Pair, *, beta: Positive = 0.1, alpha: Share = 0.5) -> PreferenceLoss:
    r"""Length-desensitised DPO: tokens beyond the shorter response's length count for less.

    .. math:: -\log\sigma(\beta h'), \quad \ell' = \sum_{t \le m}\log\pi(y_t) + \alpha\sum_{t > m}\log\pi(y_t),\
              m = \min(n_w, n_l)

    Source: "Length Desensitization in Direct Preference Optimization", arXiv:2409.06411.
    Defaults: alpha 0.5, as in TRL's index of papers; beta 0.1, DPO's.
    Differences: the weights apply to the policy *and* the reference, as in TRL 1.16 (``ld_alpha``). LLaMA-Factory
    weighs the policy only, so its loss is not log 2 when policy and reference are equal.

    Args:
        policy: log-probs of the policy, summed here over each response with the weights above.
        reference: log-probs of the reference, token by token.
        beta: strength of the pull towards the reference, 1/nats.
        alpha: weight of the excess tokens; 1 is DPO, 0 cuts both responses to the same length.

    Returns:
        One loss a pair; implicit rewards beta * rho'.

    Raises:
        ValueError: an option is outside its range.
    """
    shared = torch.minimum(policy.chosen.length, policy.rejected.length)
    chosen = beta * _desensitised(policy.chosen.log_ratio(reference.chosen), shared, alpha)
    rejected = beta * _desensitised(policy.rejected.log_ratio(reference.rejected), shared, alpha)
    return PreferenceLoss(logistic(chosen - rejected), chosen.detach(), rejected.detach())


def _desensitised(log_ratio: Ragged, shared: Float[Tensor, " responses"], alpha: float) -> Float[Tensor, " responses"]:
    """Sum of log-ratios with weight 1 for the first ``shared`` tokens of each response and ``alpha`` for the rest."""
    excess = log_ratio.offset >= shared[log_ratio.sequence]
    return log_ratio.with_token(torch.where(excess, alpha * log_ratio.token, log_ratio.token)).sum()
