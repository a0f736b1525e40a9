"""Losses of demonstrations: one response a prompt, and the policy's log-probs of it.

They return one number a response, like preference losses one a pair: the method adds them up and divides by the
responses of the whole optimiser step. Notation: ``losses/terms.py``. Every loss raises ValueError when an option is not
one of the allowed ones.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.losses.options import loss_function
from rlhf_lightning.losses.terms import Reduction, negative_log_likelihood
from rlhf_lightning.types import Ragged


@loss_function
def sft(policy: Ragged, *, reduction: Reduction = "token_mean") -> Float[Tensor, " responses"]:
    r"""Supervised fine-tuning: negative log-likelihood of the response.

    .. math:: -\frac{1}{N}\sum_i\sum_t \log\pi_\theta(y_{i,t}), \quad N = \text{scored tokens of the step}

    Source: "Training language models to follow instructions with human feedback", arXiv:2203.02155, for its place in
    alignment; the loss is maximum likelihood.
    Defaults: the token mean.
    Differences: N counts the tokens of the whole optimiser step, over micro-batches and processes, so the loss does not
    depend on how a batch is cut; TRL 1.16 (``nll``) agrees. ``response_mean`` weighs short and long responses equally.

    Args:
        policy: log-probs of the policy at the scored tokens.
        reduction: how tokens are added up.

    Returns:
        One loss a response, whose mean over the step is the loss.

    Raises:
        ValueError: an option is not one of the allowed ones.
    """
    return negative_log_likelihood(policy, reduction)


@loss_function
def dft(policy: Ragged, *, reduction: Reduction = "token_mean") -> Float[Tensor, " responses"]:
    r"""Dynamic fine-tuning: each token's likelihood term is weighted by the token's own probability.

    .. math:: -\frac{1}{N}\sum_i\sum_t \mathrm{sg}(p_{i,t})\log p_{i,t}, \quad p_{i,t} = \pi_\theta(y_{i,t})

    The weight, a constant for the gradient (sg), removes the 1/p of the log-likelihood's gradient, which otherwise
    makes unlikely tokens dominate.

    Source: "On the Generalization of SFT: A Reinforcement Learning Perspective with Reward Rectification",
    arXiv:2508.05629.
    Defaults: the token mean.
    Differences: none to TRL 1.16 (``loss_type="dft"``) in the token mean.

    Args:
        policy: log-probs of the policy at the scored tokens.
        reduction: how tokens are added up.

    Returns:
        One loss a response, whose mean over the step is the loss.

    Raises:
        ValueError: an option is not one of the allowed ones.
    """
    weighted = policy.with_token(policy.token.detach().exp() * policy.token)
    return negative_log_likelihood(weighted, reduction)
