"""Metrics in TensorBoard's event files, of which a resumed run hides what it logs again."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import loggers
from lightning.pytorch.utilities import rank_zero_only

#: Which ends the tag of a text.
_TEXT = "/text_summary"


class TensorBoardLogger(loggers.TensorBoardLogger):
    """Lightning's TensorBoard logger, whose curves have every step once when a run was killed and resumed.

    An event file only grows. A resumed run therefore writes the mark behind which TensorBoard hides earlier events
    (``purge_step``), and logs the checkpoint's last step again.

    Args:
        save_dir: folder of the folder of event files.
        name: a folder between, or nothing.
        version: name of the folder of event files.
        default_hp_metric: whether a placeholder stands for a metric beside the hyper-parameters.
        prefix: of the metrics' names.
        writer: options of ``torch.utils.tensorboard.SummaryWriter``.
    """

    def __init__(
        self,
        save_dir: str,
        *,
        name: str = "",
        version: str = "tensorboard",
        default_hp_metric: bool = False,
        prefix: str = "",
        **writer: Any,
    ) -> None:
        super().__init__(save_dir, name, version, default_hp_metric=default_hp_metric, prefix=prefix, **writer)
        self._step = 0  # the latest that has metrics
        self._metrics: dict[str, float] = {}  # of that step
        self._texts: set[tuple[str, int]] = set()  # names and steps of those that a resumed run has
        self._params: dict[str, Any] = {}  # until there are metrics to show beside them

    @rank_zero_only
    def log_hyperparams(
        self,
        params: dict[str, Any] | Namespace,
        metrics: dict[str, Any] | None = None,
        step: int | None = None,
    ) -> None:
        """Keep parameters until the first metrics are logged: TensorBoard's table of runs needs both at once."""
        if metrics is None:
            self._params = vars(params) if isinstance(params, Namespace) else dict(params)
        else:
            super().log_hyperparams(params, metrics, step)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics of a step, the first ones with the hyper-parameters."""
        values = {name: float(value) for name, value in metrics.items()}
        if (at := step or 0) > self._step:
            self._step, self._metrics = at, {}
        self._metrics |= values
        if self._params:
            params, self._params = self._params, {}
            self.log_hyperparams(params, values, step)
        else:
            super().log_metrics(values, step)

    @rank_zero_only
    def log_text(self, name: str, text: str, step: int) -> None:
        """Log a text in Markdown, unless the run has it: TensorBoard's mark does not hide texts."""
        if (name, step) not in self._texts:
            self.experiment.add_text(name, text, step)

    # Checkpoints

    def position(self) -> dict[str, Any]:
        """Return the latest step with what was logged there, once the disk has what was logged before."""
        self.experiment.flush()
        return {"step": self._step, "metrics": dict(self._metrics)}

    @rank_zero_only
    def rewind(self, position: Mapping[str, Any] | None, step: int) -> None:
        """Hide what was logged after a checkpoint.

        Args:
            position: of :meth:`position`; None: the checkpoint has none, and what was logged before its step is kept.
            step: optimiser steps behind the checkpoint.
        """
        position = position or {"step": step, "metrics": {}}
        writer = self.experiment
        writer.close()
        writer.purge_step = position["step"]  # written at the head of the file that the next event begins
        self._step, self._metrics, self._texts = position["step"], {}, self._logged_texts()
        if position["metrics"]:
            self.log_metrics(position["metrics"], self._step)

    def _logged_texts(self) -> set[tuple[str, int]]:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(self.log_dir, size_guidance={"tensors": 0})
        events.Reload()
        tags = [tag for tag in events.Tags()["tensors"] if tag.endswith(_TEXT)]
        return {(tag.removesuffix(_TEXT), event.step) for tag in tags for event in events.Tensors(tag)}
