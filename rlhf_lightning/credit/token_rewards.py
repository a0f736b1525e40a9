"""Rewards of single tokens, from the score of a response and what each token strays from the reference."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.types import Ragged


def token_rewards(
    score: Float[Tensor, " responses"],
    layout: Ragged,
    *,
    kl: Ragged | None = None,
    coef: float = 0.0,
    step_reward: Ragged | None = None,
) -> Ragged:
    r"""A penalty at every token, and the score at the last one.

    .. math:: r_t = -\beta\,\mathrm{kl}_t + s_t + 1[t = T]\,R

    Source: "Fine-Tuning Language Models from Human Preferences", arXiv:1909.08593, sec. 2; details 7 and 17 of "The N
    Implementation Details of RLHF with PPO". The penalty counts at the last token too.

    Args:
        score: R of each response, after shaping.
        layout: the response tokens, any numbers.
        kl: estimate of the KL at each token, nats; None: no penalty (``kl.apply_to`` is ``loss`` or ``none``).
        coef: beta; negative for a cost, which the divergence adds to.
        step_reward: s, reward that is placed on tokens by itself, nan where no step ends; None: none.

    Returns:
        One reward a response token. The score of a response without tokens is lost.
    """
    reward = torch.zeros_like(layout.token, dtype=torch.float32)
    if kl is not None:
        reward = reward - coef * kl.token
    if step_reward is not None:
        reward = reward + step_reward.token.nan_to_num(0.0)
    length = torch.bincount(layout.sequence, minlength=layout.count)
    last = length.cumsum(0) - 1
    present = length > 0
    return layout.with_token(reward.index_add(0, last[present], score[present].to(reward)))
