"""Declarations of the board: a paper's claim, and the comparison of jobs that would show it in the tiny world."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_lightning.claims.case import GOLD, TINY, Case

#: Stands in options for the folder of the run that an arm starts from.
START = "START"
#: Loads what a run exported, whose folder is ``model.run``.
RUN = "model=run"


@dataclass(frozen=True)
class Arm:
    """Jobs of the tiny world that differ in nothing but their seed.

    Args:
        method: of ``conf/method``.
        overrides: options after :data:`TINY`, whose values they replace.
        seeds: one job each.
        start: a run of one seed that these start from; ``START`` in the overrides is its folder.
    """

    method: str
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (1, 2, 3)
    start: Arm | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """Options of ``rlhf train`` but for the seed."""
        given = {override.partition("=")[0] for override in self.overrides}
        common = [option for option in TINY if option.partition("=")[0] not in given]
        return (*common, f"method={self.method}", *self.overrides)

    def options_from(self, folder: str) -> list[str]:
        """The options with the folder of the start in them."""
        return [option.replace(START, folder) for option in self.options]

    @property
    def command(self) -> str:
        """Command that computes it, as typed: the start first, where there is one."""
        seeds = ",".join(map(str, self.seeds))
        line = shlex.join(["rlhf", "train", "-m", *self.options_from(self.start_folder), f"seed={seeds}"])
        return line if self.start is None else f"{self._start_command} && {line}"

    @property
    def start_folder(self) -> str:
        """Folder of the start; empty without one."""
        if self.start is None:
            return ""
        return f"runs/claims/start_{hashlib.blake2b(repr(self.start).encode(), digest_size=4).hexdigest()}"

    @property
    def _start_command(self) -> str:
        assert self.start is not None
        folder, seed = self.start_folder, self.start.seeds[0]
        return shlex.join(["rlhf", "train", *self.start.options, f"seed={seed}", f"paths.output_dir={folder}"])


@dataclass(frozen=True)
class Check:
    """One arm has more of a metric than another, or than a number.

    Args:
        first: the arm that the claim is about.
        second: what it is compared with.
        metric: of ``result.json``.
        least: how much more it must have; below zero: how much less is still called equal.
        falls: less is claimed, not more.
        magnitude: of the metric's absolute values, such as correlations of either sign.
    """

    first: Arm
    second: Arm | float
    metric: str = GOLD
    least: float = 0.0
    falls: bool = False
    magnitude: bool = False

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms that it needs."""
        return (self.first,) if isinstance(self.second, float) else (self.first, self.second)


@dataclass(frozen=True)
class Claim:
    """A paper's claim, and the checks that would show it here.

    Args:
        paper: as the first line of a yaml has it; of ``arXiv:...`` the number alone.
        sentence: the claim.
        checks: all of them must hold.
        untestable: why the tiny world cannot show it; empty where it can.
        measured_by: a page or a test that measures it outside of the board.
    """

    paper: str
    sentence: str
    checks: tuple[Check, ...] = ()
    untestable: str = ""
    measured_by: str = ""

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms that it needs, each once."""
        return tuple(dict.fromkeys(arm for check in self.checks for arm in check.arms))


#: One step with a learning rate of zero: the base itself. Its samples do not depend on the seed.
BASE = Arm("dpo", ("data.source.size=32", "optimizer.lr=0.0"), seeds=(1,))


def learns(case: Case, seeds: Sequence[int] = (1, 2, 3)) -> Check:
    """The check that a case is: its metric rises (or falls) from the base's by the case's margin.

    Args:
        case: without a start of its own.
        seeds: one job each.
    """
    arm = Arm(case.method, tuple(case.overrides), tuple(seeds))
    second: Arm | float = BASE if case.start is None else float(case.start)
    return Check(arm, second, case.metric, case.margin, case.falls)
