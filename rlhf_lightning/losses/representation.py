r"""Losses on hidden states, and on a response behind two opposite instructions: RAHF and its relatives.

:math:`H_l` is the state of a response token after block l, y a response, x its prompt, P and N opposite instructions
("respond as a helpful assistant would ...", "respond as a careless one would ..."). :math:`s^m` and :math:`s^o` are the
mean log-probs of a response behind the instruction that it obeys (its *match*) and behind the opposite one. Every loss
raises ValueError when an option is outside its range.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.losses.options import FlipRate, Real, loss_function
from rlhf_lightning.losses.terms import Reduction, logistic, negative_log_likelihood
from rlhf_lightning.ops.comparisons import outcomes
from rlhf_lightning.types import LayerStates, MeasuredLoss, Ragged


@loss_function
def representation_fit(
    states: LayerStates, base: LayerStates, positive: LayerStates, negative: LayerStates, *, alpha: Real = 5.0
) -> MeasuredLoss:
    r"""RAHF, second step: bring hidden states to where a direction of preference would move them.

    .. math:: \frac{1}{|L|\,N}\sum_{l, t} \big\lVert H_{l,t} - \mathrm{sg}\big(H^{base}_{l,t}
              + \alpha\,(H^{+}_{l,t} - H^{-}_{l,t})\big)\big\rVert_2

    N counts the response tokens of the optimiser step, L are the layers that are read. The norm is not squared, so the
    gradient at a token has length 1 whatever the distance: the learning rate alone sets the size of a step. At distance
    0 the gradient is 0; with alpha = 0 a model that starts as its base stays it, bit for bit.

    What base, positive and negative are is the method's choice: one model under opposite instructions (RAHF-SCIT,
    RepE's LoRRA), or a model trained on good responses and one trained on bad ones (RAHF-Dual).

    Source: "Aligning Large Language Models with Human Preferences through Representation Engineering",
    arXiv:2312.15997; the same loss is LoRRA of "Representation Engineering: A Top-Down Approach to AI Transparency",
    arXiv:2310.01405.
    Defaults: alpha 5, that of both authors' codes.
    Differences: the authors of RAHF average over padded positions too, whose distance they set to 0, so that their loss
    depends on how a batch is padded; here only response tokens count. Their code has places for principal components
    and for a KL to the base, which are switched off. TRL 1.16 has no such loss.

    Args:
        states: of the model that is trained.
        base: of the model before training, at the same tokens and layers.
        positive: of the same tokens where the response is wanted.
        negative: of the same tokens where it is not.
        alpha: how far along the difference the states are moved.

    Returns:
        One loss a response; diagnostics of each layer, one number a token: ``fit/<layer>`` (the distance left),
        ``shift/<layer>`` (length of the difference) and ``cosine/<layer>`` (of how far the states have moved with the
        difference).

    Raises:
        ValueError: alpha is not finite.
    """
    distance: Float[Tensor, " state_tokens"] | None = None
    diagnostics: dict[str, Tensor] = {}
    for layer, trained, start, plus, minus in zip(
        states.layers, states.states, base.states, positive.states, negative.states, strict=True
    ):
        start, shift = start.detach().float(), plus.detach().float() - minus.detach().float()
        moved = trained.float() - start
        left = torch.linalg.vector_norm(moved - alpha * shift, dim=-1)
        distance = left if distance is None else distance + left
        diagnostics |= {
            f"fit/{layer}": left.detach(),
            f"shift/{layer}": torch.linalg.vector_norm(shift, dim=-1),
            f"cosine/{layer}": F.cosine_similarity(moved.detach(), shift, dim=-1),
        }
    assert distance is not None, "LayerStates without a layer"
    tokens = states.ragged(distance / len(states.layers))
    return MeasuredLoss(tokens.sum() / tokens.step_length, diagnostics)


@loss_function
def contrastive_instruction(
    match: Ragged, opposite: Ragged, *, label_smoothing: FlipRate = 0.2, reduction: Reduction = "token_mean"
) -> MeasuredLoss:
    r"""RAHF-SCIT, first step: one model that responds well under one instruction and badly under its opposite.

    .. math:: -\log\pi(y\,|\,match) - (1 - \epsilon)\log\sigma(D) - \epsilon\log\sigma(-D), \qquad D = s^m - s^o

    The likelihood is averaged over tokens. The contrast is smallest at :math:`\sigma(D) = 1 - \epsilon`: it does not
    push the two contexts apart without end.

    Source: "Aligning Large Language Models with Human Preferences through Representation Engineering",
    arXiv:2312.15997, section 3.1; the form follows "The Wisdom of Hindsight Makes Language Models Better Instruction
    Followers", arXiv:2302.05206 (HIR).
    Defaults: label smoothing 0.2, of the authors' code.
    Differences: the authors' code takes the contrast's probabilities from logits that are not shifted by one token, and
    at the positions of the matching row in the opposite one; here both are log-probs of the response's own tokens. TRL
    1.16 has no such loss.

    Args:
        match: log-probs of the policy behind the instruction that the response obeys.
        opposite: of the same tokens, behind the opposite instruction.
        label_smoothing: epsilon, in [0, 0.5).
        reduction: how tokens of the likelihood are added up.

    Returns:
        One loss a response; diagnostics ``nll``, ``instruction/margin`` (D) and ``instruction/accuracy`` (whether D is
        above 0; a tie counts one half).

    Raises:
        ValueError: an option is outside its range.
    """
    margin = match.mean() - opposite.mean()
    nll = negative_log_likelihood(match, reduction)
    diagnostics = {"nll": nll, "instruction/margin": margin, "instruction/accuracy": outcomes(margin, 0.0)}
    return MeasuredLoss(
        nll + logistic(margin, label_smoothing), {name: value.detach() for name, value in diagnostics.items()}
    )
