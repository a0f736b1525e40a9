"""Metrics of a report: their better direction, which one to rank by, and which to draw."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from rlhf_lightning.report.reading import ReportError

Mode = Literal["max", "min"]

#: Metrics to rank by, best first, unless the runs' optimized_metric or the user chooses one.
RANKING = (
    "val/gold/reward",
    "val/reward/mean",
    "val/sample/reward",
    "val/reward/accuracy",
    "val/accuracy",
    "val/loss",
    "train/reward/accuracy",
    "train/loss",
)
#: Axes of the frontier, best first; on-policy and offline runs both have rewards of their samples.
REWARDS = (
    "val/gold/reward",
    "val/sample/reward",
    "val/reward/mean",
    "val/reward/accuracy",
    "val/reward/margin",
    "train/reward/accuracy",
)
#: KL on samples of the policy; log-ratios on the data's responses are not a KL.
DIVERGENCES = ("val/gold/kl", "val/kl/reference", "train/kl/reference")
#: The KL of responses that were chosen among several is unknown; this metric is its upper bound.
MOST_DIVERGENCE = "val/kl/choice"
#: Panels of the curves, and columns of the table, in this order; others follow by name while there is room.
SHOWN = (
    "val/gold/reward",
    "val/gold/kl",
    "val/gold/calibration",
    "val/sample/reward",
    "val/reward/mean",
    "val/reward/accuracy",
    "val/reward/margin",
    "val/kl/reference",
    "val/loss",
    "train/loss",
    "train/reward/accuracy",
    "train/reward/margin",
    "train/kl/reference",
    "val/reward/chosen",
    "val/reward/rejected",
    "val/sample/length",
    "train/grad_norm",
    "val/token/entropy",
    "train/log_ratio/mean",
    "train/log_ratio/mismatched",
)
#: Drawn only on request: they describe speed and settings, not quality.
_PLAIN = (
    "train/throughput/",
    "train/memory/",
    "train/lr",
    "train/length/",
    "val/length/",
    "train/log_ratio/k3",  # of older runs
    "val/kl/k3",
)
#: Standard errors of other metrics, which are read beside them.
_ERRORS = "_error"
_UP = re.compile(r"(^|/)(accuracy|margin|reward|score|win_rate|top1|finished|auc|reward/.*|score/(mean|min|max))$")
_DOWN = re.compile(r"(^|/)(loss|ece|perplexity|error|brier)$")
#: Of rewards: shares of the responses that got no score, and what describes scores without a merit of its own.
_FAILED = re.compile(r"/(unscored|unanswered|unreadable_answer|parse_failures|no_answer|no_label|errors|timeouts)$")
_DESCRIBED = re.compile(r"/(std|first|distinct|rating/[^/]+|[^/]*_correlation|[^/]*overlap)$")


def mode_of(name: str) -> Mode | None:
    """Direction in which a metric is better; None if its name does not tell, as for divergences."""
    if _DOWN.search(name) or _FAILED.search(name):
        return "min"
    if name.endswith(("/chosen", "/rejected", "/length_bias")) or _DESCRIBED.search(name):
        return None
    return "max" if _UP.search(name) else None


def ranking_metric(logged: Collection[str], asked: str | None = None, optimized: Iterable[str] = ()) -> str | None:
    """Choose the metric to rank groups by; None if nothing fits.

    Args:
        logged: metrics logged by any run.
        asked: the user's choice.
        optimized: the ``optimized_metric`` of the runs.

    Raises:
        ReportError: no run logged the requested metric.
    """
    if asked is not None:
        return check_logged(asked, logged)
    optimized_metrics = {name for name in optimized if name in logged}
    return (
        next(iter(optimized_metrics))
        if len(optimized_metrics) == 1
        else next((name for name in RANKING if name in logged), None)
    )


def check_logged(name: str, logged: Collection[str]) -> str:
    """Return the name of a metric that some run logged.

    Raises:
        ReportError: no run logged it; the message suggests the closest name.
    """
    if name in logged:
        return name
    close = difflib.get_close_matches(name, list(logged), n=1, cutoff=0.4)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ReportError(f"no run logged the metric {name}.{hint}\n  logged: {', '.join(sorted(logged)) or 'nothing'}")


def frontier_axes(
    logged: Collection[str], reward: str | None = None, divergence: str | None = None
) -> tuple[str, str] | None:
    """Choose the divergence and the reward to draw; None if the runs logged no such pair.

    Raises:
        ReportError: no run logged a requested metric.
    """
    x = check_logged(divergence, logged) if divergence else next((name for name in DIVERGENCES if name in logged), None)
    y = check_logged(reward, logged) if reward else next((name for name in REWARDS if name in logged), None)
    return (x, y) if x and y and x != y else None


def shown(logged: Collection[str], most: int, first: Sequence[str] = ()) -> list[str]:
    """Select the metrics worth a panel or a column: requested ones first, then by importance, then by name."""
    others = sorted(name for name in logged if not name.startswith(_PLAIN) and not name.endswith(_ERRORS))
    ordered = dict.fromkeys([*first, *SHOWN, *others])
    return [name for name in ordered if name in logged][:most]
