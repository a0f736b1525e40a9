"""Ratings that no longer follow the rating of verbosity."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

#: Shares of the verbosity rating that are tried, in this order.
SHARES = (0.0, 0.01, 0.025, *(step / 40 for step in range(2, 7)), *(step / 20 for step in range(4, 20)))


def ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Rank of each number from 0, equal ones sharing the mean of their ranks."""
    _, index, counts = torch.unique(values, sorted=True, return_inverse=True, return_counts=True)
    shared: Tensor = torch.cumsum(counts, 0).double() - (counts.double() + 1) / 2
    return shared[index]


def spearman(first: Float[Tensor, " n"], second: Float[Tensor, " n"]) -> float:
    """Rank correlation in [-1, 1]; 0 when one of them is constant."""
    a, b = (r - r.mean() for r in (ranks(first), ranks(second)))
    scale = a.norm() * b.norm()
    return float(a @ b / scale) if scale > 0 else 0.0


def verbosity_penalties(
    ratings: Float[Tensor, "n attributes"], verbosity: int, *, bound: float = 0.03
) -> Float[Tensor, " attributes"]:
    r"""Smallest share of the verbosity rating to subtract from each rating so that it no longer follows that one.

    .. math:: \lambda_k = \min\{\lambda \in \Lambda : \mathrm{Spearman}(r_k - \lambda r_v, r_v) \le b\}

    and 1 where no :math:`\lambda` of the grid :math:`\Lambda` does, as for the verbosity rating itself, of which
    nothing remains.

    Source: "Interpretable Preferences via Multi-Objective Reward Modeling and Mixture-of-Experts", arXiv:2406.12845
    (ArmoRM); the grid ``SHARES`` and b = 0.03 from the authors' code (RLHFlow/RLHF-Reward-Modeling).

    Args:
        ratings: of n responses by every attribute.
        verbosity: index of the rating that stands for verbosity.
        bound: b.

    Returns:
        One penalty an attribute; 0 where nothing has to be taken off.

    Raises:
        ValueError: the rating that stands for verbosity is the same for all responses.
    """
    nuisance = ratings[:, verbosity]
    if bool((nuisance == nuisance[0]).all()):
        raise ValueError(
            f"rating {verbosity} cannot stand for verbosity: it is the same for all {len(nuisance)} responses"
        )
    penalties = torch.ones(ratings.shape[1], dtype=torch.float32)
    for attribute in range(ratings.shape[1]):
        if attribute != verbosity:
            rating = ratings[:, attribute]
            enough = (share for share in SHARES if spearman(rating - share * nuisance, nuisance) <= bound)
            penalties[attribute] = next(enough, 1.0)
    return penalties
