r"""Losses that compare whole distributions: a student's and a teacher's, at every scored token.

:math:`p` is the teacher's and :math:`q` the student's distribution over the vocabulary at a token, N the scored tokens
of the optimiser step. The teacher never gets gradients. Divergences are computed from hidden states, a block of the
vocabulary at a time (``ops/divergence.py``). Every loss raises ValueError when an option is outside its range.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.losses.options import OpenShare, Positive, WholeNumber, loss_function
from rlhf_lightning.losses.terms import Reduction, negative_log_likelihood
from rlhf_lightning.ops.divergence import Divergence
from rlhf_lightning.ops.divergence import divergence as divergence_of
from rlhf_lightning.ops.remainder import log_probs_at, remainder_kl, top_k
from rlhf_lightning.types import MeasuredLoss, SequencePredictions


@loss_function
def context_distillation(
    policy: SequencePredictions,
    reference: SequencePredictions,
    *,
    classes: WholeNumber = 0,
    reduction: Reduction = "token_mean",
) -> MeasuredLoss:
    r"""Context distillation: predict without a context C what the start model predicts behind it.

    .. math::
        \frac{1}{N}\sum_t \mathrm{KL}\big(p_0(\cdot\,|\,C, x, y_{<t}) \,\big\|\, \pi_\theta(\cdot\,|\,x, y_{<t})\big)

    With ``classes`` k > 0 both sides are reduced to the teacher's k most likely tokens and one class for all others.

    Source: "A General Language Assistant as a Laboratory for Alignment", arXiv:2112.00861, section 2.3.
    Defaults: the full divergence. The paper keeps the teacher's top k log-probs; k = 50 is what is usually cited, and
    we could not trace it.
    Differences: the paper distils texts as a whole, here the scored tokens are the response's. The remainder's
    probability is bounded below by 1e-8. TRL 1.16 has no such loss.

    Args:
        policy: predictions of the policy on the row without the context.
        reference: predictions of the start model behind the context, at the same tokens.
        classes: the teacher's most likely tokens that are told apart; 0: all of the vocabulary.
        reduction: how tokens are added up.

    Returns:
        One loss a row; nats a token as diagnostic ``divergence``.

    Raises:
        ValueError: an option is outside its range.
    """
    if not classes:
        return _reduced(policy, divergence_of(policy.tokens, reference.tokens), reduction)
    kept = top_k(reference.tokens, classes)
    return _reduced(policy, remainder_kl(kept.log_prob, log_probs_at(policy.tokens, kept.token)), reduction)


@loss_function
def knowledge_distillation(
    policy: SequencePredictions,
    reference: SequencePredictions,
    *,
    divergence: Divergence = "forward_kl",
    mixture: OpenShare = 0.5,
    temperature: Positive = 1.0,
    reduction: Reduction = "token_mean",
) -> MeasuredLoss:
    r"""Knowledge distillation: match another model of the same vocabulary, token by token, on given responses.

    .. math:: \frac{T^2}{N}\sum_t D(p_t, q_t), \qquad p_t, q_t = \mathrm{softmax}(\text{logits}_t / T)

    D is KL(p || q) (``forward_kl``: cover all that the teacher does), KL(q || p) (``reverse_kl``: keep to what the
    teacher is sure of) or the generalised Jensen-Shannon divergence beta KL(p || m) + (1 - beta) KL(q || m) with
    m = beta p + (1 - beta) q (``jsd``).

    Source: "Distilling the Knowledge in a Neural Network", arXiv:1503.02531 (temperature); "On-Policy Distillation of
    Language Models: Learning from Self-Generated Mistakes", arXiv:2306.13649 (divergences, GKD).
    Defaults: the forward KL at temperature 1, which is the soft-label cross-entropy up to the teacher's entropy;
    mixture 0.5.
    Differences: the GKD trainer of TRL, which no test compares with, does not multiply by the squared temperature,
    takes the limits of beta for the two KLs, and has the temperature 0.9. Its responses may be the student's own; here
    they are the data's.

    Args:
        policy: predictions of the student.
        reference: predictions of the teacher at the same tokens.
        divergence: ``forward_kl``, ``reverse_kl`` or ``jsd``.
        mixture: beta, the teacher's weight in the mixture of ``jsd``.
        temperature: divides both models' logits; the squared temperature keeps the gradient's scale.
        reduction: how tokens are added up.

    Returns:
        One loss a response; nats a token (at that temperature, not multiplied) as diagnostic ``divergence``.

    Raises:
        ValueError: an option is outside its range.
    """
    student, teacher = policy.tokens.at_temperature(temperature), reference.tokens.at_temperature(temperature)
    return _reduced(policy, divergence_of(student, teacher, divergence, mixture=mixture), reduction, temperature**2)


def _reduced(
    policy: SequencePredictions, token: Float[Tensor, " response_tokens"], reduction: Reduction, scale: float = 1.0
) -> MeasuredLoss:
    loss = negative_log_likelihood(policy.ragged(-scale * token), reduction)
    return MeasuredLoss(loss, {"divergence": token.detach()})
