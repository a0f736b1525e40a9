"""``rlhf claims run``: ordinary jobs of what the board lacks, one sweep an arm, each resumed as sweeps are.

An arm is a sweep over seeds below ``runs/claims/<digest of its code>``: the same command resumes a run that was killed,
and other code never meets the jobs of this one. A stale arm first runs one seed: where it gives the same numbers, bit
for bit, the other seeds would too, and the measurement counts for the new code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

from rlhf_lightning.claims.claim import Arm
from rlhf_lightning.claims.record import Measurement, code_of
from rlhf_lightning.cli.results import Result
from rlhf_lightning.cli.versions import checkout, versions

#: Where jobs lie.
FOLDER = Path("runs/claims")
#: Metrics that are kept of every arm that has them.
KEPT = ("val/gold/reward", "val/gold/standard_error", "val/gold/kl", "val/gold/length")
Jobs = Callable[[Arm, Sequence[int], Path], list[Result]]


class ArmError(Exception):
    """A job of an arm failed."""


def measured(arm: Arm, metrics: set[str], before: Measurement | None, jobs: Jobs | None = None) -> Measurement:
    """Measure an arm, or confirm what was measured with other code.

    Args:
        arm: whose jobs to run.
        metrics: that the board needs of it.
        before: what is recorded of it.
        jobs: runs the jobs of some seeds in a folder; None: :func:`run_jobs`.

    Raises:
        ArmError: a job failed, or does not log a metric.
    """
    run, code = jobs or run_jobs, code_of(arm)
    folder, today = FOLDER / code, date.today().isoformat()
    if before is not None and before.has(arm, metrics) and before.code != code:
        (result,) = run(arm, arm.seeds[:1], folder)
        if all(result.metrics.get(name) == values[0] for name, values in before.metrics.items()):
            return replace(before, code=code, confirmed=today)
    results = run(arm, arm.seeds, folder)
    if lacking := sorted({name for result in results for name in metrics - result.metrics.keys()}):
        raise ArmError(f"{arm.command}: does not log {', '.join(lacking)}; it logs {', '.join(results[0].metrics)}")
    kept = sorted(metrics | set(KEPT) & results[0].metrics.keys())
    return Measurement(
        seeds=arm.seeds,
        metrics={name: tuple(result.metrics.get(name) for result in results) for name in kept},
        code=code,
        commit=(checkout() or "").removesuffix("-dirty") or None,  # the record itself changes with every arm
        versions=versions(),
        date=today,
        seconds=round(sum(result.seconds for result in results), 1),
    )


def run_jobs(arm: Arm, seeds: Sequence[int], folder: Path) -> list[Result]:
    """Run an arm's jobs with some seeds, after the run that they start from; results in the order of the seeds.

    Raises:
        ArmError: one failed.
    """
    from rlhf_lightning.cli import launch  # imports torch
    from rlhf_lightning.cli.sweep import SweepSummary, gather

    start = folder / "start"
    if arm.start is not None and ((before := Result.read(start)) is None or before.status != "done"):
        options = [*arm.start.options, f"seed={arm.start.seeds[0]}", f"paths.output_dir={start}"]
        if launch.main(["train", *options]) != 0:
            raise ArmError(f"{arm.command}: what it starts from failed, see {start}")
    several = f"seed={','.join(map(str, seeds))}"
    options = [*arm.options_from(str(start)), several, f"paths.sweeps={folder}"]
    SweepSummary.exit_code = 0
    code = launch.main(["train", "-m", *options])
    results = list(gather(SweepSummary.folder).values()) if SweepSummary.folder is not None else []
    if code != 0 or len(results) != len(seeds):
        raise ArmError(f"{arm.command}: {next((r.error for r in results if r.error), f'exit code {code}')}")
    return results
