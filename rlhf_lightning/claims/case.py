"""Goal of a method in the tiny world: a run of ``rlhf train experiment=tiny``, and how far a metric should rise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

GOLD = "val/gold/reward"
#: 64 steps instead of the 96 of experiment=tiny.
TINY = ("experiment=tiny", "data.source.size=2048")


@dataclass(frozen=True)
class Case:
    """A claim: with this method, a metric rises by a margin.

    Args:
        method: of ``conf/method``.
        overrides: options after :data:`TINY`.
        metric: of ``result.json``. The gold reward by default: the mean over 532 samples on held-out prompts.
        start: the metric of the base; None: the base's gold reward. An accuracy starts at 0.5, a correlation at 0.
        margin: how far the metric must rise. The default is more than five standard errors of the gold reward's mean
            (0.09 points); other metrics give the reason in a comment.
        falls: the metric is a loss or a divergence: it must fall by the margin.
        flipped_limit: how far the metric may still rise when the gradient's sign is flipped.
        kl_limit: nats that the policy's responses may be away from the base's; None: any. Not with flipped gradients.
        representative: in the default tests; the others are marked slow, and so are all runs with flipped gradients.
        start_from: options of a run whose checkpoint this one starts from instead of the base.
    """

    method: str
    overrides: Sequence[str] = field(default=())
    metric: str = GOLD
    start: float | None = None
    margin: float = 0.5
    falls: bool = False
    flipped_limit: float = 0.0
    kl_limit: float | None = None
    representative: bool = False
    start_from: Sequence[str] | None = None

    @property
    def name(self) -> str:
        """Name of the case in pytest."""
        return "-".join([self.method, *self.overrides]).replace("/", ".")
