"""The policy as a folder that plain transformers or PEFT loads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, Trainer

from rlhf_lightning.files import write_atomically


class HFExport(Callback):
    """Exports the policy when training ends, and after each validation that beats the ones before.

    ``<folder>/last`` and ``<folder>/best`` hold weights (or the adapter), tokenizer, chat template and generation
    config; ``<folder>/best/metric.json`` says which step and value. With an EMA of the weights the average is exported.

    What cannot be exported is refused before training. Checkpoints are written before an export, so one that fails (a
    full disk) loses nothing: :class:`~rlhf_lightning.callbacks.LastCheckpoint` sees to the order.

    Args:
        folder: None: ``export`` in the trainer's ``default_root_dir``.
        form: ``adapter``, ``merged`` or ``auto``: the adapter where there is one and its base loads by its name, else
            full or merged weights.
        last: export at the end.
        monitor: metric of the best export, such as ``val/loss``; None: no best export.
        mode: whether a small or a large value is good.
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
                f"callbacks.export: form={form!r} is not auto, adapter or merged, or mode={mode!r} not min or max"
            )
        self.folder, self.form, self.last, self.monitor, self.mode = folder, form, last, monitor, mode
        self._best: float | None = None

    def _path(self, trainer: Trainer) -> Path:
        return Path(self.folder or Path(trainer.default_root_dir) / "export")

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Refuse what cannot be exported, before anything is trained."""
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
            known = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val/")))
            raise ValueError(f"callbacks.export.monitor={self.monitor} was not logged; validation logged: {known}")
        value = float(trainer.callback_metrics[self.monitor])
        better = self._best is None or (value < self._best if self.mode == "min" else value > self._best)
        if better and math.isfinite(value):  # nan: this pass has no value, so it beats nothing
            self._best = value
            folder = self._export(trainer, pl_module, "best")
            if trainer.is_global_zero:
                record = {"step": trainer.global_step, "metric": self.monitor, "value": value}
                text = json.dumps(record) + "\n"
                write_atomically(folder / "metric.json", lambda temporary: temporary.write_text(text))

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Export what was trained."""
        if self.last and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._export(trainer, pl_module, "last")

    def state_dict(self) -> dict[str, Any]:
        """The value to beat."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the value to beat."""
        self._best = state_dict["best"]
