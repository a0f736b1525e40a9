"""Ragged numbers of very long responses: differences of two models."""

from __future__ import annotations

import pytest
import torch

from rlhf_lightning.types import Ragged

LONG = 32_768


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_ratios_of_long_responses(dtype: torch.dtype) -> None:
    """60,000 nats of either model, 300 apart; each sum by itself is rounded to 0.004 nats."""
    generator = torch.Generator().manual_seed(0)
    sequence = torch.arange(2).repeat_interleave(LONG)
    reference = (-4 * torch.rand(2 * LONG, generator=generator)).to(dtype)
    policy = (reference + 0.02 * torch.rand(2 * LONG, generator=generator)).to(dtype)
    exact = (policy.double() - reference.double()).view(2, LONG)
    ratio = Ragged(policy, sequence, 2).log_ratio(Ragged(reference, sequence, 2))
    assert ratio.token.dtype == torch.float32
    torch.testing.assert_close(ratio.sum().double(), exact.sum(1), atol=1e-3, rtol=0)
    torch.testing.assert_close(ratio.mean().double() * LONG, exact.sum(1), atol=1e-3, rtol=0)
