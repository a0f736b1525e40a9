"""Importance weights at their bounds; what the corrections do with them is in tests/methods/test_mismatch.py."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lightning.ops.engine_correction import engine_log_ratio, masked, truncated


def test_weights_are_held_within_20_nats() -> None:
    weights = truncated(torch.tensor([30.0, -30.0]), 0.0, math.inf)
    assert weights.tolist() == pytest.approx([math.exp(20), math.exp(-20)], rel=1e-5)


def test_a_weight_at_a_bound_is_kept() -> None:
    assert masked(torch.zeros(1), 1.0, 1.0).tolist() == [1.0]


def test_the_log_ratio_is_a_constant() -> None:
    old, rollout = torch.zeros(2, requires_grad=True), torch.ones(2, requires_grad=True)
    assert not engine_log_ratio(old, rollout).requires_grad
