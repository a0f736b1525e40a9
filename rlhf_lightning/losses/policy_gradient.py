r"""Policy-gradient losses: one number a response token, made of the policy's log-prob, the old one and an advantage.

Notation: :math:`\ell_t = \log\pi_\theta(y_t)`, :math:`\rho_t = \pi_\theta(y_t) / \pi_{old}(y_t)`, where *old* is the
policy that the rollout was drawn from, by the trainer's own forward pass; :math:`A_t` is the advantage, sg stops
gradients. How tokens are added up is the method's ``aggregation``.

What a loss returns as diagnostics is logged under ``train/``: a name that ends in ``/max`` as the highest number of
the step, any other as the mean. ``ratio/mean`` and ``ratio/max`` are of :math:`\rho`; ``clip/low`` and ``clip/high``
are the shares of tokens whose gradient the clip took away because the ratio left the band below (A < 0) or above
(A > 0); ``approx_kl`` is k3 of old and new policy, nats a token.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.losses.options import Positive, loss_function
from rlhf_lightning.types import Ragged, TokenLoss


@loss_function
def ppo(
    policy: Ragged,
    old: Ragged,
    advantage: Ragged,
    *,
    eps_low: Positive = 0.2,
    eps_high: Positive = 0.2,
    dual_clip: float | None = None,
    max_log_ratio: Positive = 20.0,
) -> TokenLoss:
    r"""The clipped surrogate of PPO, which GRPO and DAPO share.

    .. math:: -\min\big(\rho_t A_t,\ \mathrm{clip}(\rho_t, 1 - \epsilon_l, 1 + \epsilon_h)\,A_t\big)

    With ``dual_clip`` c a token of negative advantage costs at most :math:`-c A_t`. An ``eps_high`` above ``eps_low``
    is DAPO's clip-higher. The clip bounds what there is to gain from moving the ratio, not the ratio itself.

    Source: "Proximal Policy Optimization Algorithms", arXiv:1707.06347, eq. 7; dual clip: arXiv:1912.09729, eq. 5;
    clip-higher: "DAPO", arXiv:2503.14476.
    Defaults: the clip is the paper's; verl has dual_clip 3. The clamp of the log-ratio is verl's and changes no number
    that a band of this width keeps.
    Differences: TRL 1.16 clips the ratio itself at ``delta`` for either sign of the advantage, which for A < 0 is the
    dual clip with c = delta.

    Args:
        policy: log-probs of the policy.
        old: log-probs of the policy that drew the responses.
        advantage: of each token.
        eps_low: how far below 1 the ratio still pays, below 1.
        eps_high: how far above 1 the ratio still pays.
        dual_clip: c > 1; None: no bound.
        max_log_ratio: bound of ``|log rho|`` before it is exponentiated, nats.

    Raises:
        ValueError: ``dual_clip`` is not above 1.
    """
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"loss ppo: dual_clip={dual_clip!r} is not allowed, it must be a number above 1, or null")
    log_ratio = policy.token - old.token
    ratio = log_ratio.clamp(-max_log_ratio, max_log_ratio).exp()
    gain, bounded = ratio * advantage.token, ratio.clamp(1 - eps_low, 1 + eps_high) * advantage.token
    surrogate = torch.minimum(gain, bounded)
    if dual_clip is not None:
        floor = torch.maximum(surrogate, dual_clip * advantage.token)
        surrogate = torch.where(advantage.token < 0, floor, surrogate)
    return TokenLoss(-surrogate, ratio_diagnostics(log_ratio, ratio, advantage.token, eps_low, eps_high))


@loss_function
def reinforce(policy: Ragged, advantage: Ragged) -> TokenLoss:
    r"""The plain policy gradient: the log-prob of each token times its advantage.

    .. math:: -A_t\,\ell_t

    It is on-policy: one pass over a rollout, one optimiser step (``minibatches`` and ``inner_epochs`` are 1).

    Source: "Simple statistical gradient-following algorithms for connectionist reinforcement learning" (REINFORCE),
    Machine Learning 8, 1992; for language models: arXiv:2402.14740.
    Defaults: there is nothing to choose.
    Differences: TRL 1.16 has no such loss; its RLOO clips a ratio of whole sequences.

    Args:
        policy: log-probs of the policy.
        advantage: of each token.
    """
    return TokenLoss(-advantage.token * policy.token)


@torch.no_grad()
def ratio_diagnostics(
    log_ratio: Float[Tensor, " n"],
    ratio: Float[Tensor, " n"],
    advantage: Float[Tensor, " n"],
    eps_low: float,
    eps_high: float,
) -> dict[str, Tensor]:
    """What every clipped loss logs; see the module's docstring.

    Args:
        log_ratio: policy less old, unclamped, nats.
        ratio: what is clipped.
        advantage: of each token.
        eps_low: the band reaches down to ``1 - eps_low``.
        eps_high: the band reaches up to ``1 + eps_high``.
    """
    bounded = log_ratio.clamp(-20, 20)
    return {
        "ratio/mean": ratio.detach(),
        "ratio/max": ratio.detach(),
        "clip/low": ((ratio < 1 - eps_low) & (advantage < 0)).float(),
        "clip/high": ((ratio > 1 + eps_high) & (advantage > 0)).float(),
        "approx_kl": torch.expm1(bounded) - bounded,
    }
