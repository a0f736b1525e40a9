"""One DPO run of this project (or of TRL, in TRL's environment) over given token ids, timed step by step.

    python benchmarks/dpo_worker.py {ours|trl} settings.json result.json

Started by ``dpo_vs_trl.py``; both sides share the settings, the clock and what is written. Imports of either library
happen only on its side, so TRL's environment needs nothing of this project.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

BETA, RATE, CLIP = 0.1, 1e-6, 1.0
Row = list[list[int]]  #: prompt, chosen, rejected


class Clock:
    """CPU and wall seconds, and the loss, of each optimiser step: from the batch's arrival to the updated weights."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.start()

    def start(self) -> None:
        """Forget what has passed."""
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def stop(self, loss: float) -> None:
        """End a step."""
        self.steps.append(
            {"cpu": time.process_time() - self._cpu, "wall": time.perf_counter() - self._wall, "loss": loss}
        )
        self.start()


def ours(settings: dict[str, Any], rows: list[Row]) -> dict[str, Any]:
    """The Preference module under Lightning's Trainer."""
    from dataclasses import replace
    from functools import partial

    import lightning as L

    from rlhf_lightning.data.packing import pack
    from rlhf_lightning.losses import dpo
    from rlhf_lightning.methods import Preference
    from rlhf_lightning.models.roles import ModelBuilder
    from rlhf_lightning.models.sources import Pretrained
    from rlhf_lightning.types import Example

    clock = Clock()

    class Timed(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            clock.start()

        def on_train_batch_end(self, _trainer: Any, _module: Any, outputs: dict[str, Any], *_: Any) -> None:
            clock.stop(float(outputs["loss"]))

    size = settings["pairs"]
    examples = [Example(prompt, [chosen, rejected]) for prompt, chosen, rejected in rows]
    batches = [pack(examples[i : i + size]) for i in range(0, len(examples), size)]
    live = settings["reference"] == "live"
    module = Preference(
        ModelBuilder(
            Pretrained(settings["model"]), reference="frozen" if live else "cached", compile=settings["compile"]
        ),
        partial(dpo, beta=BETA),
        partial(torch.optim.AdamW, lr=RATE, weight_decay=0.0, fused=True),
        statistics=settings["statistics"],
    )
    module.configure_model()
    with torch.no_grad():
        log_probs = module.policy(batches[0]).sum().tolist()
    if not live:
        with torch.no_grad(), _autocast(settings):
            batches = [replace(b, reference_log_probs=module.policy(b).token) for b in batches]
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        precision="bf16-mixed" if settings["precision"] == "bf16" else "32-true",
        gradient_clip_val=CLIP,
        callbacks=[Timed()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    return {"log_probs": log_probs, "steps": clock.steps}


def trl(settings: dict[str, Any], rows: list[Row]) -> dict[str, Any]:
    """``DPOTrainer.train()``; the only thing overridden is the tokenisation, which has been done."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    clock = Clock()

    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            self.last_loss = float(loss)
            return loss

    class Timed(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.stop(trainer.last_loss)

    live = settings["reference"] == "live"
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32) if live else None
    size = settings["pairs"]
    columns = {name: [row[i] for row in rows] for i, name in enumerate(("prompt_ids", "chosen_ids", "rejected_ids"))}
    trainer = Trainer(
        model=model,
        ref_model=reference,
        args=DPOConfig(
            output_dir=settings["output"],
            per_device_train_batch_size=size,
            max_steps=len(rows) // size,
            bf16=settings["precision"] == "bf16",
            use_cpu=True,
            gradient_checkpointing=False,
            train_sampling_strategy="sequential",
            beta=BETA,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=CLIP,
            max_length=None,
            precompute_ref_log_probs=not live,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict(columns),
        processing_class=AutoTokenizer.from_pretrained(settings["model"]),
        callbacks=[Timed()],
    )
    log_probs = _trl_log_probs(trainer, rows[:size])
    trainer.train()
    return {"log_probs": log_probs, "steps": clock.steps}


def _trl_log_probs(trainer: Any, rows: list[Row]) -> list[float]:
    """Log-prob sums of the first batch in float32, pair by pair, from TRL's own collator and head."""
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    batch = trainer.data_collator([dict(zip(names, row, strict=True)) for row in rows])
    labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
    with torch.no_grad():
        token = trainer.model(**batch, labels=labels, use_cache=False, fused_lm_head=True).log_probs
    return token.sum(1).view(2, -1).T.flatten().tolist()


def _autocast(settings: dict[str, Any]) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=settings["precision"] == "bf16")


def main() -> None:
    """Run one side and write what was measured."""
    side, settings_path, result_path = sys.argv[1:]
    settings = json.loads(Path(settings_path).read_text())
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    rows = json.loads(Path(settings["rows"]).read_text())
    result = {"ours": ours, "trl": trl}[side](settings, rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    Path(result_path).write_text(json.dumps(result | {"peak_mib": peak}))


if __name__ == "__main__":
    main()
