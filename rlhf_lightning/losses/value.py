r"""Losses of value heads on a language model: a state is what was written so far, an action is the next token.

Every loss raises ValueError when an option is outside its range.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_lightning.losses.options import NonNegative, OpenShare, Real, Share, loss_function
from rlhf_lightning.types import ActionValues, MeasuredLoss, Ragged


@loss_function
def ilql(
    policy: Ragged,
    values: ActionValues,
    score: Float[Tensor, " responses"],
    *,
    tau: OpenShare = 0.7,
    gamma: Share = 0.99,
    cql_weight: NonNegative = 0.1,
    awac_weight: NonNegative = 1.0,
    awac_beta: Real = 0.0,
) -> MeasuredLoss:
    r"""Implicit language Q-learning: values of tokens from returns of whole responses, without any sampling.

    .. math::
        \sum_i \big(Q_i - r - \gamma\,\mathrm{sg}(V')\big)^2 + |\tau - [u < 0]|\,u^2
        - c\sum_i \log\mathrm{softmax}(Q_i)_a - w\,e^{b\,\mathrm{sg}(u)}\log\pi_\theta(a),
        \qquad u = \min_i \bar Q_i - V

    One term a token a, averaged over tokens. :math:`Q_i` are two heads over the vocabulary, :math:`\bar Q_i` their
    slowly moving copies, V a scalar head and :math:`V'` its value at the response's next token (0 behind the last one).
    The reward r is the response's score at its last token and 0 elsewhere. At tau above 0.5 V leans to the best actions
    that the data holds. In decoding, :math:`\log\pi + \beta(\min_i \bar Q_i - V)` takes the place of
    :math:`\log\pi`; an export has no heads, so this is for the run's checkpoint (``rlhf evaluate run=...``) alone.

    Source: "Offline RL for Natural Language Generation with Implicit Language Q Learning", arXiv:2206.11871.
    Defaults: those of trlX: tau 0.7, gamma 0.99, cql_weight 0.1, awac_weight 1, awac_beta 0 (plain likelihood).
    Differences: none to trlX (whose flag ``dones`` means "not terminal"). The mean counts the tokens of the whole
    optimiser step. TRL 1.16 has no such loss.

    Args:
        policy: log-probs of the policy.
        values: of the heads at the same tokens.
        score: return of each response; the method standardises it over the data set. Not read in empty slots.
        tau: expectile of V, in (0, 1); 0.5 is the mean.
        gamma: discount a token.
        cql_weight: c, of the cross-entropy of each Q head.
        awac_weight: w, of the policy's likelihood.
        awac_beta: b, how much more likely better actions are made, in 1/value.

    Returns:
        One loss a response, whose mean is the loss. Diagnostics: ``loss/q``, ``loss/value``, ``loss/cql`` and
        ``loss/awac`` (before their weights), ``value/q``, ``value/v``, ``value/advantage`` and ``awac_weight``.

    Raises:
        ValueError: an option is outside its range.
    """
    best, goal = values.target_q.detach().amin(0), _bellman_goal(policy.sequence, values.value, score, gamma)
    advantage = best - values.value
    likelier = (awac_beta * advantage.detach()).exp()
    parts = {
        "q": (values.q - goal).square().sum(0),
        "value": torch.where(advantage >= 0, tau, 1 - tau) * advantage.square(),
        "cql": -values.q_log_prob.sum(0),
        "awac": -likelier * policy.token,
    }
    token = parts["q"] + parts["value"] + cql_weight * parts["cql"] + awac_weight * parts["awac"]
    logged = {f"loss/{name}": part for name, part in parts.items()}
    logged |= {"value/q": best, "value/v": values.value, "value/advantage": advantage, "awac_weight": likelier}
    detached = {name: number.detach() for name, number in logged.items()}
    return MeasuredLoss(policy.with_token(token).sum() / policy.step_length, detached)


def _bellman_goal(
    sequence: Int[Tensor, " response_tokens"],
    value: Float[Tensor, " response_tokens"],
    score: Float[Tensor, " responses"],
    gamma: float,
) -> Float[Tensor, " response_tokens"]:
    """Worth of each action by the next state's value: r + gamma V', the score at a response's last token."""
    last = _is_last(sequence)
    following = torch.cat([value[1:], value.new_zeros(min(1, len(last)))]).masked_fill(last, 0.0)
    reward = score[sequence].to(value).masked_fill(~last, 0.0)
    return (reward + gamma * following).detach()


def _is_last(sequence: Tensor) -> Tensor:
    """Return whether each scored token is its response's last one."""
    last = torch.ones_like(sequence, dtype=torch.bool)
    last[:-1] = sequence[1:] != sequence[:-1]
    return last
