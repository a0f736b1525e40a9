"""Agreement of a reward with preferences, and with properties that it should not depend on."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.ops.comparisons import outcomes

#: Bins of the calibration error, as in "On Calibration of Modern Neural Networks", arXiv:1706.04599.
BINS = 15


def preference_statistics(chosen: Tensor, rejected: Tensor) -> dict[str, float]:
    """Agreement of rewards with pairs.

    Args:
        chosen: reward of the preferred response of each pair.
        rejected: of the other one.

    Returns:
        ``accuracy`` (ties count half), ``ties`` (share), ``margin`` (mean), ``margin_std``, ``log_loss`` (nats, of
        sigma(margin)) and ``calibration_error``: the expected difference between confidence, the larger of sigma and
        1 - sigma, and accuracy.
    """
    margin = (chosen - rejected).double()
    probability, right = margin.sigmoid(), outcomes(chosen, rejected).double()
    return {
        "accuracy": float(right.mean()),
        "ties": float((margin == 0).double().mean()),
        "margin": float(margin.mean()),
        "margin_std": float(margin.std(correction=0)),
        "log_loss": float(-torch.nn.functional.logsigmoid(margin).mean()),
        "calibration_error": calibration_error(torch.maximum(probability, 1 - probability), right),
    }


def calibration_error(confidence: Tensor, right: Tensor, bins: int = BINS) -> float:
    """Expected calibration error over bins of equal width: mean of |confidence - accuracy|, weighted by bin size.

    Args:
        confidence: in [0, 1].
        right: 1, 0, or 1/2 for a tie.
        bins: in [0, 1]; each holds its lower edge, the last one also 1.
    """
    edges = torch.linspace(0, 1, bins + 1)
    bin_index = (torch.bucketize(confidence.float().cpu(), edges, right=True) - 1).clamp(max=bins - 1)
    excess = torch.bincount(bin_index, weights=(confidence - right).double().cpu(), minlength=bins)
    return float(excess.abs().sum() / len(confidence))


def length_statistics(reward: Tensor, length: Tensor) -> dict[str, float]:
    """Correlation of rewards with lengths in tokens: ``length_pearson`` and ``length_spearman``; nan for constants."""
    from torchmetrics.functional.regression import spearman_corrcoef

    if len(reward) < 2 or reward.std() == 0 or length.float().std() == 0:
        return {"length_pearson": float("nan"), "length_spearman": float("nan")}
    pearson = torch.corrcoef(torch.stack([reward.double(), length.double()]))[0, 1]
    return {
        "length_pearson": float(pearson),
        "length_spearman": float(spearman_corrcoef(reward.float(), length.float())),
    }


def reward_statistics(reward: Tensor) -> dict[str, float]:
    """``mean``, ``std``, ``min`` and ``max`` of the rewards of all responses."""
    values = reward.double()
    spread = float(values.std(correction=0))
    return {"mean": float(values.mean()), "std": spread, "min": float(values.min()), "max": float(values.max())}
