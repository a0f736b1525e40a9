"""Contrastive token losses: at each token of a bad response, prefer one of the tokens that the model would also write.

Where a likelihood term only says what to write, these say what to write *instead*, and they need no reference. The
alternative that a token is compared with is sampled again at every step; the callback ``step_seed`` makes the draws a
function of the run's seed and the step. Notation: ``losses/terms.py``; :math:`z_v` is the logit of token v. Every loss
raises ValueError when an option is outside its range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_lightning.losses.options import Count, NonNegative, Positive, Real, loss_function
from rlhf_lightning.losses.terms import summed_margin
from rlhf_lightning.types import GroupLoss, Pair, PreferenceLoss, Ragged, TopTokens


@loss_function
def cringe(
    policy: Ragged,
    desirable: Float[Tensor, " responses"],
    top_k: TopTokens,
    *,
    alpha: NonNegative = 1.0,
    k: Count = 1,
    detach_alternative: bool = False,
) -> GroupLoss:
    r"""Cringe: likelihood of desirable responses, and a contrast with a sampled alternative at each undesirable token.

    .. math:: \frac1N\Big[-\sum_{\text{desirable}}\ell
              + \alpha\sum_{\text{undesirable}}\sum_t \log\big(1 + e^{z_{y_t} - z_{v_t}}\big)\Big],
              \quad v_t \sim \mathrm{softmax}\text{ of the } k \text{ highest logits other than } z_{y_t}

    N counts the tokens that received either term over the whole optimiser step: all scored ones.

    Source: "The CRINGE Loss: Learning what language not to model", arXiv:2211.05826.
    Defaults: alpha 1 and k 1, with gradients through the alternative, from the authors' code (ParlAI,
    projects/cringe).
    Differences: labels are those of responses; the authors' code also takes labels of tokens, and has a switch that
    contrasts desirable tokens as well. Theirs divides by the tokens of the micro-batch. The loop of the paper
    (generate, label, train again) is a matter of rounds. TRL 1.16 has no such loss.

    Args:
        policy: log-probs of the policy.
        desirable: 1 or 0, the label of each response.
        top_k: the policy's most likely tokens at every token of the undesirable responses.
        alpha: weight of the contrastive term.
        k: alternatives to sample from; 1 always takes the most likely one.
        detach_alternative: only push the undesirable token's logit down, do not pull the alternative's up.

    Returns:
        One loss a response, in nats; summed log-probs as rewards; diagnostics ``ce`` (per token of each desirable
        response), ``contrast`` (per token of each undesirable one) and ``rank`` (of each sampled alternative among all
        tokens, 1 for the most likely).

    Raises:
        ValueError: an option is outside its range.
    """
    good = desirable > 0
    contrast = contrasted(top_k, k, detach_alternative)
    total = torch.where(good, -policy.sum(), alpha * top_k.sum(contrast.loss))
    diagnostics = {
        "ce": -policy.mean()[good],
        "contrast": top_k.mean(contrast.loss)[~good],
        "rank": contrast.rank.float(),
    }
    return GroupLoss(
        total / policy.step_length,
        policy.sum().detach(),
        diagnostics={name: value.detach() for name, value in diagnostics.items()},
    )


@loss_function
def pairwise_cringe(
    policy: Pair,
    top_k: TopTokens,
    *,
    alpha: NonNegative = 0.05,
    k: Count = 5,
    threshold: Real = 0.0,
    tau: Positive = 10.0,
    gate: Literal["soft", "hard"] = "soft",
    detach_gate: bool = True,
    detach_alternative: bool = False,
) -> PreferenceLoss:
    r"""Pairwise Cringe: the binary loss on a pair, behind a gate that closes once the chosen response is ahead.

    .. math:: g\cdot\frac1N\Big[-\ell_w + \alpha\sum_t\log\big(1 + e^{z_{y_{l,t}} - z_{v_t}}\big)\Big],
              \quad g = \sigma\big((b - M)/\tau\big),\ M = \ell_w - \ell_l

    The alternatives :math:`v_t` are sampled as in ``cringe``. With ``gate="hard"`` the gate is
    :math:`\mathbb 1[M < b]`, its limit for small tau. N counts the tokens of both responses over the optimiser step,
    per pair. As M is a sum over tokens, b and tau grow with the length of the responses.

    Source: "Some things are more CRINGE than others: Iterative Preference Optimization with the Pairwise Cringe
    Loss", arXiv:2312.16682.
    Defaults: our choices, for responses of some dozens of tokens.
    Differences: not known. The formula is that of secondary descriptions; the authors published no code, and the gate,
    the normalisation and whether gradients flow through the gate could not be checked against the paper. Here they do
    not; with ``detach_gate=False`` the gate also pushes M up, since the bracket is positive. TRL 1.16 has no such loss.

    Args:
        policy: log-probs of the policy.
        top_k: the policy's most likely tokens at every token of the rejected responses.
        alpha: weight of the contrastive term.
        k: alternatives to sample from; 1 always takes the most likely one.
        threshold: the margin b at which the gate is half closed, in nats.
        tau: nats; the larger, the softer the gate.
        gate: soft or hard.
        detach_gate: treat the gate as a constant; a hard one always is.
        detach_alternative: only push the rejected token's logit down, do not pull the alternative's up.

    Returns:
        One loss a pair, in nats; summed log-probs as rewards; diagnostics ``gate``, ``closed`` (share of gates below
        1/2), ``margin`` (M), ``ce`` and ``contrast`` (per token) and ``rank`` (of the alternatives, 1: most likely).

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected, margin = policy.chosen.sum(), policy.rejected.sum(), summed_margin(policy)
    opened = ((threshold - margin) / tau).sigmoid() if gate == "soft" else (margin < threshold).to(margin.dtype)
    contrast = contrasted(top_k, k, detach_alternative)
    length = policy.chosen.step_length + policy.rejected.step_length
    binary = (alpha * top_k.sum(contrast.loss) - chosen) / length
    diagnostics = {"gate": opened, "closed": (opened < 0.5).float(), "margin": margin, "ce": -policy.chosen.mean()}
    diagnostics |= {"contrast": top_k.mean(contrast.loss), "rank": top_k.mean(contrast.rank.to(margin.dtype))}
    return PreferenceLoss(
        (opened.detach() if detach_gate else opened) * binary,
        chosen.detach(),
        rejected.detach(),
        diagnostics={name: value.detach() for name, value in diagnostics.items()},
    )


