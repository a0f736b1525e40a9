r"""Drawing the next token: inverse CDF over the vocabulary, and the log-prob of what was drawn.

One pass makes :math:`w_v = e^{(z_v - \max z)/T}`; sums over blocks of it give both the normaliser of the log-probs and
the block that the uniform number falls into, and only that block is summed up token by token, in float64. So a token's
chance is its weight to about 1e-7, and the vocabulary is not sorted or summed up cumulatively.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

#: Tokens of a block: near the square root of usual vocabularies.
_BLOCK = 256
#: Just below 1 in float64.
_BELOW_ONE = 1 - 2.0**-52


def draw(
    logits: Float[Tensor, "rows vocabulary"],
    uniform: Float64[Tensor, " rows"],
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    forbidden: Int[Tensor, " tokens"] | None = None,
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """The next token of each row and its log-prob.

    Args:
        logits: of the next token, in any floating dtype; overwritten when they are float32.
        uniform: one number in [0, 1) a row.
        temperature: divides the logits; 0 takes the most likely token, with its log-prob at temperature 1.
        top_p: draw from the smallest set of tokens whose probability reaches this, after ``top_k``.
        top_k: draw from this many of the most likely tokens (ties with the last stay); 0: all.
        forbidden: tokens that are not drawn; the log-probs are of the distribution with them all the same.

    Returns:
        Token ids, and log-probs under ``softmax(logits / temperature)`` before anything was left out, in float32.
    """
    scaled = logits.float()
    if temperature not in (0.0, 1.0):
        scaled = scaled.div_(temperature)
    allowed = scaled if forbidden is None else scaled.index_fill(1, forbidden, -torch.inf)
    if temperature == 0.0:
        ids = allowed.argmax(-1)
        chosen = scaled.gather(1, ids[:, None])[:, 0]
        return ids, chosen - scaled.logsumexp(-1)
    if forbidden is not None:
        drawable = _weights(allowed)
        normaliser = scaled.logsumexp(-1)
        ids = _inverse_cdf(*_restricted(drawable, _block_sums(drawable), top_p, top_k), uniform)
        return ids, scaled.gather(1, ids[:, None])[:, 0] - normaliser
    weights = _weights(scaled)  # in place of the logits
    sums = _block_sums(weights)
    total = sums.double().sum(-1)
    ids = _inverse_cdf(*_restricted(weights, sums, top_p, top_k), uniform)
    return ids, (weights.gather(1, ids[:, None])[:, 0].double().log() - total.log()).float()


def _weights(logits: Tensor) -> Tensor:
    """Probabilities up to a factor, in place: the largest is 1."""
    return logits.sub_(logits.amax(-1, keepdim=True)).exp_()


def _block_sums(weights: Tensor) -> Tensor:
    """Sums over blocks of the vocabulary, ``[rows, blocks]``; the last block may be shorter."""
    rows, vocabulary = weights.shape
    whole = vocabulary - vocabulary % _BLOCK
    sums = weights[:, :whole].reshape(rows, -1, _BLOCK).sum(-1)
    if whole == vocabulary:
        return sums
    return torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], dim=1)


def _restricted(weights: Tensor, sums: Tensor, top_p: float, top_k: int) -> tuple[Tensor, Tensor]:
    """Weights with 0 for the tokens that top-k and then top-p leave out, and their block sums; changed in place."""
    vocabulary = weights.shape[-1]
    if not 0 < top_k < vocabulary and top_p == 1.0:
        return weights, sums
    if 0 < top_k < vocabulary:
        least = weights.topk(top_k, dim=-1).values[:, -1:]
        weights.masked_fill_(weights < least, 0.0)
    if top_p < 1.0:
        ordered, order = weights.sort(dim=-1, descending=True, stable=True)
        reached = ordered.double().cumsum(-1)
        outside = (reached - ordered) >= top_p * reached[:, -1:]
        weights.masked_fill_(torch.zeros_like(outside).scatter_(1, order, outside), 0.0)
    return weights, _block_sums(weights)


def _inverse_cdf(weights: Tensor, sums: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the cumulative weight passes ``uniform`` times the total."""
    uniform = uniform.to(weights.device)
    block, rest = _passed(sums.double(), uniform)
    index = block[:, None] * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    outside = index >= weights.shape[-1]
    tokens = weights.gather(1, index.clamp_max(weights.shape[-1] - 1)).double().masked_fill_(outside, 0.0)
    token, _ = _passed(tokens, rest)
    return block * _BLOCK + token


def _passed(weights: Tensor, fraction: Tensor) -> tuple[Tensor, Tensor]:
    """Index at which the cumulative weight passes a fraction of the total, and how far into that weight, in [0, 1)."""
    reached = weights.cumsum(-1)
    total = reached[:, -1:]
    # Below the total, so that the weight at the index is positive whatever was rounded.
    aim = (fraction[:, None] * total).minimum(total * _BELOW_ONE)
    index = (reached <= aim).sum(-1)
    weight = weights.gather(1, index[:, None])
    before = reached.gather(1, index[:, None]) - weight
    return index, ((aim - before) / weight).clamp(0.0, _BELOW_ONE)[:, 0]
