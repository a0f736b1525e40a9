"""TRL's side of the online DPO comparison: ``OnlineDPOTrainer.train()`` of TRL's experimental part, as it is."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from fixed_rows import responses, reward
from side_trl_grpo import TRAINING, Steps
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer
from worker import BETA, Clock


def run(settings: dict[str, Any], prompts: list[dict[str, Any]], clock: Clock) -> list[float]:
    """Train over the prompts; return log-prob sums of fixed rows before the first step."""
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    trainer = (_Compact if settings["compact_head"] else _Timed)(
        model=model,
        ref_model=AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32),
        reward_funcs=lambda completion_ids, **_: [reward(ids) for ids in completion_ids],
        args=_options(settings, len(prompts)),
        train_dataset=Dataset.from_dict({"prompt": [prompt["text"] for prompt in prompts]}),
        processing_class=AutoTokenizer.from_pretrained(settings["model"]),
    )
    trainer.clock, trainer.drawn = clock, 0
    trainer.add_callback(Steps(trainer, clock))
    scores = _scores(trainer, prompts[0]["ids"], settings)
    trainer.train()
    expected = 2 * len(prompts) * settings["response_tokens"]
    if trainer.drawn != expected:
        raise SystemExit(f"TRL drew {trainer.drawn} tokens, and the comparison is about {expected}")
    return scores


class _Timed(OnlineDPOTrainer):
    """A clock around the generation, the loss of the last step, and a count of what was drawn; rows in their order."""

    clock: Clock

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def _generate(self, *args: Any, **options: Any) -> Any:
        with self.clock.part("generate"):
            drawn = super()._generate(*args, **options)
        self.drawn += int(drawn[3].sum())
        return drawn

    def training_step(self, *args: Any, **options: Any) -> Any:
        loss = super().training_step(*args, **options)
        self.last_loss = float(loss) * self.args.gradient_accumulation_steps
        return loss


class _Compact(_Timed):
    """TRL*: only the tokens that are drawn reach the vocabulary, in the policy's and in the reference's pass."""

    def _forward(
        self, model: Any, prompt_ids: Any, prompt_mask: Any, completion_ids: Any, completion_mask: Any, _: Any = None
    ) -> torch.Tensor:
        ids, mask = torch.cat([prompt_ids, completion_ids], 1), torch.cat([prompt_mask, completion_mask], 1)
        logits = model(ids, attention_mask=mask, logits_to_keep=completion_ids.shape[1] + 1).logits[:, :-1]
        return logits.log_softmax(-1).gather(2, completion_ids[..., None])[..., 0]


def _options(settings: dict[str, Any], prompts: int) -> OnlineDPOConfig:
    length = settings["response_tokens"]
    return OnlineDPOConfig(
        output_dir=settings["output"],
        per_device_train_batch_size=settings["prompts"] // settings["accumulate"],
        gradient_accumulation_steps=settings["accumulate"],
        max_steps=prompts // settings["prompts"],
        max_new_tokens=length,
        max_length=4096,
        generation_kwargs={"min_new_tokens": length},  # the end of a sequence is ignored on both sides
        temperature=1.0,
        beta=BETA,
        bf16=False,
        logging_steps=1000,
        use_cpu=True,
        **TRAINING,
    )


@torch.no_grad()
def _scores(trainer: _Timed, prompt: list[int], settings: dict[str, Any]) -> list[float]:
    """Log-prob sums of fixed rows by TRL's own function."""
    rows = responses(prompt, 2, settings["response_tokens"])
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    prompts = torch.tensor([prompt] * len(rows))
    token = trainer._forward(trainer.model, prompts, torch.ones_like(prompts), ids, mask)
    return (token * mask).sum(1).tolist()
