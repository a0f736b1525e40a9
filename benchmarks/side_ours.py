"""This project's side of the comparison with TRL: the method's module under Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor
from worker import BETA, CLIP, RATE, Clock, Row

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.losses import bradley_terry, dpo, kto, sft
from rlhf_lightning.methods import AlignmentModule, Preference, RewardModel, Supervised, Unpaired
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import Pretrained
from rlhf_lightning.types import Example, PackedBatch


def run(settings: dict[str, Any], rows: list[Row], clock: Clock) -> list[float]:
    """Train over the rows; return log-prob sums (or rewards) of the first batch before the first step."""
    module_of, batches_of = METHODS[settings["method"]]
    module = module_of(settings)
    batches = batches_of(rows, settings["rows_a_step"])
    module.configure_model()
    scores = _scores(module.to(settings["device"]), batches[0].to(settings["device"]))
    if settings["reference"] == "cached":
        batches = [_with_reference(module, batch, settings) for batch in batches]
    trainer = L.Trainer(
        accelerator=settings["device"],
        devices=1,
        max_epochs=1,
        precision="bf16-mixed" if settings["precision"] == "bf16" else "32-true",
        gradient_clip_val=CLIP,
        callbacks=[_Timed(clock)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    return scores


class _Timed(L.Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, *_: Any) -> None:
        self.clock.start()

    def on_train_batch_end(self, _trainer: Any, _module: Any, outputs: dict[str, Any], *_: Any) -> None:
        self.clock.stop(float(outputs["loss"]))


def _module(
    settings: dict[str, Any], method: Callable[..., AlignmentModule[Any]], loss: Callable[..., Any], **options: Any
) -> Any:
    reference = {"live": "frozen", "cached": "cached", "none": "none"}[settings["reference"]]
    return method(
        models=ModelBuilder(Pretrained(settings["model"]), reference=reference, compile=settings["compile"]),
        loss=loss,
        optimizer=partial(torch.optim.AdamW, lr=RATE, weight_decay=0.0, fused=True),
        **options,
    )


def _dpo(settings: dict[str, Any]) -> Any:
    return _module(settings, Preference, partial(dpo, beta=BETA), statistics=settings["statistics"])


def _kto(settings: dict[str, Any]) -> Any:
    return _module(settings, Unpaired, partial(kto, beta=BETA), statistics=settings["statistics"])


def _reward(settings: dict[str, Any]) -> Any:
    return _module(settings, RewardModel, bradley_terry)


def _sft(settings: dict[str, Any]) -> Any:
    return _module(settings, Supervised, sft, statistics=settings["statistics"])


def _pairs(rows: list[Row], size: int) -> list[PackedBatch]:
    examples = [Example(prompt, [chosen, rejected]) for prompt, chosen, rejected in rows]
    return [pack(examples[i : i + size]) for i in range(0, len(examples), size)]


def _supervised(rows: list[Row], size: int) -> list[PackedBatch]:
    examples = [Example(prompt, [response]) for prompt, response in rows]
    return [pack(examples[i : i + size], kind="supervised") for i in range(0, len(examples), size)]


def _unpaired(rows: list[Row], size: int) -> list[PackedBatch]:
    batches = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        examples = [Example(p, [r], numbers={"desirable": [float(label)]}) for p, r, _, (label,) in part]
        mismatched = pack([Example(p, [other]) for p, _, other, _ in part])
        batches.append(replace(pack(examples, kind="unpaired"), mismatched=(mismatched,)))
    return batches


#: By method: its module, and its batches.
METHODS: dict[str, tuple[Callable[[dict[str, Any]], Any], Callable[[list[Row], int], list[PackedBatch]]]] = {
    "dpo": (_dpo, _pairs),
    "kto": (_kto, _unpaired),
    "bradley_terry": (_reward, _pairs),
    "sft": (_sft, _supervised),
}


@torch.no_grad()
def _scores(module: Any, batch: PackedBatch) -> list[float]:
    if isinstance(module, RewardModel):  # TRL's head starts from other random numbers
        torch.nn.init.constant_(module.policy.head.weight, HEAD)
        scores: Tensor = module.policy(batch)
    else:
        scores = module.policy(batch).sum()
    return scores.flatten().tolist()


#: Every weight of a reward head, so that both sides start from the same one.
HEAD = 1e-2


def _with_reference(module: Any, batch: PackedBatch, settings: dict[str, Any]) -> PackedBatch:
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=settings["precision"] == "bf16")
    with torch.no_grad(), autocast:
        changes: dict[str, Any] = {"reference_log_probs": module.policy(batch).token}
        for other in getattr(batch, "mismatched", ()):
            changes["mismatched"] = (replace(other, reference_log_probs=module.policy(other).token),)
    return replace(batch, **changes)
