"""Write what TRL's own KTO trainer computes on given log-probs, as the fixture of tests/losses/test_unpaired.py.

    /tmp/trl/bin/python benchmarks/trl_unpaired_values.py tests/losses/trl_unpaired.json

``KTOTrainer._compute_loss`` runs on a trainer object that holds the settings and on models that return the given
log-probs; see ``benchmarks/trl_loss_values.py``, whose arrangement this is. The mismatched rows give its KL estimate.
"""

from __future__ import annotations

import json
import random
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from torch import Tensor
from trl import KTOTrainer
from trl_loss_values import PROMPT, Rows, common, finite

LENGTHS = [1, 3, 4, 2, 6, 5]  # scored tokens of each response
MISMATCHED = [3, 1, 4, 2, 5, 6]

SETTINGS: dict[str, dict[str, Any]] = {
    "kto@0.1": {"loss_type": "kto", "beta": 0.1},
    "kto@0.5": {"loss_type": "kto", "beta": 0.5},
    "kto_weighted": {"loss_type": "kto", "beta": 0.1, "desirable_weight": 1.33, "undesirable_weight": 0.75},
    "apo_zero_unpaired@0.1": {"loss_type": "apo_zero_unpaired", "beta": 0.1},
    "apo_zero_unpaired_weighted": {
        "loss_type": "apo_zero_unpaired", "beta": 0.5, "desirable_weight": 2.0, "undesirable_weight": 0.5,
    },
}  # fmt: skip


def batches() -> dict[str, dict[str, Any]]:
    """Ordinary log-probs, log-ratios of dozens of nats, policy == reference, one label only, a KL that is clamped."""
    source = random.Random(1)

    def rows(lengths: list[int], low: float = -2.5, high: float = -0.1) -> Rows:
        return [[round(source.uniform(low, high), 4) for _ in range(n)] for n in lengths]

    def batch(labels: list[float], rise: float = 0.0, far: float = 0.0) -> dict[str, Any]:
        policy = [[x - source.choice([0.0, far]) for x in row] for row in rows(LENGTHS)]
        mismatched = rows(MISMATCHED, -5.0, -3.0)
        return {
            "policy": policy, "reference": rows(LENGTHS), "desirable": labels, "mismatched_policy": mismatched,
            "mismatched_reference": [[round(x - rise, 4) for x in row] for row in mismatched],
        }  # fmt: skip

    mixed = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    start = batch(mixed)
    start["reference"] = start["policy"]
    return {
        "ordinary": batch(mixed, rise=0.3),
        "far": batch(mixed, rise=0.1, far=15.0),
        "start": start,
        "clamped": batch(mixed, rise=-0.4),
        "desirable": batch([1.0] * 6, rise=0.2),
        "undesirable": batch([0.0] * 6, rise=0.2),
    }


def padded(rows: Rows) -> tuple[Tensor, Tensor]:
    """Right-padded log-probs of the shifted row, and the mask of the full row."""
    width = PROMPT + max(map(len, rows))
    values, mask = torch.zeros(len(rows), width - 1), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        values[i, PROMPT - 1 : PROMPT - 1 + len(row)] = torch.tensor(row)
        mask[i, PROMPT : PROMPT + len(row)] = 1
    return values, mask


def model(matched: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Any:
    """A model's call that returns the log-probs of the rows it is asked for, told apart by their ids."""

    def call(input_ids: Tensor, **_: Any) -> SimpleNamespace:
        values, mask = matched if bool((input_ids[:, 0] == 1).all()) else other
        zeros = torch.zeros_like(values)
        return SimpleNamespace(log_probs=values * mask[:, 1:], entropy=zeros, mean_logits=zeros)

    return call


def value(batch: dict[str, Any], **settings: Any) -> tuple[float, list[list[float]]]:
    """Loss of KTOTrainer and its gradient."""
    values, mask = padded(batch["policy"])
    values.requires_grad_(True)
    other, other_mask = padded(batch["mismatched_policy"])
    reference, _ = padded(batch["reference"])
    other_reference, _ = padded(batch["mismatched_reference"])
    given = {"desirable_weight": 1.0, "undesirable_weight": 1.0} | settings
    policy = model((values, mask), (other, other_mask))
    trainer = SimpleNamespace(
        **common(), **given, calculate_KL=settings["loss_type"] == "kto", precompute_ref_logps=False,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        ref_model=model((reference, mask), (other_reference, other_mask)),
    )  # fmt: skip
    trainer._compute_kl_logps = partial(KTOTrainer._compute_kl_logps, trainer)
    inputs = {
        "input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask,
        "KL_input_ids": torch.full_like(other_mask, 2), "KL_attention_mask": torch.ones_like(other_mask),
        "KL_completion_mask": other_mask, "label": torch.tensor(batch["desirable"]).bool(),
    }  # fmt: skip
    loss = KTOTrainer._compute_loss(trainer, policy, inputs, return_outputs=False)
    loss.backward()
    return loss.item(), [g[m.bool()].tolist() for g, m in zip(values.grad, mask[:, 1:], strict=True)]


def main(path: str) -> None:
    """Run every setting on every batch and write the fixture."""
    data = batches()
    results: dict[str, dict[str, Any]] = {}
    for name, settings in SETTINGS.items():
        results[name] = {"settings": settings, "values": {}}
        for batch_name, batch in data.items():
            loss, slopes = value(batch, **settings)
            rounded = [[finite(float(f"{x:.7g}")) for x in row] for row in slopes]
            results[name]["values"][batch_name] = {"loss": finite(loss), "gradient": rounded}
    document = {"trl": trl.__version__, "batches": data, "results": results}
    Path(path).write_text(json.dumps(document, separators=(",", ":")).replace('"values"', '\n"values"') + "\n")
    print(f"{len(results)} settings on {len(data)} batches -> {path}")


if __name__ == "__main__":
    main(sys.argv[1])
