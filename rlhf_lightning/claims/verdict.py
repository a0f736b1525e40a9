"""From measurements to verdicts.

The rule: a check holds when the difference of two arms' means, in the claimed direction and less what the claim asks
for, is more than two standard errors. The standard error of an arm's mean is the larger of two, over the square root of
its number of seeds: the standard deviation over seeds, and what the held-out samples of one run leave open (of the gold
reward as the run logs it; of accuracies and shares the most that as many samples can have). Errors of two arms add in
squares. A claim is shown when all of its checks hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from rlhf_lightning.claims.case import GOLD
from rlhf_lightning.claims.claim import Arm, Check, Claim
from rlhf_lightning.claims.record import Measurement, code_of

#: Standard errors that a difference must exceed.
ERRORS = 2.0
SHOWN, NOT_SHOWN, UNTESTABLE, NOT_RUN = "shown", "not shown", "not testable here", "not run yet"
#: Metric -> the metric that is its standard error in one run.
ERROR_OF = {GOLD: "val/gold/standard_error"}
#: Rows of data=tiny that accuracies are measured on.
HELD_OUT_ROWS = 256
#: Samples behind the means of what lies between -1 and 1.
BOUNDED = {"val/gold/correct": 448}
KL = "val/gold/kl"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; without an error where one seed and no samples give any."""

    mean: float
    error: float | None
    kl: float | None = None  #: to the base in nats a response, where the mean is one of gold rewards


@dataclass(frozen=True)
class Outcome:
    """A check with its numbers; None: an arm was not run, or a number was not finite."""

    check: Check
    first: Estimate | None = None
    second: Estimate | None = None

    @property
    def difference(self) -> float | None:
        """First less second."""
        return None if self.first is None or self.second is None else self.first.mean - self.second.mean

    @property
    def error(self) -> float | None:
        """Standard error of the difference."""
        if self.first is None or self.second is None or self.first.error is None or self.second.error is None:
            return None
        return math.hypot(self.first.error, self.second.error)

    @property
    def holds(self) -> bool:
        """True where the difference is more than is asked for, by more than two standard errors."""
        return self._beyond(self.check.least, 1)

    @property
    def opposite(self) -> bool:
        """True where the difference has the other sign, by more than two standard errors."""
        return self.check.least >= 0 and self._beyond(0.0, -1)

    def _beyond(self, least: float, side: int) -> bool:
        if self.difference is None or self.error is None:
            return False
        claimed = -self.difference if self.check.falls else self.difference
        return side * (claimed - least) > ERRORS * self.error


@dataclass(frozen=True)
class Verdict:
    """One row of the board."""

    claim: Claim
    state: str
    outcomes: tuple[Outcome, ...] = ()
    stale: bool = False  #: code that a number follows from has changed since


def metrics_of(arm: Arm, claims: Sequence[Claim]) -> set[str]:
    """Metrics of an arm that claims ask for, and those that are their errors."""
    asked = {check.metric for claim in claims for check in claim.checks if arm in check.arms}
    return asked | {ERROR_OF[metric] for metric in asked & ERROR_OF.keys()}


def estimate(measured: Measurement, metric: str, *, magnitude: bool = False) -> Estimate | None:
    """Mean of a metric over seeds with its standard error; None where a seed has no finite number.

    Args:
        measured: of an arm.
        metric: that was kept of it.
        magnitude: take absolute values.
    """
    values = [abs(value) if magnitude else value for value in measured.metrics[metric] if value is not None]
    if len(values) < len(measured.seeds):
        return None
    spreads = [stdev(values)] if len(values) > 1 else []
    mean = fmean(values)
    if metric in ERROR_OF:
        errors = [error for error in measured.metrics[ERROR_OF[metric]] if error is not None]
        spreads += [fmean(errors)] if errors else []
    elif metric.startswith("val/") and metric.endswith("accuracy"):
        spreads.append(math.sqrt(mean * (1 - mean) / HELD_OUT_ROWS))
    elif metric in BOUNDED:
        spreads.append(math.sqrt((1 - mean**2) / BOUNDED[metric]))
    distances = [kl for kl in measured.metrics.get(KL, ()) if kl is not None] if metric == GOLD else []
    error = max(spreads) / math.sqrt(len(values)) if spreads else None
    return Estimate(mean, error, fmean(distances) if distances else None)


def judge(claim: Claim, arms: Mapping[str, Measurement]) -> Verdict:
    """The verdict on a claim.

    Args:
        claim: of the board.
        arms: measurements by command.
    """
    if claim.untestable:
        return Verdict(claim, UNTESTABLE)
    outcomes = tuple(_outcome(check, arms) for check in claim.checks)
    measured = [arms[arm.command] for arm in claim.arms if arm.command in arms]
    if not claim.checks or any(not _has(arm, check, arms) for check in claim.checks for arm in check.arms):
        return Verdict(claim, NOT_RUN, outcomes)
    state = SHOWN if all(outcome.holds for outcome in outcomes) else NOT_SHOWN
    stale = any(now.code != code_of(arm) for now, arm in zip(measured, claim.arms, strict=True))
    return Verdict(claim, state, outcomes, stale)


def plain(verdict: Verdict) -> dict[str, Any]:
    """A verdict in plain containers, without what may change by itself (whether it is stale)."""
    return {
        "claim": verdict.claim.sentence,
        "verdict": verdict.state,
        "reason": verdict.claim.untestable or verdict.claim.measured_by or None,
        "checks": [
            {
                "metric": f"|{outcome.check.metric}|" if outcome.check.magnitude else outcome.check.metric,
                "first": outcome.check.first.command,
                "second": outcome.check.second
                if isinstance(outcome.check.second, float)
                else outcome.check.second.command,
                "claimed": f"{'falls' if outcome.check.falls else 'rises'} by more than {outcome.check.least:g}",
                "difference": outcome.difference,
                "standard_error": outcome.error,
                "holds": outcome.holds,
            }
            for outcome in verdict.outcomes
        ],
    }


def _has(arm: Arm, check: Check, arms: Mapping[str, Measurement]) -> bool:
    needed = {check.metric} | ({ERROR_OF[check.metric]} if check.metric in ERROR_OF else set())
    return arm.command in arms and arms[arm.command].has(arm, needed)


def _outcome(check: Check, arms: Mapping[str, Measurement]) -> Outcome:
    estimates = [
        estimate(arms[arm.command], check.metric, magnitude=check.magnitude) if _has(arm, check, arms) else None
        for arm in check.arms
    ]
    second = Estimate(check.second, 0.0) if isinstance(check.second, float) else estimates[1]
    return Outcome(check, estimates[0], second)
