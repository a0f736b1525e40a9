"""Arms that several claims compare with."""

from __future__ import annotations

from rlhf_lightning.claims.case import Case
from rlhf_lightning.claims.cases import cases
from rlhf_lightning.claims.claim import Arm

DPO, SIMPO = Arm("dpo"), Arm("simpo")
CHOSEN_ONLY = Arm("preferred_ft")
#: As many steps at the rate of the rounds, from the data's pairs.
OFFLINE = Arm("dpo", ("data.source.size=512", "optimizer.lr=3.0e-4"))
CHOSEN_LOG_RATIO = "val/log_ratio/chosen"
LENGTH = "val/gold/length"
KL = "val/gold/kl"


def case(method: str, *overrides: str) -> Case:
    """The first case of a method that has all of some overrides."""
    return next(goal for goal in cases() if goal.method == method and set(overrides) <= set(goal.overrides))


def arm(method: str, *overrides: str) -> Arm:
    """The jobs of a case."""
    goal = case(method, *overrides)
    return Arm(goal.method, tuple(goal.overrides))
