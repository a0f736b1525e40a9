"""Where products of float32 tensors may run on bfloat16 units."""

from __future__ import annotations

import pytest
import torch

from rlhf_lightning.ops.precision import exact_products


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_only_bfloat16_values_are_multiplied_on_its_units_and_only_meanwhile(dtype: torch.dtype) -> None:
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    meanwhile = []

    def fail() -> None:
        with exact_products(dtype):
            meanwhile.append(matmul.fp32_precision)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert before != "bf16"
    assert meanwhile == ["bf16" if dtype == torch.bfloat16 else before]
    assert matmul.fp32_precision == before
