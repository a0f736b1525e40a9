"""Losses on hidden states: what a model makes of the same instruction in other words.

Every loss raises ValueError when an option is outside its range. Notation: ``losses/terms.py``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.losses.options import NonNegative, Positive, compares_groups, loss_function
from rlhf_lightning.losses.terms import negative_log_likelihood
from rlhf_lightning.types import MeasuredLoss, Paraphrases


@compares_groups(
    "contrasts an instruction with all others of its micro-batch",
    option="in_batch",
    instead="method.loss.in_batch=false",
)
@loss_function
def coin(
    policy: Paraphrases,
    embedding: Float[Tensor, "responses d"],
    present: Bool[Tensor, " responses"],
    *,
    weight: NonNegative = 1000.0,
    temperature: Positive = 0.05,
    in_batch: bool = True,
) -> MeasuredLoss:
    r"""Contrastive instruction tuning: instructions that mean the same get close hidden states, others distant ones.

    .. math::
        L_\mathrm{gen} + L_c\,\min\big(\lambda, \mathrm{sg}(L_\mathrm{gen} / L_c)\big), \qquad
        L_c = -\frac{1}{2n}\sum_i \log\frac{e^{S_{ii}}}{\sum_j e^{S_{ij}}} + \log\frac{e^{S_{ii}}}{\sum_j e^{S_{ji}}},
        \quad S_{ij} = \frac{\cos(z_i, z'_j)}{\tau}

    :math:`L_\mathrm{gen}` is the likelihood loss of the responses behind the original wording plus that behind the
    paraphrase, each a token mean; :math:`z_i` and :math:`z'_i` are the hidden states of instruction i in both wordings.
    The hard negative of an instruction stands in its group and is an instruction of its own: it has a response, a
    paraphrase and a term of both sums. The contrastive part is worth at most what the likelihood is (sg: a constant for
    the gradient), so its weight sets a bound and, almost always, not a size.

    Source: "Contrastive Instruction Tuning", arXiv:2402.11138.
    Defaults: weight 1000 and temperature 0.05, of the authors' code (luka-group/CoIN).
    Differences: the authors' code runs micro-batches of one instruction and its hard negative, in the order of the
    file: that is ``in_batch=false`` here, with any batch and any order and a bound for each group. By default
    all other instructions of the step are negatives too, as in the paper, and a run that cuts a step is refused. TRL
    1.16 has no such loss.

    Args:
        policy: log-probs of the policy.
        embedding: pooled hidden state of each response (original, paraphrase, negative, its paraphrase; and so on).
        present: whether each of these slots is filled.
        weight: lambda, the contrastive part's weight below its bound.
        temperature: tau, divides cosines.
        in_batch: whether instructions of other groups are negatives; else the hard negative alone.

    Returns:
        One loss a group. Diagnostics: ``nll/original`` and ``nll/paraphrase``, ``contrastive/raw`` and
        ``contrastive/scaled``, ``cosine/positive``, ``cosine/hard_negative`` and their difference ``cosine/gap``.

    Raises:
        ValueError: an option is outside its range.
    """
    original, paraphrase = (_by_group(negative_log_likelihood(half)) for half in (policy.original, policy.paraphrase))
    generation = original + paraphrase
    unit = F.normalize(embedding.float() if embedding.dtype != torch.float64 else embedding, dim=-1)
    cosine = unit[0::2] @ unit[1::2].T
    contrastive = _contrastive(cosine / temperature, present[0::2], in_batch)
    scaled = contrastive * _bound(generation.detach(), contrastive.detach(), in_batch).clamp(max=weight)
    return MeasuredLoss(
        generation + scaled,
        {
            "nll/original": original.detach(),
            "nll/paraphrase": paraphrase.detach(),
            "contrastive/raw": contrastive.detach(),
            "contrastive/scaled": scaled.detach(),
            **_cosines(cosine.detach(), present[0::2]),
        },
    )


def _bound(generation: Tensor, contrastive: Tensor, in_batch: bool) -> Tensor:
    """Factor that makes the contrastive part as large as the likelihood part: one for all groups, or one for each."""
    if in_batch:
        generation, contrastive = generation.mean(), contrastive.mean()
    return generation / contrastive.clamp(min=torch.finfo(contrastive.dtype).tiny)


def _by_group(responses: Tensor) -> Tensor:
    """Mean over an instruction and its hard negative: entries 2g and 2g + 1."""
    return responses.view(-1, 2).mean(1)


def _contrastive(similarity: Tensor, present: Tensor, in_batch: bool) -> Tensor:
    """Symmetric cross-entropy of each group: with ``in_batch`` the mean over groups is that over all instructions."""
    group = torch.arange(len(present), device=present.device) // 2
    allowed = present[:, None] & present[None]
    if not in_batch:
        allowed &= group[:, None] == group[None]
    masked = similarity.masked_fill(~allowed, torch.finfo(similarity.dtype).min)
    rows, columns = masked.log_softmax(1).diagonal(), masked.log_softmax(0).diagonal()
    each = (-(rows + columns) / 2).where(present, torch.zeros_like(rows))
    count = present.view(-1, 2).sum(1)
    instructions = count.float().mean() if in_batch else count
    return each.view(-1, 2).sum(1) / instructions.clamp(min=1)


def _cosines(cosine: Tensor, present: Tensor) -> dict[str, Tensor]:
    both = present.view(-1, 2).all(1).repeat_interleave(2)
    other = torch.arange(len(present), device=present.device) ^ 1  # the hard negative of 2g is 2g + 1, and back
    positive, negative = cosine.diagonal(), cosine.gather(1, other[:, None]).squeeze(1)
    return {
        "cosine/positive": positive[present],
        "cosine/hard_negative": negative[both],
        "cosine/gap": (positive - negative)[both],
    }
