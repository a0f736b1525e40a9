"""TRL's side of the comparison: ``train()`` of its trainers, with only the tokenisation (done before) overridden."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl_compact_head import install
from worker import BETA, CLIP, RATE, Clock, Row

HEAD = 1e-2  #: every weight of a reward head, as on the other side


def run(settings: dict[str, Any], rows: list[Row], clock: Clock) -> list[float]:
    """Train over the rows; return log-prob sums (or rewards) of the first batch before the first step."""
    if settings["compact_head"]:
        install()
    trainer = MAKERS[settings["method"]](settings, rows)
    trainer.add_callback(_Timed(trainer, clock))
    scores = _scores(trainer, settings["rows_a_step"])
    trainer.train()
    return scores


class _Timed(TrainerCallback):
    def __init__(self, trainer: Any, clock: Clock) -> None:
        self.trainer, self.clock = trainer, clock

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.clock.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.clock.stop(self.trainer.last_loss)


class _Tokenised:
    """Mixin of every trainer: rows that are token ids already, and the loss of the last step."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self.last_loss = float(loss)
        return loss


def _options(settings: dict[str, Any], rows: list[Row]) -> dict[str, Any]:
    return {
        "output_dir": settings["output"],
        "per_device_train_batch_size": settings["rows_a_step"],
        "max_steps": len(rows) // settings["rows_a_step"],
        "bf16": settings["precision"] == "bf16",
        "use_cpu": settings["device"] == "cpu",
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": CLIP,
        "max_length": None,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }


def _language_models(settings: dict[str, Any]) -> dict[str, Any]:
    load = AutoModelForCausalLM.from_pretrained
    return {
        "model": load(settings["model"], dtype=torch.float32),
        "ref_model": load(settings["model"], dtype=torch.float32) if settings["reference"] == "live" else None,
        "processing_class": AutoTokenizer.from_pretrained(settings["model"]),
    }


def _columns(rows: list[Row], *names: str) -> dict[str, Any]:
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def _dpo(settings: dict[str, Any], rows: list[Row]) -> Any:
    trainer = type("Trainer", (_Tokenised, DPOTrainer), {})
    cached = settings["reference"] == "cached"
    return trainer(
        **_language_models(settings),
        args=DPOConfig(beta=BETA, precompute_ref_log_probs=cached, **_options(settings, rows)),
        train_dataset=Dataset.from_dict(_columns(rows, "prompt_ids", "chosen_ids", "rejected_ids")),
    )


def _kto(settings: dict[str, Any], rows: list[Row]) -> Any:
    trainer = type("Trainer", (_Tokenised, KTOTrainer), {})
    cached = settings["reference"] == "cached"
    columns = _columns(rows, "prompt_ids", "completion_ids", "KL_completion_ids")
    columns["label"] = [bool(row[3][0]) for row in rows]
    return trainer(
        **_language_models(settings),
        args=KTOConfig(beta=BETA, precompute_ref_log_probs=cached, **_options(settings, rows)),
        train_dataset=Dataset.from_dict(columns),
    )


def _sft(settings: dict[str, Any], rows: list[Row]) -> Any:
    trainer = type("Trainer", (_Tokenised, SFTTrainer), {})
    models = _language_models(settings)
    del models["ref_model"]
    columns = {
        "input_ids": [prompt + response for prompt, response in rows],
        "labels": [[-100] * len(prompt) + response for prompt, response in rows],
    }
    options = _options(settings, rows) | {"padding_free": settings["padding_free"], "shuffle_dataset": False}
    return trainer(**models, args=SFTConfig(**options), train_dataset=Dataset.from_dict(columns))


def _reward(settings: dict[str, Any], rows: list[Row]) -> Any:
    trainer = type("Trainer", (_Tokenised, RewardTrainer), {})
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    model = AutoModelForSequenceClassification.from_pretrained(settings["model"], num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    torch.nn.init.constant_(model.score.weight, HEAD)
    columns = {
        "chosen_ids": [prompt + chosen for prompt, chosen, _ in rows],
        "rejected_ids": [prompt + rejected for prompt, _, rejected in rows],
    }
    options = _options(settings, rows)
    return trainer(
        model=model,
        args=RewardConfig(**options),
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
    )


#: By method: its trainer, made of settings and rows.
MAKERS = {"dpo": _dpo, "kto": _kto, "bradley_terry": _reward, "sft": _sft}


@torch.no_grad()
def _scores(trainer: Any, size: int) -> list[float]:
    """Log-prob sums or rewards of the first batch in float32, row by row, from TRL's own collator and head."""
    collated = trainer.data_collator([trainer.train_dataset[i] for i in range(size)])
    batch = {name: value.to(trainer.model.device) for name, value in collated.items()}
    if isinstance(trainer, RewardTrainer):
        return trainer.model(**batch, use_cache=False).logits.view(2, -1).T.flatten().tolist()
    if isinstance(trainer, SFTTrainer):
        return _response_sums(trainer, batch, size)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    token = trainer.model(**inputs, labels=labels, use_cache=False, fused_lm_head=True).log_probs
    sums = token.sum(1)
    return (sums.view(2, -1).T.flatten() if isinstance(trainer, DPOTrainer) else sums).tolist()


def _response_sums(trainer: Any, batch: dict[str, Any], size: int) -> list[float]:
    """Log-prob sums of responses, of padded rows or of one row of all of them."""
    token = trainer.model(**batch, use_cache=False, fused_lm_head=True).log_probs
    if not trainer.padding_free:
        return token.sum(1).tolist()
    row = (batch["position_ids"][0] == 0).long().cumsum(0) - 1
    # A token's log-prob stands at the position before it.
    return token.new_zeros(size).index_add(0, row[1:], token[0]).tolist()
