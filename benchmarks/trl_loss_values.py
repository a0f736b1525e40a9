"""Write what TRL's own loss code computes on given log-probs, as the fixture of tests/losses/test_trl.py.

    python -m venv /tmp/trl && /tmp/trl/bin/pip install trl==1.16
    /tmp/trl/bin/python benchmarks/trl_loss_values.py tests/losses/trl_losses.json

The real methods run (``DPOTrainer._compute_loss``, ``CPOTrainer.get_batch_loss_metrics`` and so on), on a trainer
object that holds the settings and a model that returns the given log-probs; nothing of TRL's arithmetic is repeated
here. The fixture keeps the inputs, the settings, and for each setting the loss of the batch and its gradient with
respect to each log-prob of the policy.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from torch import Tensor
from trl import DPOTrainer, SFTTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

PROMPT = 2  # columns of prompt before the responses
LENGTHS = [(1, 3), (4, 4), (6, 2), (3, 5), (2, 1)]  # scored tokens of (chosen, rejected)
Rows = list[list[float]]

DPO_SETTINGS: dict[str, dict[str, Any]] = {
    "sigmoid": {"loss_types": ["sigmoid"]},
    "hinge": {"loss_types": ["hinge"]},
    "ipo": {"loss_types": ["ipo"]},
    "exo_pair": {"loss_types": ["exo_pair"], "label_smoothing": 1e-3},
    "nca_pair": {"loss_types": ["nca_pair"]},
    "robust": {"loss_types": ["robust"], "label_smoothing": 0.2},
    "bco_pair": {"loss_types": ["bco_pair"]},
    "sppo_hard": {"loss_types": ["sppo_hard"]},
    "aot": {"loss_types": ["aot"], "label_smoothing": 0.1},
    "aot_unpaired": {"loss_types": ["aot_unpaired"], "label_smoothing": 0.1},
    "apo_zero": {"loss_types": ["apo_zero"]},
    "apo_down": {"loss_types": ["apo_down"]},
    "discopop": {"loss_types": ["discopop"], "discopop_tau": 0.05},
    "sft": {"loss_types": ["sft"]},
    "sigmoid_norm": {"loss_types": ["sigmoid_norm"]},
    "forward_kl": {"loss_types": ["sigmoid"], "f_divergence_type": "forward_kl"},
    "js_divergence": {"loss_types": ["sigmoid"], "f_divergence_type": "js_divergence"},
    "alpha_divergence": {
        "loss_types": ["sigmoid"],
        "f_divergence_type": "alpha_divergence",
        "f_alpha_divergence_coef": 0.3,
    },
    "ld_alpha": {"loss_types": ["sigmoid"], "ld_alpha": 0.5},
    "use_weighting": {"loss_types": ["sigmoid"], "use_weighting": True},
    "rpo": {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.005]},
    "mpo": {"loss_types": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    "label_smoothing_of_sigmoid": {"loss_types": ["sigmoid"], "label_smoothing": 0.1},
}
CPO_SETTINGS: dict[str, dict[str, Any]] = {
    "simpo": {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0},
    "simpo_with_nll": {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 1.0},
    "alpha_po": {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 0.1, "cpo_alpha": 0.0, "alpha": 0.25},
    "cpo": {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0},
    "cpo_smoothed": {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 0.5, "label_smoothing": 0.1},
}


def batches() -> dict[str, dict[str, Any]]:
    """Per-token log-probs of three batches: ordinary ones, log-ratios of dozens of nats, and policy == reference."""
    source = random.Random(0)

    def rows(slot: int, low: float, high: float) -> Rows:
        return [[round(source.uniform(low, high), 4) for _ in range(lengths[slot])] for lengths in LENGTHS]

    def batch(far: float) -> dict[str, Any]:
        made: dict[str, Any] = {f"{who}_{slot}": rows(i, -2.5, -0.1) for who in ("policy", "reference", "collision")
                                for i, slot in enumerate(("chosen", "rejected"))}  # fmt: skip
        for slot in ("chosen", "rejected"):
            made[f"policy_{slot}"] = [[x - source.choice([0.0, far]) for x in row] for row in made[f"policy_{slot}"]]
        return made

    ordinary, far, start = batch(0.0), batch(15.0), batch(0.0)
    for slot in ("chosen", "rejected"):
        start[f"reference_{slot}"] = start[f"policy_{slot}"]
    return {"ordinary": ordinary, "far": far, "start": start}


def padded(chosen: Rows, rejected: Rows) -> tuple[Tensor, Tensor]:
    """Chosen above rejected, right-padded as TRL does: log-probs of the shifted row, and the mask of the full row."""
    rows = [*chosen, *rejected]
    width = PROMPT + max(map(len, rows))
    values, mask = torch.zeros(len(rows), width - 1), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        values[i, PROMPT - 1 : PROMPT - 1 + len(row)] = torch.tensor(row)
        mask[i, PROMPT : PROMPT + len(row)] = 1
    return values, mask


def gradient(values: Tensor, mask: Tensor, loss: Tensor) -> list[Rows]:
    """Gradient with respect to each log-prob, as rows of (chosen, rejected)."""
    loss.backward()
    rows = [g[m.bool()].tolist() for g, m in zip(values.grad, mask[:, 1:], strict=True)]
    half = len(rows) // 2
    return [rows[:half], rows[half:]]


def forward(log_probs: Tensor, mask: Tensor, collision: Tensor) -> Any:
    """A model's call that returns given log-probs in the shape of TRL's fused head."""
    zeros = torch.zeros_like(log_probs)
    outputs = SimpleNamespace(
        log_probs=log_probs * mask[:, 1:],
        log_sum_sq_probs=collision,
        entropy=zeros,
        mean_logits=zeros,
        is_top1=zeros.bool(),
        label_mask=mask[:, 1:],
    )
    return lambda **_: outputs


def accelerator() -> SimpleNamespace:
    """One process."""
    return SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x, num_processes=1,
        parallelism_config=None,
    )  # fmt: skip


def common() -> dict[str, Any]:
    """Settings that every trainer has, none of which changes a loss."""
    model = torch.nn.Identity()
    model.is_gradient_checkpointing = False
    return {
        "model": model,
        "accelerator": accelerator(),
        "aux_loss_enabled": False,
        "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }


def dpo_value(batch: dict[str, Any], beta: float, **settings: Any) -> tuple[float, list[Rows]]:
    """Loss of DPOTrainer and its gradient."""
    values, mask = padded(batch["policy_chosen"], batch["policy_rejected"])
    values.requires_grad_(True)
    reference, _ = padded(batch["reference_chosen"], batch["reference_rejected"])
    collision, _ = padded(batch["collision_chosen"], batch["collision_rejected"])
    given = {
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "label_smoothing": 0.0,
        "use_weighting": False,
        "loss_weights": [1.0] * len(settings["loss_types"]),
    } | settings
    args = SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=given.pop("discopop_tau", 0.05))
    trainer = SimpleNamespace(
        **common(), **given, beta=beta, args=args, precompute_ref_logps=False,
        ref_model=forward(reference, mask, collision),
    )  # fmt: skip
    inputs = {"input_ids": mask, "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    loss = DPOTrainer._compute_loss(trainer, forward(values, mask, collision), inputs, return_outputs=False)
    return loss.item(), gradient(values, mask, loss)


def summed(values: Tensor, mask: Tensor, average: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of chosen and rejected responses, and the token mean of the chosen ones' likelihood term."""
    loss_mask = mask[:, 1:]
    total = (values * loss_mask).sum(1)
    chosen, rejected = (total / loss_mask.sum(1) if average else total).chunk(2)
    half = len(values) // 2
    nll = -(values * loss_mask)[:half].sum() / loss_mask[:half].sum()
    return chosen, rejected, nll


