"""Tests of learning: one run of a method as it is, one with the gradient sign flipped.

A family has one file in ``rlhf_lightning/claims/cases`` with a list ``CASES``, which ``test_learning.py`` reads::

    CASES = [Case("dpo", representative=True), Case("bt", metric="val/reward/accuracy", start=0.5, margin=0.2)]

A case runs ``rlhf train experiment=tiny method=<method>`` in this process, with the settings of ``conf/world/tiny``
like any user's run. Its seed is fixed, so it gives the same numbers every time on one machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from rlhf_lightning import compose, train
from rlhf_lightning.callbacks import NonFiniteError
from rlhf_lightning.claims.case import TINY, Case
from rlhf_lightning.cli.results import Result
from rlhf_lightning.world import TinyEvaluator

#: Nothing is written beside the result.
SHORT = (*TINY, "logger=none", "seed=1", "ckpt_path=null")
_HERE = "tests.learning.harness"


class FlippedGradients(Callback):
    """Flips the sign of every gradient once a step, as a loss of the other sign would."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        """After the last backward pass of the step, before clipping."""
        for parameter in pl_module.parameters():
            if parameter.grad is not None:
                parameter.grad.neg_()


def measured(options: Sequence[str], folder: Path) -> dict[str, float]:
    """Run ``experiment=tiny`` with options; the metrics of its ``result.json``."""
    train(compose("train", [*SHORT, *options, f"paths.output_dir={folder}"]))
    result = Result.read(folder)
    assert result is not None
    return result.metrics


def gain(case: Case, folder: Path, *, flipped: bool = False) -> float:
    """Rise of the case's metric at the end of its run; minus infinity when the run blew up.

    Args:
        case: what to run.
        folder: of the run.
        flipped: turn the loss over.
    """
    options = [f"method={case.method}", *case.overrides]
    if case.start_from is not None:
        measured(case.start_from, folder / "start")
        options += [f"ckpt_path={folder / 'start' / 'checkpoints' / 'last.ckpt'}"]
    if flipped:
        options += [f"+callbacks.flipped._target_={_HERE}.FlippedGradients", "allow_targets=[tests]"]
    try:
        metrics = measured(options, folder / "run")
    except NonFiniteError:
        return float("-inf")
    assert case.metric in metrics, f"{case.method} does not log {case.metric}; it logs {sorted(metrics)}"
    if case.kl_limit is not None and not flipped:
        assert metrics["val/gold/kl"] < case.kl_limit, f"{case.method}: {metrics['val/gold/kl']:.2f} nats"
    start = TinyEvaluator().base_reward() if case.start is None else case.start
    rise = metrics[case.metric] - start
    return -rise if case.falls else rise
