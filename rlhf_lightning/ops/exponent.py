"""Ratios of probabilities from log-ratios: a log-ratio is bounded here alone, because it is exponentiated."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

#: Bound of a log-ratio before it is exponentiated, nats; verl's. e^20 is about 5e8: no useful band is as wide.
MAX_LOG_RATIO = 20.0


def bounded_exp(log_ratio: Float[Tensor, " n"], max_log_ratio: float = MAX_LOG_RATIO) -> Float[Tensor, " n"]:
    """The exponential of log-ratios held within a bound, so that a long response cannot overflow.

    Beyond the bound the gradient is 0, so what is linear or quadratic in a log-ratio takes the log-ratio itself.
    """
    return log_ratio.clamp(-max_log_ratio, max_log_ratio).exp()
