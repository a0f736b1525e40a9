"""Export of the policy to a folder that plain transformers or PEFT can load."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, Trainer

from rlhf_lightning.files import write_atomically


class HFExport(Callback):
    """Exports the policy at the end of training, and after each validation with a new best value.

    ``<folder>/last`` and ``<folder>/best`` hold weights (or the adapter), tokenizer, chat template and generation
    config; ``<folder>/best/metric.json`` has the step and the value. With an EMA, the average is exported.

    A model that cannot be exported is refused before training. Checkpoints are written before an export, so a failing
    export (a full disk) loses nothing: :class:`~rlhf_lightning.callbacks.LastCheckpoint` ensures this order.

    Args:
        folder: output folder; None: ``export`` in the trainer's ``default_root_dir``.
        form: ``adapter``, ``merged`` or ``auto``: the adapter if there is one and its base loads by its name, else full
            or merged weights.
        last: export at the end of training.
        monitor: metric of the best export, such as ``val/loss``; None: no best export.
        mode: ``min`` or ``max``: whether small or large values are better.
    """

    after_checkpoints = True  #: read by ``LastCheckpoint``

    def __init__(
        self,
        folder: str | None = None,
        form: Literal["auto", "adapter", "merged"] = "auto",
        last: bool = True,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        if form not in ("auto", "adapter", "merged") or mode not in ("min", "max"):
            raise ValueError(
                f"callbacks.export: form={form!r} must be auto, adapter or merged, and mode={mode!r} must be min or max"
            )
        self.folder, self.form, self.last, self.monitor, self.mode = folder, form, last, monitor, mode
        self._best: float | None = None

    def _path(self, trainer: Trainer) -> Path:
        return Path(self.folder or Path(trainer.default_root_dir) / "export")

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Refuse a model that cannot be exported, before training."""
        if not trainer.fast_dev_run and (self.last or self.monitor is not None):  # type: ignore[attr-defined]
            pl_module.check_export(self.form)

    def _export(self, trainer: Trainer, module: Any, name: str) -> Path:
        template = getattr(trainer.datamodule, "trained_template", None)  # type: ignore[attr-defined]
        path: Path = module.export(self._path(trainer) / name, self.form, template and template())
        return path

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Export when the metric is the best so far."""
        if self.monitor is None or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if self.monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val/")))
            raise ValueError(f"callbacks.export.monitor={self.monitor} was not logged. Validation logged: {logged}")
        value = float(trainer.callback_metrics[self.monitor])
        better = self._best is None or (value < self._best if self.mode == "min" else value > self._best)
        if better and math.isfinite(value):  # nan: this pass has no value
            self._best = value
            folder = self._export(trainer, pl_module, "best")
            if trainer.is_global_zero:
                record = {"step": trainer.global_step, "metric": self.monitor, "value": value}
                text = json.dumps(record) + "\n"
                write_atomically(folder / "metric.json", lambda temporary: temporary.write_text(text))

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Export the trained policy."""
        if self.last and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._export(trainer, pl_module, "last")

    def state_dict(self) -> dict[str, Any]:
        """Best value so far."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value so far."""
        self._best = state_dict["best"]
