r"""Policy-gradient losses: one number a response token, made of the policy's log-prob, the old one and an advantage.

Notation: :math:`\ell_t = \log\pi_\theta(y_t)`, :math:`\rho_t = \pi_\theta(y_t) / \pi_{old}(y_t)`, where *old* is the
policy that the rollout was drawn from, by the trainer's own forward pass; :math:`A_t` is the advantage, T the length of
the response, sg stops gradients. How tokens are added up is the method's ``aggregation``.

A loss of whole responses (``SEQUENCE_LEVEL``) gives each token of a response the response's number, so that the mean
over its tokens is that number; it goes with ``aggregation=seq_mean_token_mean`` only.

What a loss returns as diagnostics is logged under ``train/``: a name that ends in ``/max`` as the highest number of
the step, any other as the mean. ``ratio/mean`` and ``ratio/max`` are of :math:`\rho`; ``clip/low`` and ``clip/high``
are the shares of tokens whose gradient the clip took away because the ratio left the band below (A < 0) or above
(A > 0); ``approx_kl`` is k3 of old and new policy, nats a token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.losses.options import Positive, Share, loss_function, option_values
from rlhf_lightning.ops.exponent import bounded_exp
from rlhf_lightning.ops.kl import k3
from rlhf_lightning.options import AboveOne, unwrap
from rlhf_lightning.types import Ragged, TokenLoss


@loss_function
def ppo(
    policy: Ragged,
    old: Ragged,
    advantage: Ragged,
    *,
    ratio: Literal["token", "sequence"] = "token",
    eps_low: Share = 0.2,
    eps_high: Positive = 0.2,
    dual_clip: AboveOne | None = None,
) -> TokenLoss:
    r"""The clipped surrogate of PPO, which GRPO and DAPO share.

    .. math:: -\min\big(\rho_t A_t,\ \mathrm{clip}(\rho_t, 1 - \epsilon_l, 1 + \epsilon_h)\,A_t\big)

    With ``dual_clip`` c a token of negative advantage costs at most :math:`-c A_t`. An ``eps_high`` above ``eps_low``
    is DAPO's clip-higher. With ``ratio: sequence`` the ratio is that of the whole response,
    :math:`\prod_t \rho_t`; it leaves the band quickly on long responses. The clip bounds what there is to gain from
    moving the ratio, not the ratio itself.

    Source: "Proximal Policy Optimization Algorithms", arXiv:1707.06347, eq. 7; dual clip: arXiv:1912.09729;
    clip-higher: "DAPO", arXiv:2503.14476.
    Defaults: the clip is the paper's; verl has dual_clip 3, and 10 in its recipe for DAPO, which ``method=dapo`` takes.
    Differences: TRL 1.16 (``loss_type`` grpo, bnpo, dr_grpo, dapo, which differ by aggregation; RLOO: ratio sequence)
    clips the ratio itself at ``delta`` for either sign of the advantage, which for A < 0 is the dual clip with
    c = delta. The log-ratio is bounded at 20 nats as in verl.

    Args:
        policy: log-probs of the policy.
        old: log-probs of the policy that drew the responses.
        advantage: of each token.
        ratio: of each ``token``, or of the whole ``sequence``.
        eps_low: how far below 1 the ratio still pays.
        eps_high: how far above 1 the ratio still pays.
        dual_clip: c; None: no bound.

    Returns:
        One loss a token; diagnostics ``ratio/mean``, ``ratio/max``, ``clip/low``, ``clip/high`` and ``approx_kl``.

    Raises:
        ValueError: an option is outside its range.
    """
    log_ratio = policy.token - old.token
    if ratio == "sequence":
        log_ratio = policy.with_token(log_ratio).sum()[policy.sequence]
    return _clipped(log_ratio, policy.token - old.token, advantage.token, eps_low, eps_high, dual_clip)


@loss_function
def gspo(
    policy: Ragged, old: Ragged, advantage: Ragged, *, eps_low: Share = 3e-4, eps_high: Positive = 4e-4
) -> TokenLoss:
    r"""GSPO: one ratio a response, the geometric mean of its tokens' ratios, clipped in a narrow band.

    .. math:: -\min\big(s A,\ \mathrm{clip}(s, 1 - \epsilon_l, 1 + \epsilon_h)\,A\big),
        \qquad s = \exp\Big(\tfrac1T\sum_t\log\rho_t\Big)

    A whole response is clipped or none of it. In the first step on a rollout s is 1 and the gradient is that of GRPO
    averaged over tokens of each response, so a difference shows only with several steps a rollout.

    Source: "Group Sequence Policy Optimization", arXiv:2507.18071.
    Defaults: the paper's experiment: 3e-4 and 4e-4.
    Differences: none to TRL 1.16 (``importance_sampling_level: sequence`` with ``loss_type: grpo``).

    Args:
        policy: log-probs of the policy.
        old: log-probs of the policy that drew the responses.
        advantage: of each token; the same for all tokens of a response.
        eps_low: how far below 1 the ratio still pays.
        eps_high: how far above 1 the ratio still pays.

    Returns:
        One loss a token; diagnostics ``ratio/mean``, ``ratio/max``, ``clip/low``, ``clip/high`` and ``approx_kl``.

    Raises:
        ValueError: an option is outside its range.
    """
    log_ratio = policy.token - old.token
    mean = policy.with_token(log_ratio).mean()[policy.sequence]
    return _clipped(mean, log_ratio, advantage.token, eps_low, eps_high)


@loss_function
def gspo_token(
    policy: Ragged, old: Ragged, advantage: Ragged, *, eps_low: Share = 3e-4, eps_high: Positive = 4e-4
) -> TokenLoss:
    r"""GSPO with the response's ratio as value and each token's own gradient, so that advantages may differ by token.

    .. math:: -\min\big(s_t A_t,\ \mathrm{clip}(s_t, 1 - \epsilon_l, 1 + \epsilon_h)\,A_t\big),
        \qquad s_t = \mathrm{sg}(s)\,\frac{\pi_\theta(y_t)}{\mathrm{sg}(\pi_\theta(y_t))}

    Value and gradient equal GSPO's where all tokens of a response have the same advantage.

    Source: "Group Sequence Policy Optimization", arXiv:2507.18071.
    Defaults: GSPO's.
    Differences: TRL had this loss until 1.13 (``experimental.gspo_token``); 1.14 dropped it.

    Args:
        policy: log-probs of the policy.
        old: log-probs of the policy that drew the responses.
        advantage: of each token.
        eps_low: how far below 1 the ratio still pays.
        eps_high: how far above 1 the ratio still pays.

    Returns:
        One loss a token; diagnostics ``ratio/mean``, ``ratio/max``, ``clip/low``, ``clip/high`` and ``approx_kl``.

    Raises:
        ValueError: an option is outside its range.
    """
    log_ratio = policy.token - old.token
    mean = policy.with_token(log_ratio).mean()[policy.sequence]
    straight_through = mean.detach() + policy.token - policy.token.detach()
    return _clipped(straight_through, log_ratio, advantage.token, eps_low, eps_high)


@loss_function
def gmpo(
    policy: Ragged, old: Ragged, advantage: Ragged, *, clip_low: Positive = 0.4, clip_high: Positive = 0.4
) -> TokenLoss:
    r"""GMPO: the geometric mean of the tokens' clipped ratios, which outliers move less than the arithmetic one.

    .. math:: -A \exp\Big(\tfrac1T\sum_t c_t\Big),\qquad
        c_t = \min(\log\rho_t, \epsilon_h)\ (A > 0),\quad \max(\log\rho_t, -\epsilon_l)\ (A \le 0)

    Each token's log-ratio is clipped by itself, on the side where it would still gain.

    Source: "Geometric-Mean Policy Optimization", arXiv:2507.20673; equation and clip as in the authors' code
    (callsys/GMPO); verl's ``geo_mean`` is the same function.
    Defaults: 0.4 nats, those of the authors' script, whose rollouts give eight steps.
    Differences: none to TRL 1.16 (``experimental.gmpo``). The mean advantage of a response takes the place of A if
    tokens differ.

    Args:
        policy: log-probs of the policy.
        old: log-probs of the policy that drew the responses.
        advantage: of each token; the same for all tokens of a response.
        clip_low: epsilon_l, nats.
        clip_high: epsilon_h, nats.

    Returns:
        One loss a token; diagnostics ``ratio/mean``, ``ratio/max``, ``clip/low``, ``clip/high`` and ``approx_kl``.

    Raises:
        ValueError: an option is outside its range.
    """
    log_ratio, whole = policy.token - old.token, advantage.mean()[policy.sequence]
    clipped = torch.where(whole > 0, log_ratio.clamp(max=clip_high), log_ratio.clamp(min=-clip_low))
    ratio = bounded_exp(policy.with_token(clipped).mean()[policy.sequence])
    below, above = (whole <= 0) & (log_ratio < -clip_low), (whole > 0) & (log_ratio > clip_high)
    return TokenLoss(-whole * ratio, _diagnostics(log_ratio, ratio, below, above))


@loss_function
def cispo(
    policy: Ragged,
    old: Ragged,
    advantage: Ragged,
    *,
    eps_low: Share | None = None,
    eps_high: Positive | None = None,
    eps_abs_high: Positive | None = 5.0,
) -> TokenLoss:
    r"""CISPO: the plain policy gradient, each token weighed by its clipped ratio, so that none loses its gradient.

    .. math:: -\mathrm{sg}\big(\mathrm{clip}(\rho_t, 1 - \epsilon_l, c)\big)\,A_t\,\ell_t,
        \qquad c = 1 + \epsilon_h\ \text{or}\ c = \epsilon_{abs}

    The upper bound is given in one of two conventions: ``eps_high``, its distance from 1 (the paper, verl), or
    ``eps_abs_high``, the bound itself (TRL's ``epsilon_high``, ScaleRL). Without ``eps_low`` there is no lower bound.

    Source: "MiniMax-M1", arXiv:2506.13585; the absolute bound: "The Art of Scaling RL Compute" (ScaleRL),
    arXiv:2510.13786.
    Defaults: an absolute bound of 5, which TRL recommends for this loss; the paper gives no numbers and has no lower
    bound.
    Differences: TRL 1.16 has the absolute bound alone; verl bounds on both sides, by distance.

    Args:
        policy: log-probs of the policy.
        old: log-probs of the policy that drew the responses.
        advantage: of each token.
        eps_low: the weight is at least ``1 - eps_low``; None: no bound.
        eps_high: the weight is at most ``1 + eps_high``; None where ``eps_abs_high`` is given.
        eps_abs_high: the weight is at most this; None where ``eps_high`` is given.

    Returns:
        One loss a token; diagnostics ``ratio/mean``, ``ratio/max``, ``clip/low``, ``clip/high`` and ``approx_kl``.

    Raises:
        ValueError: an option is outside its range, or both upper bounds are given, or none.
    """
    if (eps_high is None) == (eps_abs_high is None):
        raise ValueError(
            f"loss cispo: eps_high={eps_high} bounds the weight at 1 + eps_high and eps_abs_high={eps_abs_high} at "
            "itself: give one of them and set the other to null"
        )
    low = 0.0 if eps_low is None else 1 - eps_low
    high = eps_abs_high if eps_abs_high is not None else 1 + (eps_high or 0.0)
    log_ratio = policy.token - old.token
    ratio = bounded_exp(log_ratio.detach())
    weight = ratio.clamp(low, high)
    named = _diagnostics(log_ratio, ratio, ratio < low, ratio > high)
    return TokenLoss(-weight * advantage.token * policy.token, named)


@loss_function
def reinforce(policy: Ragged, advantage: Ragged) -> TokenLoss:
    r"""The plain policy gradient: the log-prob of each token times its advantage.

    .. math:: -A_t\,\ell_t

    It is on-policy: one pass over a rollout, one optimiser step (``minibatches`` and ``inner_epochs`` are 1).

    Source: "Simple statistical gradient-following algorithms for connectionist reinforcement learning" (REINFORCE),
    Machine Learning 8, 1992; for language models: arXiv:2402.14740.
    Defaults: there is nothing to choose.
    Differences: TRL 1.16 has no such loss; its RLOO clips the ratio of whole responses (``ppo``, ratio sequence).

    Args:
        policy: log-probs of the policy.
        advantage: of each token.

    Returns:
        One loss a token; no diagnostics.
    """
    return TokenLoss(-advantage.token * policy.token)


#: Losses that give every token of a response the same number.
SEQUENCE_LEVEL: tuple[Callable[..., TokenLoss], ...] = (gspo, gmpo)


def is_sequence_level(loss: Callable[..., Any]) -> bool:
    """Return whether a loss is of whole responses, so that only ``seq_mean_token_mean`` adds it up as it is meant."""
    return unwrap(loss)[0] in SEQUENCE_LEVEL or option_values(loss, "ratio") == ["sequence"]


def _clipped(
    log_ratio: Float[Tensor, " n"],
    token_log_ratio: Float[Tensor, " n"],
    advantage: Float[Tensor, " n"],
    eps_low: float,
    eps_high: float,
    dual_clip: float | None = None,
) -> TokenLoss:
    """The clipped surrogate of any ratio, negative, and what it logs."""
    ratio = bounded_exp(log_ratio)
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - eps_low, 1 + eps_high) * advantage)
    if dual_clip is not None:
        surrogate = torch.where(advantage < 0, torch.maximum(surrogate, dual_clip * advantage), surrogate)
    below, above = (ratio < 1 - eps_low) & (advantage < 0), (ratio > 1 + eps_high) & (advantage > 0)
    return TokenLoss(-surrogate, _diagnostics(token_log_ratio, ratio, below, above))


@torch.no_grad()
def _diagnostics(log_ratio: Tensor, ratio: Tensor, below: Tensor, above: Tensor) -> dict[str, Tensor]:
    """Diagnostics that the module's docstring lists, from the tokens' log-ratios and the ratio that is clipped."""
    return {
        "ratio/mean": ratio.detach(),
        "ratio/max": ratio.detach(),
        "clip/low": below.float(),
        "clip/high": above.float(),
        "approx_kl": k3(-log_ratio),
    }
