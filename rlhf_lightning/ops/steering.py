r"""Steering vectors: directions in hidden space, and how a state is moved along one.

Sources: "Representation Engineering: A Top-Down Approach to AI Transparency", arXiv:2310.01405 (reading and control);
"Steering Llama 2 via Contrastive Activation Addition", arXiv:2312.06681 (``mean_diff``); "Refusal in Language Models Is
Mediated by a Single Direction", arXiv:2406.11717 (``project_out``).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

Direction = Literal["mean_diff", "pca", "random"]
Operator = Literal["linear", "piecewise", "project_out"]
OPERATORS: tuple[str, ...] = get_args(Operator)


def direction(
    differences: Float[Tensor, "examples width"], kind: Direction = "mean_diff", *, seed: int = 0
) -> Float[Tensor, " width"]:
    r"""The direction from negative to positive states of a layer.

    Args:
        differences: positive less negative state of each example.
        kind: ``mean_diff``, their mean; ``pca``, their first principal component, turned to where the positive states
            are; ``random``, the control. All have the length of the mean difference, so that coefficients compare.
        seed: of the random direction.

    Raises:
        ValueError: ``pca`` of fewer than two examples.
    """
    mean = differences.double().mean(0)
    if kind == "mean_diff":
        return mean.float()
    if kind == "random":
        drawn = torch.randn(len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    else:
        if len(differences) < 2:
            raise ValueError("direction=pca needs at least two examples")
        drawn = torch.linalg.svd(differences.double() - mean, full_matrices=False).Vh[0]
        drawn = torch.where(drawn @ mean < 0, -drawn, drawn)
    scale: Tensor = torch.linalg.vector_norm(mean) / torch.linalg.vector_norm(drawn)
    return (scale * drawn).float()


def steered(
    state: Float[Tensor, "*shape width"],
    vector: Float[Tensor, " width"],
    operator: Operator = "linear",
    coefficient: float = 1.0,
    *,
    rescale: bool = False,
) -> Float[Tensor, "*shape width"]:
    r"""States moved along a direction v.

    .. math:: h + c\,v, \qquad h + c\,\mathrm{sign}(h \cdot v)\,v, \qquad h - c\,\frac{h \cdot v}{\lVert v\rVert^2}\,v

    Args:
        state: h.
        vector: v.
        operator: ``linear``, ``piecewise`` or ``project_out``, which with coefficient 1 removes the direction.
        coefficient: c.
        rescale: give the moved state the length that it had.
    """
    vector = vector.to(state.dtype)
    if operator == "linear":
        moved = state + coefficient * vector
    else:
        along = state @ vector
        share = along.sign() if operator == "piecewise" else -along / (vector @ vector)
        moved = state + coefficient * share[..., None] * vector
    if not rescale:
        return moved
    length = torch.linalg.vector_norm(moved, dim=-1, keepdim=True).clamp(min=torch.finfo(state.dtype).tiny)
    scale: Tensor = torch.linalg.vector_norm(state, dim=-1, keepdim=True) / length
    return scale * moved
