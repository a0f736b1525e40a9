"""Capabilities of the processor."""

from __future__ import annotations

from typing import Any

#: Flags of x86 processors with instructions for bfloat16.
_BF16 = ("avx512_bf16", "amx_bf16", "avx10_2")


def emulates_bf16() -> bool:
    """Check whether the processor lacks instructions for bfloat16, so that it is several times slower than float32.

    False where torch cannot say, and of other architectures than x86.
    """
    import torch

    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return capabilities.get("architecture") == "x86_64" and not any(capabilities.get(flag) for flag in _BF16)
