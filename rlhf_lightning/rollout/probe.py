"""Check that an engine and the trainer are the same policy, by their log-probs of the same tokens.

Other kernels and other precisions make small differences; stale weights, another template or another temperature make
large ones. The mean is bounded, since it hardly depends on the number of tokens. SmolLM2-135M sampled in
float32 and scored in bfloat16 differs by 0.03 to 0.05 nats a token in the mean, and by more than 1 at some tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from jaxtyping import Float
from torch import Tensor


class Bounded(Protocol):
    """Something with a name and a bound, as every engine has."""

    name: str
    max_gap: float | None


def gap(engine: Float[Tensor, " tokens"], trainer: Float[Tensor, " tokens"]) -> dict[str, float]:
    """Mean and largest difference of two log-probs of the same tokens, in nats.

    Args:
        engine: of each drawn token, as the engine drew it.
        trainer: of the same tokens, by the trainer's own forward pass at the sampling temperature.

    Returns:
        ``mean`` and ``max`` of the absolute difference; 0 without tokens.
    """
    difference = (engine.double() - trainer.double()).abs()
    if not len(difference):
        return {"mean": 0.0, "max": 0.0}
    return {"mean": float(difference.mean()), "max": float(difference.max())}


def check(gaps: Mapping[str, float], engine: Bounded) -> None:
    """Stop a run whose samples are not the policy's.

    Args:
        gaps: see :func:`gap`.
        engine: has the bound; None: any gap is accepted.

    Raises:
        RuntimeError: the mean lies above the bound, or is not a number.
    """
    if engine.max_gap is None or gaps["mean"] <= engine.max_gap:
        return
    raise RuntimeError(
        f"the log-probs of rollout={engine.name} differ from the trainer's by {gaps['mean']:.4f} nats a token in the "
        f"mean (at most {gaps['max']:.4f}), above rollout.max_gap={engine.max_gap}: the engine may hold other weights "
        "or another dtype, or sample at another temperature. Use the trainer's dtype for rollout.dtype, or raise "
        "rollout.max_gap (null: no bound) and correct for the difference with "
        "method.policy_loss.mismatch.correction=tis"
    )
