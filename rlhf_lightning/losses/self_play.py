r"""Losses of methods that train on their own samples: they ask who drew a response, and how often it would win.

Notation: ``losses/terms.py``; :math:`P_y` is the probability that the response y beats one of the current policy.
Every loss raises ValueError when an option is outside its range.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.losses.anchored import regressed
from rlhf_lightning.losses.lists import shares
from rlhf_lightning.losses.options import NonNegative, Positive, loss_function, on_policy
from rlhf_lightning.losses.terms import log_ratios, logistic
from rlhf_lightning.ops.segments import segment_to_go
from rlhf_lightning.types import GroupLoss, Pair, PreferenceLoss, Ragged


@loss_function
def sppo_soft(
    policy: Pair, reference: Pair, win_probability: Float[Tensor, "pairs 2"], *, beta: Positive = 1e-3
) -> PreferenceLoss:
    r"""Self-play preference optimisation: regress each log-ratio on its centred win probability.

    .. math:: \tfrac12\sum_{y \in \{w, l\}}\Big[\rho_y - \tfrac1\beta\big(P_y - \tfrac12\big)\Big]^2

    A step of multiplicative weights towards the Nash policy of the preference, which may be cyclic. At probabilities 1
    and 0 it is ``sppo``.

    Source: "Self-Play Preference Optimization for Language Model Alignment", arXiv:2405.00675, algorithm 1; the half as
    in the authors' code (uclaml/SPPO).
    Defaults: beta 1e-3 (the paper's eta = 1000), from the authors' scripts: targets are up to 500 nats away; clip
    gradients.
    Differences: none to that code, where the probabilities are a softened ranking: each is the mean over the prompt's
    five samples, itself among them, of the logistic function of the difference of two scores. Any probability will do
    here. TRL 1.16 has no such loss.

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the policy that the pair was drawn from, the start of the round.
        win_probability: of the chosen and the rejected response.
        beta: the inverse of the paper's eta, 1/nats.

    Returns:
        One loss a pair, in nats squared; implicit rewards beta * rho; diagnostics ``target/chosen`` and
        ``target/rejected`` (nats) and ``undecided``, share of the two probabilities within 0.4 and 0.6.

    Raises:
        ValueError: an option is outside its range.
    """
    target = (win_probability - 0.5) / beta
    chosen, rejected = target.unbind(1)
    undecided = ((win_probability - 0.5).abs() < 0.1).to(target.dtype).mean(1)
    diagnostics = {"target/chosen": chosen, "target/rejected": rejected, "undecided": undecided}
    return replace(regressed(policy, reference, (chosen, rejected), beta), diagnostics=diagnostics)


@loss_function
def xpo(
    policy: Pair,
    reference: Pair,
    reference_sample: Float[Tensor, "pairs 2"],
    *,
    beta: Positive = 0.1,
    alpha: NonNegative = 1e-5,
) -> PreferenceLoss:
    r"""Exploratory preference optimisation: DPO, and a bonus for leaving what the reference would have written.

    .. math:: -\log\sigma(\beta h) + \alpha\,\ell(y_{\mathrm{ref}})

    A pair is a sample of the policy and one of the reference, whichever of them won. Minimising the second term lowers
    the probability of the reference's sample, and so raises that of everything else: optimism, not a regulariser.

    Source: "Exploratory Preference Optimization: Harnessing Implicit Q*-Approximation for Sample-Efficient RLHF",
    arXiv:2405.21046, algorithm 1.
    Defaults: beta 0.1 and alpha 1e-5, those of TRL 1.13, the last release that had it.
    Differences: the term is a sum of log-probs without a lower bound, some hundreds of nats a response: at an alpha of
    1e-3 it already dominates. A pair without a sample of the reference is plain DPO. TRL's documentation describes the
    sign of the term the other way round; its code agrees with this.

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference.
        reference_sample: 1 for the response that the reference drew.
        beta: 1/nats.
        alpha: weight of the term, 1/nats.

    Returns:
        One loss a pair; implicit rewards beta * rho; diagnostic ``log_prob/reference_sample`` of the pairs that have
        one (nats).

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected = log_ratios(policy, reference)
    summed = torch.stack([policy.chosen.sum(), policy.rejected.sum()], 1)
    drawn = reference_sample > 0
    log_prob = summed.where(drawn, 0.0).sum(1)
    return PreferenceLoss(
        logistic(beta * (chosen - rejected)) + alpha * log_prob,
        (beta * chosen).detach(),
        (beta * rejected).detach(),
        diagnostics={"log_prob/reference_sample": log_prob.detach()[drawn.any(1)]},
    )


@on_policy
@loss_function
def nash_md(
    policy: Ragged,
    reference: Ragged,
    win_probability: Float[Tensor, "groups slots"],
    present: Bool[Tensor, "groups slots"],
    *,
    beta: NonNegative = 0.1,
    kl: Literal["sequence", "reward_to_go", "token"] = "sequence",
) -> GroupLoss:
    r"""Nash-MD: policy gradient of the probability of winning, against a mixture of policy and reference.

    .. math:: -\sum_t A_t\log\pi_\theta(y_t), \qquad
              A_t = P_y - \tfrac12 - \beta\sum_{s \in S_t}\log\frac{\pi_\theta(y_s)}{\pi_\mathrm{ref}(y_s)}

    where :math:`S_t` are all tokens of the response (``sequence``), those from t on (``reward_to_go``), or t alone
    (``token``), and no gradient flows through :math:`A_t`. The responses are the policy's own, drawn by it as it is;
    their rivals were drawn from the geometric mixture and are not trained on. With ``kl="sequence"`` and
    ``"reward_to_go"`` the expected gradient is that of the win probability less beta times the KL divergence;
    ``"token"`` leaves out what a token costs later.

    Source: "Nash Learning from Human Feedback", arXiv:2312.00886, section 7.
    Defaults: beta 0.1, TRL's; the paper's value could not be checked. The estimator of the whole sequence, the paper's.
    Differences: TRL 1.13, the last release that had it, pairs each log-ratio with the log-prob of the same token alone,
    ``kl="token"``; and it makes the probability out of two scores, where the paper has a pairwise preference model.

    Args:
        policy: log-probs of the policy.
        reference: log-probs of the reference.
        win_probability: of each response against a sample of the mixture, or its mean over several; meaningless in an
            empty slot.
        present: which slots hold a response.
        beta: weight of the KL divergence, 1/nats.
        kl: which log-ratios a token pays for.

    Returns:
        One loss a prompt, the mean over its responses, of which only the gradient means anything; rewards
        :math:`P_y - 1/2` less the penalty of the whole response; diagnostics ``win_probability`` and ``kl/sample``
        (nats) of each response.

    Raises:
        ValueError: an option is outside its range.
    """
    ratio = policy.log_ratio(reference)
    ratio = ratio.with_token(ratio.token.detach())
    total = ratio.sum()
    flat = present.flatten()
    gain = (win_probability.flatten() - 0.5).where(flat, 0.0)
    if kl == "sequence":
        penalty = total[ratio.sequence]
    elif kl == "reward_to_go":
        penalty = segment_to_go(ratio.token, ratio.sequence, ratio.count)
    else:
        penalty = ratio.token
    advantage = gain[ratio.sequence] - beta * penalty
    loss = -policy.with_token(advantage * policy.token).sum().view(present.shape)
    return GroupLoss(
        (shares(present) * loss).sum(-1),
        gain - beta * total,
        diagnostics={"win_probability": (gain + 0.5)[flat], "kl/sample": total[flat]},
    )
