"""Every yaml of conf/method trains in its real module: twelve optimiser steps on one batch lower what it minimises."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from rlhf_lightning import methods
from rlhf_lightning.conf_dir import conf_dir
from tests.helpers.loss_inputs import loss_from_yaml, method_yaml
from tests.helpers.training import Builder, examples, micro_batches, trainer

METHODS = sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml"))
STEPS = 12


class Objective(Callback):
    """Collects what each step minimises: the loss, or for supervised methods the negative log-likelihood.

    DFT's own value, -p log p, rises while p rises towards 1/e: its weights are constants for the gradient.
    """

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        value = -outputs["log_prob"].mean() if "log_prob" in outputs else outputs["loss"]
        self.values.append(value.item())


@pytest.mark.parametrize("name", METHODS)
def test_training_lowers_the_objective(name: str, tmp_path: Path) -> None:
    body = method_yaml(name)
    supervised = body["_target_"].endswith("Supervised")
    rows = [replace(row, margin=1.5) for row in examples(6, responses=1 if supervised else 2)]
    batch = micro_batches(rows, parts=1)[0]
    options = {key: value for key, value in body.items() if key not in {"_target_", "_partial_", "loss", "defaults"}}
    module = getattr(methods, body["_target_"].rpartition(".")[2])(
        Builder(), loss_from_yaml(body["loss"]), partial(torch.optim.AdamW, lr=0.02), **options
    )
    objective = Objective()
    trainer(tmp_path, [objective], max_steps=STEPS).fit(module, DataLoader([batch] * STEPS, batch_size=None))  # type: ignore[arg-type]
    assert len(objective.values) == STEPS
    # Statistics of earlier steps (BCO's delta, alpha-DPO's target) move, so compare the ends, not neighbours.
    assert objective.values[-1] < objective.values[0]
