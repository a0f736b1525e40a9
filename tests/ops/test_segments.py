"""Sums over segments: against float64, over many tokens, and as devices without float64 take them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlhf_lightning.ops import segments
from rlhf_lightning.ops.segments import segment_mean, segment_sum

LONG = 32_768


@pytest.fixture(params=["float64", "blocks"])
def device_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Kind of device that the tests pretend to run on."""
    if request.param == "blocks":
        monkeypatch.setattr(segments, "_WITHOUT_FLOAT64", frozenset({"cpu"}))
    return str(request.param)


def drawn(seed: int, responses: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Small log-ratios of one sign and the response of each, the lengths very unequal."""
    length = torch.tensor([LONG, 7, LONG // 2][:responses])
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(int(length.sum()), generator=generator) * 0.02
    return values.to(dtype), torch.repeat_interleave(torch.arange(responses), length)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_sums(device_kind: str, dtype: torch.dtype) -> None:
    values, segment = drawn(0, dtype=dtype)
    exact = torch.stack([values[segment == i].double().sum() for i in range(3)])
    sums = segment_sum(values, segment, 3)
    assert sums.dtype == torch.float32
    # 300 nats are resolved to 3e-5. Token by token in float32 the first would be 2e-3 off.
    torch.testing.assert_close(sums.double(), exact, atol=6e-5, rtol=0)
    mean = segment_mean(values, segment, 3)
    torch.testing.assert_close(mean.double(), exact / torch.tensor([LONG, 7, LONG // 2]), atol=0, rtol=3e-7)


def test_segments_in_any_order_and_empty_ones(device_kind: str) -> None:
    values, segment = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), torch.tensor([3, 0, 3, 1, 0])
    assert segment_sum(values, segment, 5).tolist() == [18.0, 8.0, 0.0, 5.0, 0.0]
    assert segment_mean(values, segment, 5).tolist() == [9.0, 8.0, 0.0, 2.5, 0.0]
    assert segment_sum(values[:0], segment[:0], 2).tolist() == [0.0, 0.0]
    assert segment_mean(values[:0], segment[:0], 0).tolist() == []


def test_every_value_gets_its_segments_gradient(device_kind: str) -> None:
    values, segment = drawn(1)
    values.requires_grad_()
    up = torch.tensor([2.0, -3.0, 0.5])
    (gradient,) = torch.autograd.grad((up * segment_sum(values, segment, 3)).sum(), values)
    assert torch.equal(gradient, up[segment])
    (gradient,) = torch.autograd.grad((up * segment_mean(values, segment, 3)).sum(), values)
    torch.testing.assert_close(gradient, (up / torch.tensor([LONG, 7.0, LONG // 2]))[segment])


def test_double_stays_double() -> None:
    values, segment = drawn(2, dtype=torch.float64)
    assert segment_sum(values, segment, 3).dtype == segment_mean(values, segment, 3).dtype == torch.float64
    exact = torch.stack([values[segment == i].sum() for i in range(3)])
    torch.testing.assert_close(segment_sum(values, segment, 3), exact, atol=0, rtol=1e-11)
