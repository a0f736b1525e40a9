"""A policy's own confidence in its responses, from the log-probs that they were drawn with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from rlhf_lightning.rewards.base import Scores
from rlhf_lightning.types import Sample, SampleGroup

Reduction = Literal["mean", "sum", "product", "geometric_mean"]


class SelfConfidence:
    r"""Probability of a response under the policy that drew it: only the probabilities of the drawn tokens.

    ``sum`` is :math:`\log p(y \mid x)` and ``mean`` its share a token, both in nats; ``product`` is
    :math:`p(y \mid x)` and ``geometric_mean`` is :math:`p(y \mid x)^{1/|y|}`, both in [0, 1]. No entropy enters: what
    is sometimes called confidence, the entropy of whole distributions or their divergence from a uniform one, is
    another quantity. The log-probs are the engine's at the sampling temperature, before top-p and top-k, EOS included.
    A product underflows to 0 for responses of more than a few hundred tokens.

    Source: the objective of "Confidence Is All You Need" (RLSC), arXiv:2506.06395, is the expectation of ``product``;
    ``method=rlsc`` trains it with its own gradient, this is its value as a reward.

    Args:
        tokenizer: not used; every reward is given the policy's.
        reduction: ``mean``, ``sum``, ``product`` or ``geometric_mean``.
        name: what its numbers are logged under.

    Raises:
        ValueError: an unknown reduction.
    """

    reads_log_probs = True

    def __init__(self, tokenizer: Any = None, *, reduction: Reduction = "mean", name: str = "self_confidence") -> None:
        if reduction not in ("mean", "sum", "product", "geometric_mean"):
            raise ValueError(f"reward.reduction={reduction!r} is none of mean, sum, product, geometric_mean")
        self.reduction, self.name = reduction, name
        self._responses = self._unscored = 0

    def __call__(self, groups: Sequence[SampleGroup]) -> Scores:
        """See :class:`~rlhf_lightning.rewards.base.Reward`; None where the engine gave no log-probs."""
        scores = [[self._score(sample) for sample in group.samples] for group in groups]
        self._responses += sum(map(len, scores))
        self._unscored += sum(score is None for group in scores for score in group)
        return scores

    def metrics(self) -> dict[str, float]:
        """``unscored``: share of the responses since the last call that came without log-probs."""
        share = {"unscored": self._unscored / self._responses} if self._responses else {}
        self._responses = self._unscored = 0
        return share

    def _score(self, sample: Sample) -> float | None:
        if not sample.log_probs:
            return None
        total = math.fsum(sample.log_probs)
        value = total if self.reduction in ("sum", "product") else total / len(sample.log_probs)
        return value if self.reduction in ("sum", "mean") else math.exp(value)
