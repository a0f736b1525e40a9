"""Ratings that no longer follow a response's length."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

#: Steps of the bisection; the penalty is then exact to 2**-30 of its range.
_STEPS = 30
#: Penalties above it were never needed and would drown the rating.
_LARGEST = 16.0


def ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Rank of each number from 0, equal ones sharing the mean of their places."""
    _, place, counts = torch.unique(values, sorted=True, return_inverse=True, return_counts=True)
    shared: Tensor = torch.cumsum(counts, 0).double() - (counts.double() + 1) / 2
    return shared[place]


def spearman(first: Float[Tensor, " n"], second: Float[Tensor, " n"]) -> float:
    """Rank correlation in [-1, 1]; 0 when one of them is constant."""
    a, b = (r - r.mean() for r in (ranks(first), ranks(second)))
    scale = a.norm() * b.norm()
    return float(a @ b / scale) if scale > 0 else 0.0


def length_penalties(
    ratings: Float[Tensor, "n attributes"], verbosity: int, lengths: Float[Tensor, " n"], *, bound: float = 0.03
) -> Float[Tensor, " attributes"]:
    r"""The least share of the verbosity rating to take off each rating until it no longer follows the length.

    .. math:: \lambda_k = \min\{\lambda \ge 0 : |\mathrm{Spearman}(r_k - \lambda r_v, \text{length})| \le b\}

    Source: ArmoRM, arXiv:2406.12845, with b = 0.03 from the authors' code. The correlation falls as the
    penalty grows, since the verbosity rating itself follows the length, so bisection finds it.

    Args:
        ratings: of n responses by every attribute.
        verbosity: index of the rating that stands for verbosity.
        lengths: of the responses, in tokens.
        bound: b.

    Returns:
        One penalty an attribute; 0 where nothing has to be taken off, and for verbosity itself.

    Raises:
        ValueError: the rating that stands for verbosity does not grow with the length.
    """
    penalties = torch.zeros(ratings.shape[1], dtype=torch.float32)
    nuisance = ratings[:, verbosity]
    if (found := spearman(nuisance, lengths)) <= bound:
        raise ValueError(
            f"rating {verbosity} cannot stand for verbosity: its rank correlation with the length is {found:.2f}"
        )
    for attribute in range(ratings.shape[1]):
        if attribute == verbosity or spearman(ratings[:, attribute], lengths) <= bound:
            continue
        low, high = 0.0, _LARGEST
        for _ in range(_STEPS):
            middle = (low + high) / 2
            if spearman(ratings[:, attribute] - middle * nuisance, lengths) > bound:
                low = middle
            else:
                high = middle
        penalties[attribute] = high
    return penalties
