"""Announcement of a run before its first step: method, data, model, memory, output folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer

from rlhf_lightning.cli.config_file import read_data
from rlhf_lightning.cli.cpu import emulates_bf16
from rlhf_lightning.cli.draws import draws
from rlhf_lightning.cli.online_checks import without_effect
from rlhf_lightning.cli.results import short
from rlhf_lightning.models.adapters.folders import adapter_base
from rlhf_lightning.models.memory import describe
from rlhf_lightning.models.roles.models import Models

if TYPE_CHECKING:
    from rlhf_lightning.cli.build import Run

log = logging.getLogger(__name__)


def describe_run(cfg: DictConfig, run: Run, checkpoint: str | None) -> None:
    """Log the lines that are known before weights load."""
    if run.trainer.global_rank != 0:
        return
    for name, text in _lines(cfg, run, checkpoint):
        log.info("%-9s %s", name, text)


class ModelLine(Callback):
    """Logs sizes and the predicted peak memory once the weights are loaded and placed, before step 1."""

    def __init__(self, run: Run) -> None:
        name = run.models.source.name
        base = adapter_base(name)
        self.source, self.data = name if base is None else f"{base} with the adapter {name} merged into it", run.data

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure two small forward passes; a collective call on sharded weights."""
        module: Any = pl_module
        tokens = _tokens(trainer.train_dataloader)
        models = Models(module.policy, module.reference, module.tokenizer, earlier=module.earlier)
        summary = describe(
            models,
            tokens=tokens,
            precision=str(trainer.precision),
            optimizer_numbers=numbers_kept(trainer.optimizers[0]) if trainer.optimizers else 0.0,
        )
        if trainer.is_global_zero:
            not_counted = "; drawing and scoring responses is not counted" if self.data.drawn_tokens else ""
            log.info("%-9s %s: %s%s", "model", self.source, summary, not_counted)
            self._warn_of_long_rows(module.policy.model.config)

    def _warn_of_long_rows(self, config: Any) -> None:
        """Positions that a model never saw in its own training give numbers that look like any others."""
        limit = getattr(config, "max_position_embeddings", None)
        drawn = self.data.drawn_tokens
        rows = (self.data.train_examples, self.data.val_examples)
        longest = max((examples.longest + drawn for examples in rows if examples is not None), default=0)
        if limit is not None and longest > limit:
            shorter = "data.spec.max_prompt_length or rollout.max_new_tokens" if drawn else "data.spec.max_length"
            what = f"prompts and responses of up to {longest}" if drawn else f"rows of up to {longest}"
            log.warning(
                "%s tokens, and %s was made for %d (max_position_embeddings): set %s lower, or give the model the "
                "rope scaling that it needs",
                what,
                self.source,
                limit,
                shorter,
            )


def _tokens(loader: Any) -> int:
    """Most tokens of a micro-batch: as planned, or as far as responses may go that are still to be drawn."""
    if hasattr(loader, "most_tokens"):
        return int(loader.most_tokens)
    plan = getattr(loader, "plan", None)
    return int(plan.tokens.max()) if plan is not None and len(plan.tokens) else 1024


def numbers_kept(optimizer: Optimizer) -> float:
    """Numbers an optimiser keeps for each weight: 2 for Adam, 1 with momentum or for RMSprop, 0 for plain SGD."""
    defaults = optimizer.defaults
    if "betas" in defaults:
        return 2.0
    return 1.0 if defaults.get("momentum") or "alpha" in defaults else 0.0


def _lines(cfg: DictConfig, run: Run, checkpoint: str | None) -> Iterator[tuple[str, str]]:
    reference = f"reference: {run.models.reference}"
    chosen = str(cfg.reference.kind)
    if run.models.reference == "auto":
        reference += " (the policy without its adapter where that is the initial policy, else a frozen copy)"
    elif chosen == "cached" and draws(cfg, run.module) and run.models.reference != "none":
        reference += " (reference=cached has no numbers of responses that are not drawn yet)"
    elif chosen not in ("auto", run.models.reference):
        reference += f" (reference={chosen} is not loaded: this loss needs none)"
    yield "method", f"{_method(cfg, run.module.loss)} on {run.module.kind} data; {reference}"
    for part in run.data.summaries():
        yield "data", part
    for option in without_effect(cfg, run.module, run.data):
        yield "no effect", option
    if checkpoint is not None:
        yield "resume", short(checkpoint)
    yield "results", short(run.folder)
    if not torch.cuda.is_available() and run.trainer.world_size == 1:
        slow = str(run.trainer.precision).startswith("bf16") and emulates_bf16()
        note = " (this processor has no instructions for it: trainer.precision=32-true is faster)" if slow else ""
        yield "device", f"cpu, {torch.get_num_threads()} threads, precision {run.trainer.precision}{note}"


def _method(cfg: DictConfig, loss: Any) -> str:
    """The loss, behind the name of the method that was chosen where that is another: ``grpo: ppo(ratio=token)``."""
    text, name = _loss(loss), method_name(cfg)
    return text if name is None or text.startswith(f"{name}(") else f"{name}: {text}"


def method_name(cfg: DictConfig) -> str | None:
    """The file of ``conf/method`` that was chosen, as Hydra noted in the run's folder; None where it did not.

    What evaluates a run has the method of that run, unless another was asked for.
    """
    name, asked = _noted(cfg.paths.output_dir)
    if cfg.get("run") and not any(override.startswith("method=") for override in asked):
        name, _ = _noted(cfg.run)
    return name


def _noted(folder: str | Path | None) -> tuple[str | None, list[str]]:
    """Method and overrides of the command that wrote a folder."""
    file = Path(folder or "").expanduser() / ".hydra" / "hydra.yaml"
    if folder is None or not file.is_file():
        return None, []
    noted = read_data(file)
    name = OmegaConf.select(noted, "hydra.runtime.choices.method")
    return (
        None if name is None else str(name).rpartition("/")[2],
        list(OmegaConf.select(noted, "hydra.overrides.task") or []),
    )


def _loss(loss: Any) -> str:
    """A loss as a call with its options; a weighted sum as its terms."""
    if hasattr(loss, "weights") and hasattr(loss, "losses"):
        return " + ".join(f"{weight} {_loss(loss.losses[name])}" for name, weight in loss.weights.items())
    options = ", ".join(f"{name}={value}" for name, value in getattr(loss, "keywords", {}).items())
    function = getattr(loss, "func", loss)
    return f"{getattr(function, '__name__', type(function).__name__)}({options})"
