r"""Losses that train a reward or cost model on comparisons: pairs, ranked lists, pairs with safety labels.

They work on the numbers of a scalar head. Notation: :math:`r_w` is the reward of the chosen and :math:`r_l` that of the
rejected response, :math:`d = r_w - r_l`, :math:`\sigma` the logistic function. A row of ``reward`` is a group, a column
a slot of it; slot 0 of a pair is the chosen response. Losses return one number a group; the method divides by the
groups of the whole optimiser step. Every loss raises ValueError when an option is not one of the allowed ones.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_lightning.losses.lists import log_shares
from rlhf_lightning.losses.options import Count, NonNegative, compares_groups, loss_function
from rlhf_lightning.losses.terms import Reduction, logistic, negative_log_likelihood
from rlhf_lightning.ops.comparisons import outcomes
from rlhf_lightning.types import GroupLoss, Pair, PreferenceLoss, Ragged

T = TypeVar("T")


@loss_function
def bradley_terry(
    reward: Float[Tensor, "pairs 2"],
    margin: Float[Tensor, " pairs"] | None = None,
    policy: Pair | None = None,
    *,
    margin_scale: NonNegative = 0.0,
    centering: NonNegative = 0.0,
    lm_weight: NonNegative = 0.0,
    lm_reduction: Reduction = "token_mean",
) -> PreferenceLoss:
    r"""Bradley-Terry reward model: the chosen response wins with probability sigma of the difference of rewards.

    .. math:: -\log\sigma(r_w - r_l - s\,m) + c\,(r_w + r_l)^2 + \lambda\,\mathrm{NLL}(y_w)

    with the margin m of the data and its scale s, the coefficient c that keeps rewards near 0, and a likelihood term on
    the chosen response from the same pass of the trunk.

    Source: "Learning to summarize from human feedback", arXiv:2009.01325; the margin from "Llama 2", arXiv:2307.09288;
    centering from "Helping or Herding? Reward Model Ensembles Mitigate but do not Eliminate Reward Hacking",
    arXiv:2312.09244; the likelihood term from "Secrets of RLHF in Large Language Models Part II", arXiv:2401.06080.
    Defaults: no margin, no centering, no likelihood term. TRL's documentation recommends centering of 0.01; Llama 2
    has margins of 1, 2/3, 1/3 and 0 (or 3, 2, 1 and 0) for four degrees of preference.
    Differences: a margin in the data is used only when ``margin_scale`` says so; TRL 1.16 always uses one.

    Args:
        reward: of the chosen and the rejected response.
        margin: of each pair, in the data's own units.
        policy: log-probs of both responses; only the chosen ones are used.
        margin_scale: s; what a unit of the data's margin is worth in nats. 0 ignores the margin.
        centering: c.
        lm_weight: lambda; above 0 the model keeps its head over the vocabulary.
        lm_reduction: how the likelihood term adds up tokens.

    Returns:
        One loss a pair.

    Raises:
        ValueError: an option is out of range, or it asks for what the batch does not have.
    """
    chosen, rejected = reward.unbind(1)
    difference = chosen - rejected
    if margin_scale:
        difference = difference - margin_scale * _given(margin, "margin_scale", "the margin of each pair")
    loss = logistic(difference)
    diagnostics: dict[str, Tensor] = {}
    if centering:
        loss = loss + centering * (chosen + rejected).square()
    if lm_weight:
        likelihood = negative_log_likelihood(_given(policy, "lm_weight", "log-probs").chosen, lm_reduction)
        loss = loss + lm_weight * likelihood
        diagnostics["loss/language_model"] = likelihood.detach()
    return PreferenceLoss(loss, chosen.detach(), rejected.detach(), diagnostics=diagnostics)


@loss_function
def apo_reward(
    reward: Float[Tensor, "pairs 2"],
    policy_sample: Float[Tensor, "pairs 2"],
    *,
    annotated_weight: NonNegative = 1.0,
    adversarial_weight: NonNegative = 0.1,
    samples: Count = 4,
) -> PreferenceLoss:
    r"""The reward model's move in adversarial preference optimisation (APO): tell gold responses from the policy's.

    .. math:: -\frac1N\Big[c_\mathrm{KL}\sum_{\text{annotated}}\log\sigma(r_w - r_l)
              + \frac{c_\mathrm{APO}}{n}\sum_{\text{adversarial}}\log\sigma(r_w - r_l)\Big]

    N counts the pairs of both kinds over the whole step: they share one denominator, so an adversarial pair, a gold
    response against one of n samples of the policy, weighs c_APO / n of an annotated one.

    Source: "Adversarial Preference Optimization: Enhancing Your Alignment via RM-LLM Game", arXiv:2311.08045, in the
    form of the authors' code (Linear95/APO). Not the anchored APO of ``apo_zero``.
    Defaults: 1, 0.1 and 4, from the authors' scripts; their code's own defaults, 0 and 1, leave the game out.
    Differences: their option that takes the gap of the scores for its logarithm is not offered: it has no lower bound.

    Args:
        reward: of the chosen and the rejected response.
        policy_sample: 1 for a response that the policy drew. A pair is adversarial where that is the rejected one only.
        annotated_weight: c_KL, of annotated pairs.
        adversarial_weight: c_APO, of all n pairs of a gold response together.
        samples: n, pairs that each gold response is in.

    Returns:
        One loss a pair; diagnostics ``reward/accuracy_annotated`` and ``reward/accuracy_adversarial``. The second one
        should fall towards 1/2 as the policy improves.

    Raises:
        ValueError: an option is out of range.
    """
    chosen, rejected = reward.unbind(1)
    adversarial = (policy_sample[:, 1] > 0) & ~(policy_sample[:, 0] > 0)
    compared = logistic(chosen - rejected)
    loss = torch.where(adversarial, adversarial_weight / samples * compared, annotated_weight * compared)
    won = outcomes((chosen - rejected).detach(), 0.0)
    diagnostics = {"reward/accuracy_annotated": won[~adversarial], "reward/accuracy_adversarial": won[adversarial]}
    return PreferenceLoss(loss, chosen.detach(), rejected.detach(), diagnostics=diagnostics)


@loss_function
def log_exp(reward: Float[Tensor, "pairs 2"]) -> PreferenceLoss:
    r"""The log-exp loss of ColossalChat: Bradley-Terry under another name.

    .. math:: \log(1 + e^{r_l - r_w}) = -\log\sigma(r_w - r_l)

    Both are the softplus of the negative difference; values and gradients agree for every input.

    Source: the ``log_exp`` option of ColossalChat (ColossalAI), there beside ``log_sig``.
    Defaults: there is nothing to choose.
    Differences: computed as a softplus. The formula as it is written overflows in float32 once the rejected response
    leads by 88, and in float16 by 11. OpenRLHF's ``logexp`` ignores the margin; so does this one.

    Args:
        reward: of the chosen and the rejected response.

    Returns:
        One loss a pair.
    """
    chosen, rejected = reward.unbind(1)
    return PreferenceLoss(F.softplus(rejected - chosen), chosen.detach(), rejected.detach())


@compares_groups("correlates the rewards of a micro-batch with lengths", option="length_weight")
@loss_function
def odin(
    reward: Float[Tensor, "pairs 2 heads"],
    length: Float[Tensor, "pairs 2"],
    overlap: Float[Tensor, ""],
    *,
    length_weight: NonNegative = 1.0,
    orthogonality_weight: NonNegative = 1.0,
) -> PreferenceLoss:
    r"""ODIN: one head takes up what length explains, the other is the reward and does not correlate with length.

    .. math::
        -\log\sigma(d_Q + d_L) + \lambda_L\,\bigl(|\rho(r_Q, n)| + |\rho(r_Q + r_L, n)| + 1 - \rho(r_L, n)\bigr)
        + \lambda_O\,|\cos(w_Q, w_L)|

    with the quality head Q and the length head L, Pearson's correlation :math:`\rho` over the responses of the batch,
    the number n of tokens of a prompt and its response, and the rows w of the two heads. Only Q is used once the model
    is trained.

    Source: "ODIN: Disentangled Reward Mitigates Hacking in RLHF", arXiv:2402.07319, in the form of the authors' code
    (Lichang-Chen/ODIN).
    Defaults: both weights 1, as in the paper and the authors' script.
    Differences: the paper has neither the correlation of the sum of heads nor the constant, and counts the tokens of
    the response. The authors' correlations run over the micro-batches of all processes, of which each has gradients of
    its own part; here they are those of one micro-batch, so the loss depends on how a batch is cut; use micro-batches
    of several pairs. Where all lengths are equal a correlation is 0, in their code nan. Rows are made centred and of
    norm 1, as in the authors' code, by ``method.head.unit_rows=true``.

    Args:
        reward: of the chosen and the rejected response by the heads: quality first, then length.
        length: tokens of each response and its prompt together.
        overlap: absolute cosine between the rows of the two heads.
        length_weight: lambda_L.
        orthogonality_weight: lambda_O.

    Returns:
        One loss a pair; the rewards are those of the quality head.

    Raises:
        ValueError: the head has not two outputs, or an option is out of range.
    """
    if reward.shape[2] != 2:
        raise ValueError(f"loss odin needs two heads, not {reward.shape[2]}: set method.head.outputs=2")
    quality = _correlation(reward[..., 0].flatten(), length.flatten())
    longer = _correlation(reward[..., 1].flatten(), length.flatten())
    whole = reward.sum(-1)
    ranking = _correlation(whole.flatten(), length.flatten())
    shared = length_weight * (quality.abs() + ranking.abs() + 1 - longer) + orthogonality_weight * overlap
    loss = logistic(whole[:, 0] - whole[:, 1]) + shared
    diagnostics = {
        "reward/quality_length_correlation": quality.detach(),
        "reward/length_head_correlation": longer.detach(),
        "reward/sum_length_correlation": ranking.detach(),
        "reward/head_overlap": overlap.detach(),
    }
    chosen, rejected = reward[..., 0].detach().unbind(1)
    return PreferenceLoss(loss, chosen, rejected, diagnostics=diagnostics)


@loss_function
def k_wise(reward: Float[Tensor, "groups slots"], score: Float[Tensor, "groups slots"]) -> GroupLoss:
    r"""InstructGPT's K-wise loss: the mean Bradley-Terry loss over all pairs of one prompt's responses.

    .. math:: -\frac{1}{|P_x|}\sum_{(w, l) \in P_x}\log\sigma(r_w - r_l)

    with :math:`P_x` the pairs of responses to x with different scores. All K responses go through the model once and
    stay in one element of the batch; as separate data points the pairs of a prompt make the model overfit in one epoch.

    Source: "Training language models to follow instructions with human feedback", arXiv:2203.02155, equation 1.
    Defaults: there is nothing to choose.
    Differences: ties are dropped, as the paper does; a list whose scores are all equal has the loss 0. The mean is
    taken within a prompt first, so a prompt counts once however many responses it has.

    Args:
        reward: of every response.
        score: that ranks them, higher is better; nan in a slot without a response.

    Returns:
        One loss a prompt.
    """
    better = score[:, :, None] > score[:, None, :]  # nan compares as False, so an empty slot is in no pair
    difference = reward[:, :, None] - reward[:, None, :]
    losses = F.softplus(-difference).where(better, 0.0)
    pairs = better.sum((1, 2))
    diagnostics = {
        "reward/accuracy": outcomes(difference[better].detach(), 0.0),
        "reward/margin": difference[better].detach(),
    }
    return GroupLoss(losses.sum((1, 2)) / pairs.clamp(min=1), reward.detach().flatten(), diagnostics=diagnostics)


@loss_function
def best_of_k(reward: Float[Tensor, "groups slots"], score: Float[Tensor, "groups slots"]) -> GroupLoss:
    r"""Best of K: cross-entropy of choosing the best response of a prompt by the softmax of the rewards.

    .. math:: -\log\frac{e^{r_b}}{\sum_k e^{r_k}}, \qquad b = \arg\max_k s_k

    Source: "Fine-Tuning Language Models from Human Preferences", arXiv:1909.08593, equation 1 (K = 4).
    Defaults: there is nothing to choose.
    Differences: several best responses share the label equally. For K = 2 this is the Bradley-Terry loss. The loss of a
    list without responses is 0.

    Args:
        reward: of every response.
        score: whose largest marks the best response; nan in a slot without a response.

    Returns:
        One loss a prompt.
    """
    present = ~score.isnan()
    top = score.where(present, -torch.inf).amax(1, keepdim=True)
    best = (score == top).float()
    chosen = (reward == reward.masked_fill(~present, -torch.inf).amax(1, keepdim=True)) & present
    hit = (best * chosen).sum(1) / chosen.sum(1)  # of several that are chosen alike each has its share
    loss = -(best * log_shares(reward, present)).sum(1) / best.sum(1).clamp(min=1)
    return GroupLoss(loss, reward.detach().flatten(), diagnostics={"reward/accuracy": hit.detach()[present.any(1)]})


@loss_function
def token_wise(token_reward: Pair, prefix: Int[Tensor, " pairs"]) -> PreferenceLoss:
    r"""Token-wise pair loss: compare the two responses at every position from the first token that differs.

    .. math:: -\frac{1}{T - t_0}\sum_{t = t_0}^{T - 1}\log\sigma(v_{w,t} - v_{l,t}), \qquad T = \max(n_w, n_l)

    with a value v at every token and the number :math:`t_0` of leading tokens that both responses share. The score of a
    response is its value at the last token.

    Source: the reward model of DeepSpeed-Chat, arXiv:2308.01320 (also of the trlX examples and of Zhongjing,
    arXiv:2308.03549).
    Defaults: there is nothing to choose.
    Differences: behind the end of the shorter response its last value is held; the published code reads the values of
    padding tokens there. A pair of equal responses has the loss 0, where the published code has an empty mean.

    Args:
        token_reward: a value at every scored token of both responses.
        prefix: scored tokens at the beginning that both responses share.

    Returns:
        One loss a pair; the rewards are the values at the last tokens.
    """
    lengths = token_reward.chosen.length.long(), token_reward.rejected.length.long()
    longest = torch.maximum(*lengths)
    position = torch.arange(int(longest.max()), device=prefix.device)
    chosen, rejected = (
        _held(part, length, position)
        for part, length in zip((token_reward.chosen, token_reward.rejected), lengths, strict=True)
    )
    compared = (position >= prefix[:, None]) & (position < longest[:, None])
    losses = F.softplus(rejected - chosen).where(compared, 0.0).sum(1) / compared.sum(1).clamp(min=1)
    last = [values.detach()[:, -1] for values in (chosen, rejected)]
    return PreferenceLoss(losses, last[0], last[1])


@loss_function
def cost(
    reward: Float[Tensor, "pairs 2"],
    safe: Float[Tensor, "pairs 2"],
    *,
    sign_weight: NonNegative = 1.0,
    regularization: NonNegative = 0.001,
) -> PreferenceLoss:
    r"""Cost model of safe RLHF: the less safe response costs more, and 0 is the border between safe and unsafe.

    .. math::
        -\log\sigma(c_u - c_s) - \lambda\bigl(\log\sigma(z_u c_u) + \log\sigma(z_s c_s)\bigr)
        + \tfrac{\eta}{2}(c_u^2 + c_s^2)

    with the cost c of the safer response s and of the less safe one u, and z = 1 for an unsafe, -1 for a safe response.

    Source: "Safe RLHF: Safe Reinforcement Learning from Human Feedback", arXiv:2310.12773; the regulariser from the
    authors' code (PKU-Alignment/safe-rlhf).
    Defaults: the paper's weight 1 of the sign terms; regularisation 0.001 as in the authors' scripts.
    Differences: none known. The head's number is the cost; what is logged as reward is its negative.

    Args:
        reward: the head's number for the safer and for the less safe response: their costs.
        safe: 1 for a safe response, 0 for an unsafe one.
        sign_weight: lambda.
        regularization: eta.

    Returns:
        One loss a pair.

    Raises:
        ValueError: an option is out of range.
    """
    safer, worse = reward.unbind(1)
    sign = 1 - 2 * safe.to(reward.dtype)
    loss = logistic(worse - safer) + sign_weight * F.softplus(-sign * reward).sum(1)
    loss = loss + regularization * reward.square().mean(1)
    diagnostics = {"reward/accuracy_sign": outcomes((sign * reward).flatten().detach(), 0.0)}
    return PreferenceLoss(loss, -safer.detach(), -worse.detach(), diagnostics=diagnostics)


def _given(value: T | None, option: str, what: str) -> T:
    if value is None:
        raise ValueError(f"method.loss.{option} is above 0, but the batch has no {what}")
    return value


def _correlation(one: Float[Tensor, " n"], other: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Pearson's correlation; 0 where one of them is constant."""
    one, other = one - one.mean(), other - other.mean()
    return (one * other).sum() / (one.square().sum() * other.square().sum()).clamp(min=1e-12).sqrt()


def _held(
    values: Ragged, length: Int[Tensor, " pairs"], position: Int[Tensor, " longest"]
) -> Float[Tensor, "pairs longest"]:
    """One row a response, its last value repeated up to the longest response."""
    start = length.cumsum(0) - length
    return values.token[start[:, None] + torch.minimum(position, length[:, None] - 1)]