def cpo_value(batch: dict[str, Any], **settings: Any) -> tuple[float, list[Rows]]:
    """Loss of CPOTrainer (CPO, SimPO, AlphaPO) and its gradient."""
    values, mask = padded(batch["policy_chosen"], batch["policy_rejected"])
    values.requires_grad_(True)
    trainer = SimpleNamespace(**common(), **({"label_smoothing": 0.0, "alpha": 0.0} | settings))
    parts = summed(values, mask, average=settings["loss_type"] == "simpo")
    trainer.cpo_loss = partial(CPOTrainer.cpo_loss, trainer)
    trainer.concatenated_forward = lambda model, _: (*parts[:2], torch.zeros(1), torch.zeros(1), parts[2])
    loss, _ = CPOTrainer.get_batch_loss_metrics(trainer, None, {})
    return loss.item(), gradient(values, mask, loss)


def orpo_value(batch: dict[str, Any], beta: float) -> tuple[float, list[Rows]]:
    """Loss of ORPOTrainer and its gradient; the likelihood term is given, over the response."""
    values, mask = padded(batch["policy_chosen"], batch["policy_rejected"])
    values.requires_grad_(True)
    trainer = SimpleNamespace(**common(), beta=beta)
    parts = summed(values, mask, average=True)
    trainer.odds_ratio_loss = partial(ORPOTrainer.odds_ratio_loss, trainer)
    trainer.concatenated_forward = lambda model, _: (*parts[:2], torch.zeros(1), torch.zeros(1), parts[2])
    loss, _ = ORPOTrainer.get_batch_loss_metrics(trainer, None, {})
    return loss.item(), gradient(values, mask, loss)