@dataclass
class Contrast:
    """The contrastive term at each negative token, and the alternative it was held against."""

    loss: Float[Tensor, " positions"]  #: nats
    token: Int[Tensor, " positions"]  #: the alternative
    rank: Int[Tensor, " positions"]  #: of the alternative among all tokens, 1 for the most likely


def contrasted(top_k: TopTokens, k: int, detach_alternative: bool = False) -> Contrast:
    r"""Hold each token against an alternative sampled from the softmax of its ``k`` most likely competitors.

    The loss is binary cross-entropy on two logits, :math:`\log(1 + e^{z_{y} - z_{v}})`. The token itself is never
    sampled: it is struck from the ``k + 1`` highest logits, or where it is not among them the last of them is.

    Args:
        top_k: at least ``k + 1`` of the highest logits a position (or the whole vocabulary).
        k: alternatives to sample from.
        detach_alternative: no gradient through the alternative's logit.
    """
    logit, token = top_k.logit[:, : k + 1], top_k.token[:, : k + 1]
    struck = token == top_k.target[:, None]
    struck[:, k:] |= ~struck.any(1, keepdim=True)
    # Gumbel's trick: the largest of logit + noise is a sample of the softmax, and what is struck can never be it.
    noise = -torch.empty_like(logit).exponential_().log()
    picked = (logit.detach() + noise).masked_fill(struck, -torch.inf).argmax(1, keepdim=True)
    alternative = logit.gather(1, picked).squeeze(1)
    if detach_alternative:
        alternative = alternative.detach()
    loss = F.softplus(top_k.target_logit - alternative)
    return Contrast(loss, token.gather(1, picked).squeeze(1), picked.squeeze(1) + 1)
