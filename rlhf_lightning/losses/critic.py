"""Loss of a critic: the error of its values against the returns that followed."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.types import Ragged, TokenLoss


def value_error(
    value: Ragged,
    old: Float[Tensor, " response_tokens"],
    returns: Float[Tensor, " response_tokens"],
    *,
    clip: float | None = 0.2,
) -> TokenLoss:
    r"""Half the squared error of each value, pessimistic about steps that lead far from the old value.

    .. math:: \tfrac12\max\big((V - R)^2,\ (\mathrm{clip}(V, V_{old} - \epsilon, V_{old} + \epsilon) - R)^2\big)

    The maximum takes the gradient of a value away that has moved towards its return by more than epsilon.

    Source: OpenAI's code for "Fine-Tuning Language Models from Human Preferences", arXiv:1909.08593; detail 19 of "The
    N Implementation Details of RLHF with PPO". Default: that code's epsilon; OpenRLHF and verl have 0.5, safe-rlhf 5.

    Args:
        value: of the critic that is trained, one a response token.
        old: of the critic at the rollout.
        returns: advantages at the rollout, before they were whitened, plus old values.
        clip: epsilon, in units of the reward; None: the plain squared error.

    Returns:
        One loss a token; diagnostics ``value/mean``, ``value/error`` (the squared error, unclipped) and ``value/clip``,
        the share of tokens where the clipped error is the larger one.
    """
    error = (value.token - returns).square()
    worst, clipped = error, torch.zeros_like(error)
    if clip is not None:
        held = torch.minimum(torch.maximum(value.token, old - clip), old + clip)
        held_error = (held - returns).square()
        worst, clipped = torch.maximum(error, held_error), (held_error > error).float()
    named = {"value/mean": value.token, "value/error": error, "value/clip": clipped}
    return TokenLoss(worst / 2, {name: number.detach() for name, number in named.items()})
