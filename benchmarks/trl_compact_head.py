"""TRL's head on a CPU as it is on a GPU ("TRL*"): scored positions only, gradient products in the autocast dtype.

TRL 1.16 takes this path only where Triton runs. Elsewhere it scores every position, padding and prompts included, and
computes the gradients of its products in float32. The values are the same, and the comparison asserts it; only the time
differs. Two names are replaced in TRL's own environment, nothing else of it is touched.
"""

from __future__ import annotations

import torch
import trl.kernels.chunked_logprob as kernels
import trl.trainer.utils as utils
from torch import Tensor


def install() -> None:
    """Let every fused head of this process take the compact path.

    Raises:
        AttributeError: this TRL has no such head; the comparison was written against 1.16.
    """
    for module, name in ((utils, "_use_triton"), (kernels, "_addmm_fp32")):
        getattr(module, name)
    utils._use_triton = _everywhere
    kernels._addmm_fp32 = _add_product


def _everywhere(device: torch.device) -> bool:
    """Choose the compact path on every device; the kernels ask for Triton under a name of their own."""
    return True


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add ``a @ b`` in the dtype of its factors to a float32 sum."""
    total.add_(a @ b)
