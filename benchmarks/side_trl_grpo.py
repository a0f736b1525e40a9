"""TRL's side of the GRPO comparison: ``GRPOTrainer.train()``, with only the tokenisation (done before) overridden."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from fixed_rows import advantages, responses, reward
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl_compact_head import install
from worker import CLIP, RATE, Clock

#: Options of TRL's trainers that every comparison of whole steps has.
TRAINING: dict[str, Any] = {
    "gradient_checkpointing": False,
    "learning_rate": RATE,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "max_grad_norm": CLIP,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
}


def run(settings: dict[str, Any], prompts: list[list[int]], clock: Clock) -> list[float]:
    """Train over the prompts; return log-prob sums of fixed rows and their loss, before the first step."""
    if settings["compact_head"]:
        install()
    trainer = _Tokenised(
        model=AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32),
        reward_funcs=lambda completion_ids, **_: [reward(ids) for ids in completion_ids],
        args=_options(settings, len(prompts)),
        train_dataset=Dataset.from_dict({"prompt": [str(row) for row in range(len(prompts))]}),
        processing_class=AutoTokenizer.from_pretrained(settings["model"]),
    )
    trainer.given, trainer.clock = prompts, clock
    trainer.add_callback(Steps(trainer, clock))
    scores = _scores(trainer, prompts[0], settings)
    trainer.train()
    return scores


class _Tokenised(GRPOTrainer):
    """Prompts that are token ids already, a clock around the generation, and the loss of the last step."""

    given: list[list[int]]
    clock: Clock

    def _tokenize_prompts(self, prompts: list[str]) -> Any:
        return [self.given[int(row)] for row in prompts], None, {}

    def _generate_single_turn(self, *args: Any, **options: Any) -> Any:
        with self.clock.part("generate"):
            return super()._generate_single_turn(*args, **options)

    def training_step(self, *args: Any, **options: Any) -> Any:
        loss = super().training_step(*args, **options)
        self.last_loss = float(loss)
        return loss


class Steps(TrainerCallback):
    """Times optimiser steps of a trainer that keeps its ``last_loss``."""

    def __init__(self, trainer: Any, clock: Clock) -> None:
        self.trainer, self.clock = trainer, clock

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self.clock.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop it."""
        self.clock.stop(self.trainer.last_loss)


def _options(settings: dict[str, Any], prompts: int) -> GRPOConfig:
    length, accumulate = settings["response_tokens"], settings["accumulate"]
    return GRPOConfig(
        output_dir=settings["output"],
        num_generations=settings["group"],
        per_device_train_batch_size=settings["prompts"] * settings["group"] // accumulate,
        gradient_accumulation_steps=accumulate,
        max_steps=prompts // settings["prompts"],
        max_completion_length=length,
        generation_kwargs={"min_new_tokens": length},  # the end of a sequence is ignored on both sides
        temperature=1.0,
        beta=settings["kl"],
        loss_type="grpo",
        epsilon=0.2,
        bf16=settings["precision"] == "bf16",
        shuffle_dataset=False,
        logging_steps=1,
        use_cpu=settings["device"] == "cpu",
        **TRAINING,
    )


@torch.no_grad()
def _scores(trainer: _Tokenised, prompt: list[int], settings: dict[str, Any]) -> list[float]:
    """Log-prob sums of fixed rows in float32 and their loss, by TRL's functions."""
    rows = responses(prompt, settings["group"], settings["response_tokens"])
    longest = max(map(len, rows))
    device = trainer.model.device
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    prompts = torch.tensor([prompt] * len(rows), device=device)
    model, was = trainer.model, trainer.accelerator.native_amp
    trainer.accelerator.native_amp = False
    token, _, _ = trainer._get_per_token_logps_and_entropies(
        model, torch.cat([prompts, ids], 1), torch.cat([torch.ones_like(prompts), mask], 1), longest
    )
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": torch.tensor(advantages(len(rows)), device=device),
        "ref_per_token_logps": token,
        "num_items_in_batch": mask.sum(),
    }
    trainer.current_gradient_accumulation_steps = 1
    loss = float(trainer._compute_loss(model, inputs))
    trainer.accelerator.native_amp = was
    trainer._metrics["train"].clear()
    trainer._metrics["eval"].clear()
    return [*(token * mask).sum(1).tolist(), loss]
