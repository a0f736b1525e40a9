"""This project's side of the online DPO comparison: rounds of one step of two samples a prompt, under Lightning."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning as L
import torch
from fixed_rows import responses
from side_ours_grpo import Even, Steps, Timed
from torch import Tensor
from worker import BETA, CLIP, RATE, Clock

from rlhf_lightning.callbacks import PhaseTimes
from rlhf_lightning.data import AlignmentDataModule
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.lessons import Rounds, SelectLesson
from rlhf_lightning.losses import dpo
from rlhf_lightning.methods import Preference
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import Pretrained
from rlhf_lightning.rounds import OnlineData
from rlhf_lightning.selection.options import makes, selector
from rlhf_lightning.types import Draw, Example, Selected


@selector
@makes("preference")
def better_of_two(score: Tensor) -> Selected:
    """The better sample of two against the other; of equal ones the first, as TRL has it. No pair is left out."""
    first = score[:, 0] >= score[:, 1]
    chosen = (~first).long()
    return Selected(torch.arange(len(score)), torch.stack([chosen, 1 - chosen], dim=1))


def run(settings: dict[str, Any], prompts: list[dict[str, Any]], clock: Clock) -> list[float]:
    """Train over the prompts; return log-prob sums of fixed rows before the first step."""
    module = Preference(
        ModelBuilder(Pretrained(settings["model"]), reference="frozen"),
        partial(dpo, beta=BETA),
        partial(torch.optim.AdamW, lr=RATE, weight_decay=0.0, fused=True),
    )
    module.configure_model()
    scores = _scores(module, prompts[0]["ids"], settings)
    rounds = Rounds(selector=better_of_two, draws=[Draw(n=2)], ignore_eos=True)
    data = AlignmentDataModule(
        [Example(prompt["ids"], [[]]) for prompt in prompts],
        kind="prompt",
        batch_size=settings["prompts"],
        loading={"shuffle": False},
    )
    engine = Timed(clock, max_new_tokens=settings["response_tokens"])
    online = OnlineData(data, engine, Even(), rounds, lesson=partial(SelectLesson, kind="preference"))
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        precision="32-true",
        gradient_clip_val=CLIP,
        callbacks=[_Phases(clock), PhaseTimes()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, online)
    return scores


class _Phases(Steps):
    """A step with the phases of its round, as the run logs them."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: dict[str, Any], batch: Any, index: int) -> None:
        """Keep them beside its seconds; a step is one micro-batch."""
        super().on_train_batch_end(trainer, module, outputs, batch, index)
        metrics = trainer.datamodule.metrics
        self.clock.steps[-1] |= {name: value for name, value in metrics.items() if name.startswith("train/time/")}


@torch.no_grad()
def _scores(module: Any, prompt: list[int], settings: dict[str, Any]) -> list[float]:
    rows = responses(prompt, 2, settings["response_tokens"])
    packed = pack([Example(prompt, rows)])
    log_probs = module.policy(packed).token
    return torch.zeros(len(rows)).index_add(0, packed.sequence, log_probs).tolist()
