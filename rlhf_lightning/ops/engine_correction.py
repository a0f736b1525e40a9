r"""Importance weights for samples that another program drew than the one that trains on them.

An inference engine computes slightly other probabilities than the trainer's forward pass: other kernels, another
precision, weights that are a step old. With :math:`\delta_t = \log\pi_{old}(y_t) - \log\pi_{roll}(y_t)`, in nats, where
``old`` is the trainer's and ``roll`` the engine's, :math:`w_t = e^{\delta_t}` multiplies the policy loss of a token.
It is a constant: no gradient goes through it.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_lightning.ops.exponent import bounded_exp
from rlhf_lightning.ops.segments import segment_mean, segment_sum


def engine_log_ratio(old: Float[Tensor, " n"], rollout: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    r""":math:`\delta`, detached and in float32; 0 where the engine gave no log-prob (nan), which is no evidence."""
    return torch.nan_to_num(old.detach().float() - rollout.detach().float(), nan=0.0)


def sequence_log_ratio(
    delta: Float[Tensor, " n"], sequence: Int[Tensor, " n"], count: int, *, mean: bool = False
) -> Float[Tensor, " n"]:
    r"""The same number at every token of a response: :math:`\sum_t\delta_t`, or the mean over its tokens.

    Exponentiated they are the product of the response's token ratios and their geometric mean.

    Args:
        delta: log-ratio of each token, nats.
        sequence: the response of each token, 0 .. count - 1.
        count: number of responses.
        mean: of the tokens, in place of the sum.
    """
    return (segment_mean if mean else segment_sum)(delta, sequence, count)[sequence]


def truncated(delta: Float[Tensor, " n"], low: float, high: float) -> Float[Tensor, " n"]:
    r""":math:`\min(\max(w, low), high)`: biased where it binds, of bounded variance.

    Source: truncated importance sampling, F. Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy
    RL Training", 2025 (a blog), which has no lower bound.
    """
    return bounded_exp(delta).clamp(low, high)


def masked(delta: Float[Tensor, " n"], low: float, high: float) -> Float[Tensor, " n"]:
    r""":math:`w` where it lies in ``[low, high]``, else 0: what the two programs disagree on is not learnt from.

    Source: IcePop, "Small Leak Can Sink a Great Ship", 2025 (a blog of the Ring team).
    """
    weights = bounded_exp(delta)
    return torch.where((weights >= low) & (weights <= high), weights, torch.zeros_like(weights))


def off_policy(
    behaviour: Float[Tensor, " n"],
    policy: Float[Tensor, " n"],
    advantage: Float[Tensor, " n"],
    sequence: Int[Tensor, " n"],
    count: int,
    threshold: float,
) -> Bool[Tensor, " n"]:
    r"""Tokens to leave out: of a bad response that the policy has moved away from already.

    .. math:: A_t < 0 \;\wedge\; \frac{1}{|y|}\sum_s \big(\log\pi_{behaviour}(y_s) - \log\pi_\theta(y_s)\big) > \delta

    Source: DeepSeek-V3.2, arXiv:2512.02556, eq. 9, where one advantage belongs to a whole response and the behaviour's
    log-probs are those that the inference engine returned.

    Args:
        behaviour: log-probs of what drew the tokens, nats; nan: unknown, counted as no difference.
        policy: log-probs of the policy as it is now, nats.
        advantage: of each token.
        sequence: the response of each token, 0 .. count - 1.
        count: number of responses.
        threshold: :math:`\delta`, nats a token.
    """
    moved = sequence_log_ratio(engine_log_ratio(behaviour, policy), sequence, count, mean=True)
    return (advantage < 0) & (moved > threshold)
