r"""Functions of ranked lists: which responses are worse than which, which one is best, and sums over a list.

A list is a row of ``[groups, slots]``: a response a slot, fewer in shorter lists (``present``). Only *strict*
differences of score count: tied responses are never compared with each other, and a term of the best response is the
mean over all that share the highest score. So neither the order of the responses nor how ties are broken matters.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.losses.terms import negative_log_likelihood
from rlhf_lightning.types import Ragged

#: How a likelihood term adds up the tokens of a response in a list.
ListReduction = Literal["response_mean", "sum"]


def worse(
    score: Float[Tensor, "groups slots"], present: Bool[Tensor, "groups slots"]
) -> Bool[Tensor, "groups slots slots"]:
    """Entry (g, k, i): list g has responses k and i, and i has a strictly lower score than k."""
    both = present[:, :, None] & present[:, None, :]
    return both & (score[:, None, :] < score[:, :, None])


def best(score: Float[Tensor, "groups slots"], present: Bool[Tensor, "groups slots"]) -> Float[Tensor, "groups slots"]:
    """Shares that add up to 1: equal ones for the responses with a list's highest score, 0 for the others."""
    return shares(present & ~worse(score, present).any(1))


def shares(chosen: Bool[Tensor, "groups slots"]) -> Float[Tensor, "groups slots"]:
    """Equal shares for the chosen responses of each list, which add up to 1 (to 0 where none is chosen)."""
    return chosen.float() / chosen.sum(-1, keepdim=True).clamp(min=1)


def log_shares(
    logits: Float[Tensor, "groups slots"], present: Bool[Tensor, "groups slots"]
) -> Float[Tensor, "groups slots"]:
    """Log-softmax over the responses of each list; 0 in a slot without one, also where a list has none at all."""
    empty = ~present.any(-1, keepdim=True)
    filled = logits.masked_fill(~present, -torch.inf).masked_fill(empty, 0.0)
    return filled.log_softmax(-1).masked_fill(~present, 0.0)


def top_heavy(
    logits: Float[Tensor, "groups slots"],
    others: Float[Tensor, "groups slots slots"],
    below: Bool[Tensor, "groups slots slots"],
) -> Float[Tensor, "groups slots"]:
    r"""For every response k :math:`-\log\big[e^{a_k} / (e^{a_k} + \sum_{i \prec k} e^{b_{ki}})\big]`; 0 for the last.

    Args:
        logits: the logits a.
        others: the logits b, that of i as k sees it; those not below are ignored.
        below: the responses that k has to beat.
    """
    compared = torch.cat([logits[..., None], others.masked_fill(~below, -torch.inf)], -1)
    return compared.logsumexp(-1) - logits


def list_nll(
    policy: Ragged, share: Float[Tensor, "groups slots"], reduction: ListReduction
) -> Float[Tensor, " groups"]:
    """Negative log-likelihood of each list's responses, weighted by ``share``; nats per token, or nats for ``sum``."""
    term = negative_log_likelihood(policy, reduction).view(share.shape)
    return (share * term).sum(-1)