def sft_value(batch: dict[str, Any], loss_type: str) -> tuple[float, list[Rows]]:
    """Loss of SFTTrainer on all responses of the batch and its gradient."""
    values, mask = padded(batch["policy_chosen"], batch["policy_rejected"])
    values.requires_grad_(True)
    trainer = SimpleNamespace(
        **common(), compute_loss_func=None, label_smoother=None,
        args=SimpleNamespace(loss_type=loss_type, average_tokens_across_devices=False, max_length=None),
    )  # fmt: skip
    inputs = {"input_ids": mask, "attention_mask": torch.ones_like(mask), "labels": mask}
    loss = SFTTrainer.compute_loss(trainer, forward(values, mask, values.detach()), inputs)
    return loss.item(), gradient(values, mask, loss)


def finite(value: float) -> float | str:
    """JSON has no NaN."""
    return value if math.isfinite(value) else str(value)


def main(path: str) -> None:
    """Run every setting on every batch and write the fixture."""
    data = batches()
    results: dict[str, dict[str, Any]] = {}
    runs: dict[str, tuple[Any, dict[str, Any]]] = {
        f"{name}@{beta}": (dpo_value, {"beta": beta, **settings})
        for name, settings in DPO_SETTINGS.items()
        for beta in (0.1, 0.5)
    }
    runs |= {name: (cpo_value, settings) for name, settings in CPO_SETTINGS.items()}
    runs |= {"orpo": (orpo_value, {"beta": 0.1}), "nll": (sft_value, {"loss_type": "nll"})}
    runs |= {"dft": (sft_value, {"loss_type": "dft"})}
    for name, (run, settings) in runs.items():
        results[name] = {"settings": settings, "values": {}}
        for batch_name, batch in data.items():
            loss, slopes = run(batch, **settings)
            rounded = [[[finite(float(f"{x:.7g}")) for x in row] for row in slot] for slot in slopes]
            results[name]["values"][batch_name] = {"loss": finite(loss), "gradient": rounded}
    document = {"trl": trl.__version__, "batches": data, "results": results}
    Path(path).write_text(json.dumps(document, separators=(",", ":")).replace('"values"', '\n"values"') + "\n")
    print(f"{len(results)} settings on {len(data)} batches -> {path}")


if __name__ == "__main__":
    main(sys.argv[1])
