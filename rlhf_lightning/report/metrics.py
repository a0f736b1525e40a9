"""Metrics of a report: which way each is better, which to rank by, and which to draw."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from rlhf_lightning.report.reading import ReportError

Mode = Literal["max", "min"]

#: What to rank by, best first, unless the runs' own optimized_metric or the user says it.
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
#: KL of the policy's own samples; log-ratios on the data's responses are none.
DIVERGENCES = ("val/gold/kl", "val/kl/reference", "train/kl/reference")
#: Of responses that were chosen among several nobody knows the KL; this is the most that it can be.
MOST_DIVERGENCE = "val/kl/choice"
#: What the axes of the frontier are called.
WORDS = {
    "val/gold/reward": "gold reward",
    "val/sample/reward": "mean reward of the responses",
    "val/reward/accuracy": "accuracy of the implicit reward",
    "val/gold/kl": "KL to the base",
    "val/kl/reference": "KL to the reference",
}
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
#: Never drawn unless asked for: they say how fast a run was or what was asked for, not how good it is.
_PLAIN = (
    "train/throughput/",
    "train/memory/",
    "train/lr",
    "train/length/",
    "val/length/",
    "train/log_ratio/k3",  # of older runs
    "val/kl/k3",
)
_UP = re.compile(r"(^|/)(accuracy|margin|reward|score|win_rate|top1|finished|auc|reward/.*|score/(mean|min|max))$")
_DOWN = re.compile(r"(^|/)(loss|ece|perplexity|error|brier)$")
#: Of rewards: shares of the responses that got no score, and what describes scores without a merit of its own.
_FAILED = re.compile(r"/(unscored|unanswered|unreadable_answer|parse_failures|no_answer|no_label|errors|timeouts)$")
_DESCRIBED = re.compile(r"/(std|first|distinct|rating/[^/]+|[^/]*_correlation|[^/]*overlap)$")


def mode_of(name: str) -> Mode | None:
    """Which way a metric is better; None where its name does not say, as of divergences: little is not a merit."""
    if _DOWN.search(name) or _FAILED.search(name):
        return "min"
    if name.endswith(("/chosen", "/rejected", "/length_bias")) or _DESCRIBED.search(name):
        return None
    return "max" if _UP.search(name) else None


def ranking_metric(logged: Collection[str], asked: str | None = None, optimized: Iterable[str] = ()) -> str | None:
    """The metric to rank groups by; None when nothing fits.

    Args:
        logged: by any run.
        asked: for by the user.
        optimized: the ``optimized_metric`` of the runs.

    Raises:
        ReportError: no run logged what was asked for.
    """
    if asked is not None:
        return known(asked, logged)
    own = {name for name in optimized if name in logged}
    return next(iter(own)) if len(own) == 1 else next((name for name in RANKING if name in logged), None)


def known(name: str, logged: Collection[str]) -> str:
    """The name itself.

    Raises:
        ReportError: no run logged it; the text has the closest one.
    """
    if name in logged:
        return name
    close = difflib.get_close_matches(name, list(logged), n=1, cutoff=0.4)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ReportError(f"no run logged the metric {name}.{hint}\n  logged: {', '.join(sorted(logged)) or 'nothing'}")


def frontier_axes(
    logged: Collection[str], reward: str | None = None, divergence: str | None = None
) -> tuple[str, str] | None:
    """Divergence and reward to draw against each other; None when the runs logged no such pair.

    Raises:
        ReportError: no run logged what was asked for.
    """
    x = known(divergence, logged) if divergence else next((name for name in DIVERGENCES if name in logged), None)
    y = known(reward, logged) if reward else next((name for name in REWARDS if name in logged), None)
    return (x, y) if x and y and x != y else None


def shown(logged: Collection[str], most: int, first: Sequence[str] = ()) -> list[str]:
    """The metrics worth a panel or a column: first those asked for, then by importance, then by name."""
    others = sorted(name for name in logged if not name.startswith(_PLAIN))
    ordered = dict.fromkeys([*first, *SHOWN, *others])
    return [name for name in ordered if name in logged][:most]
