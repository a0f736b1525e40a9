"""Write what TRL's own GRPO and RLOO trainers compute on log-probs, the fixture of tests/losses/test_policy_trl.py.

    /tmp/trl/bin/python benchmarks/trl_policy_values.py tests/losses/trl_policy.json

``_compute_loss`` of ``GRPOTrainer``, ``GMPOTrainer`` and ``RLOOTrainer`` runs on trainer objects that hold the settings
and return the given log-probs in place of a model's; see ``benchmarks/trl_loss_values.py``, whose arrangement this is.
"""

from __future__ import annotations

import json
import random
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from torch import Tensor
from trl import GRPOTrainer, RLOOTrainer
from trl.experimental.gmpo import GMPOTrainer
from trl_loss_values import Rows, finite

LENGTHS = [1, 4, 6, 3, 5, 2]
MAX_LENGTH = 8

#: ``loss_type`` and what goes with it; a reference is used where beta is not 0.
GRPO_SETTINGS: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "cispo_low_cap": {"loss_type": "cispo", "epsilon_high": 1.1},
    "gspo": {
        "loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4,
    },
    "gspo_wide": {
        "loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.1, "epsilon_high": 0.2,
    },
    "grpo_kl": {"loss_type": "grpo", "beta": 0.1},
    "grpo_kl_corrected": {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": True},
    "dapo_kl_corrected": {"loss_type": "dapo", "beta": 0.04, "use_bias_correction_kl": True},
    "dr_grpo_kl": {"loss_type": "dr_grpo", "beta": 0.1},
    "grpo_entropy": {"loss_type": "bnpo", "entropy_coef": 0.01},
    "grpo_delta": {"loss_type": "grpo", "delta": 1.5},
}  # fmt: skip


def batches() -> dict[str, dict[str, Any]]:
    """Policies near the old one, far from it, and equal to it; advantages of either sign and one of zero."""
    source = random.Random(3)

    def rows(low: float, high: float) -> Rows:
        return [[round(source.uniform(low, high), 4) for _ in range(n)] for n in LENGTHS]

    def moved(by: float, of: Rows) -> Rows:
        return [[round(x + source.uniform(-by, by), 4) for x in row] for row in of]

    out = {}
    for name, by in (("near", 0.02), ("moved", 0.4), ("far", 4.0), ("start", 0.0)):
        old = rows(-2.5, -0.1)
        out[name] = {
            "policy": moved(by, old),
            "old": old,
            "reference": moved(0.3, old),
            "entropy": rows(0.1, 2.0),
            "advantage": [1.5, -0.5, 0.75, -1.25, 0.0, 0.4],
        }
    return out


def padded(rows: Rows) -> tuple[Tensor, Tensor]:
    """Right-padded values and their mask."""
    values, mask = torch.zeros(len(rows), MAX_LENGTH), torch.zeros(len(rows), MAX_LENGTH)
    for i, row in enumerate(rows):
        values[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1.0
    return values, mask


def trainer(values: Tensor, entropy: Tensor, **settings: Any) -> SimpleNamespace:
    """Attributes that ``_compute_loss`` reads of a trainer of one process without accumulation."""
    accelerator = SimpleNamespace(
        num_processes=1, sync_gradients=True, gather=lambda x: x, gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction: x,
    )  # fmt: skip
    args = SimpleNamespace(
        use_bias_correction_kl=settings.pop("use_bias_correction_kl", False),
        delta=settings.pop("delta", None),
        steps_per_generation=1,
    )
    given = {
        "epsilon_low": 0.2, "epsilon_high": 0.2, "beta": 0.0, "importance_sampling_level": "token",
        "entropy_coef": 0.0,
    } | settings  # fmt: skip
    return SimpleNamespace(
        **given,
        args=args,
        accelerator=accelerator,
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        use_adaptive_entropy=False,
        _entropy_bonus_enabled=given["entropy_coef"] != 0.0,
        current_gradient_accumulation_steps=1,
        max_completion_length=MAX_LENGTH,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (values, entropy, None),
    )


def value(kind: Any, batch: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """Loss, gradient with respect to each log-prob, and clip shares of a trainer class."""
    values, mask = padded(batch["policy"])
    values.requires_grad_(True)
    old = padded(batch["old"])[0]
    inputs = {
        "prompt_ids": torch.zeros(len(values), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(values), 1, dtype=torch.long),
        "completion_ids": torch.zeros(len(values), MAX_LENGTH, dtype=torch.long),
        "completion_mask": mask,
        "advantages": torch.tensor(batch["advantage"]),
        "old_per_token_logps": old,
        "old_logps": (old * mask).sum(1),
        "ref_per_token_logps": padded(batch["reference"])[0],
        "num_items_in_batch": mask.sum(),
    }
    stub = trainer(values, padded(batch["entropy"])[0], **settings)
    loss = kind._compute_loss(stub, None, inputs)
    loss.backward()
    metrics = {name: finite(float(numbers[0])) for name, numbers in stub._metrics["train"].items() if "clip" in name}
    gradient = [g[m.bool()].tolist() for g, m in zip(values.grad, mask, strict=True)]
    return {"loss": loss.item(), "gradient": gradient, "metrics": metrics}


def main() -> None:
    """Write the fixture to the path given on the command line."""
    inputs = batches()
    results = {
        name: {batch: value(GRPOTrainer, rows, **settings) for batch, rows in inputs.items()}
        for name, settings in GRPO_SETTINGS.items()
    }
    results["gmpo"] = {
        batch: value(GMPOTrainer, rows, epsilon_low=0.4, epsilon_high=0.4) for batch, rows in inputs.items()
    }
    results["rloo"] = {batch: value(RLOOTrainer, rows) for batch, rows in inputs.items()}
    fixture = {"trl": trl.__version__, "max_length": MAX_LENGTH, "batches": inputs, "results": results}
    Path(sys.argv[1]).write_text(json.dumps(fixture, indent=1) + "\n")


if __name__ == "__main__":
    main()
