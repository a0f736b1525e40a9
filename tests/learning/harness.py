"""Whether a method learns: one run as it is, one with the sign of its loss turned over.

A family adds one file beside this one, ``cases_<family>.py``, with a list ``CASES``; ``test_learning.py`` finds it::

    CASES = [Case("dpo", representative=True), Case("bt", metric="val/reward/accuracy", start=0.5, margin=0.2)]

A case runs ``rlhf train experiment=tiny method=<method>`` in this process, with the settings of ``conf/world/tiny``
like any user's run. Its seed is fixed, so it gives the same numbers every time on one machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from rlhf_lightning import compose, train
from rlhf_lightning.callbacks import NonFiniteError
from rlhf_lightning.cli.results import Result
from rlhf_lightning.world import TinyEvaluator

GOLD = "val/gold/reward"
#: 64 steps instead of 96, and nothing written beside the result.
SHORT = ("experiment=tiny", "data.source.size=2048", "logger=none", "seed=1", "ckpt_path=null")
_HERE = "tests.learning.harness"


@dataclass(frozen=True)
class Case:
    """A claim: with this method, a metric rises by a margin.

    Args:
        method: of ``conf/method``.
        overrides: beside the harness's own (experiment=tiny, 64 steps).
        metric: of ``result.json``. The gold reward by default: the mean over 532 samples on held-out prompts.
        start: the metric of the base; None: the base's gold reward. An accuracy starts at 0.5, a correlation at 0.
        margin: how far the metric must rise. The default is more than five standard errors of the gold reward's mean
            (0.09 points); a metric of its own says why in a comment.
        falls: the metric is a loss or a divergence: it must fall by the margin.
        flipped_limit: how far the metric may still rise when the loss is turned over.
        kl_limit: nats that the policy's answers may be away from the base's; None: any. Not of the run turned over.
        representative: in the default suite; the others are marked slow, and so are all runs on flipped labels.
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
        """What pytest calls the case."""
        return "-".join([self.method, *self.overrides]).replace("/", ".")


class FlippedGradients(Callback):
    """Turns every gradient over once a step, which is what a loss of the other sign would give."""

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
    """How far the case's metric has risen at the end of its run; minus infinity when the run blew up.

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
