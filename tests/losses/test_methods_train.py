"""Every yaml of conf/method trains in its real module: twelve optimiser steps on one batch lower what it minimises.

On-policy methods have no such batch: each rollout makes another objective (tests/configs/test_methods_fit.py,
tests/learning).
"""

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
from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.scorers.scorer import Scorer
from rlhf_lightning.models.sources import TinyRandom
from tests.helpers.kinds import step
from tests.helpers.loss_inputs import loss_from_yaml, method_yaml
from tests.helpers.training import Builder, trainer


def module_class(name: str) -> type[methods.AlignmentModule[Any]]:
    declared: type[methods.AlignmentModule[Any]] = getattr(methods, method_yaml(name)["_target_"].rpartition(".")[2])
    return declared


METHODS = sorted(
    path.stem for path in (conf_dir() / "method").glob("*.yaml") if module_class(path.stem).kind != "prompt"
)
STEPS = 12
#: Keys of a yaml that are no plain option of its method.
SET_ELSEWHERE = {"_target_", "_partial_", "loss", "defaults", "head", "density_ratio"}


class Objective(Callback):
    """Collects what each step minimises: the loss, or for DFT the negative log-likelihood.

    Its own value, -p log p, rises while p rises towards 1/e: its weights are constants for the gradient.
    """

    def __init__(self, likelihood: bool) -> None:
        self.values: list[float] = []
        self.likelihood = likelihood

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        value = -outputs["log_prob"].mean() if self.likelihood else outputs["loss"]
        self.values.append(value.item())


def builder(method: type[methods.AlignmentModule[Any]]) -> Any:
    """A bigram model, or where a method asks for more than log-probs a small transformer and another as its teacher."""
    if method.actor is Actor and not issubclass(method, methods.ContextDistillation | methods.KnowledgeDistillation):
        return Builder()
    tiny = TinyRandom(hidden_size=16, intermediate_size=32)
    if issubclass(method, methods.InstructedRepresentation):
        return ModelBuilder(tiny, Lora(r=4, seed=1), "auto")
    adapter = Lora(r=4, seed=1) if issubclass(method, methods.ContrastedModels) else None
    return ModelBuilder(tiny, adapter, "teacher", teacher=replace(tiny, seed=1))


@pytest.mark.parametrize("name", METHODS)
def test_training_lowers_the_objective(name: str, tmp_path: Path) -> None:
    body = method_yaml(name)
    method = module_class(name)
    options = {key: value for key, value in body.items() if key not in SET_ELSEWHERE}
    if body.get("head", {}).get("_target_", "").endswith(".Scorer"):  # a gate stands on heads that were trained before
        options["head"] = partial(Scorer, **{key: value for key, value in body["head"].items() if key[0] != "_"})
    module = method(builder(method), loss_from_yaml(body["loss"]), partial(torch.optim.AdamW, lr=0.02), **options)
    batch = step(module.kind, 6)[0]
    if hasattr(module, "standardize"):  # ILQL takes the moments of the returns from the data module, absent here
        module.standardize(batch.score)
    objective = Objective(likelihood=name == "dft")
    trainer(tmp_path, [objective], max_steps=STEPS).fit(module, DataLoader([batch] * STEPS, batch_size=None))  # type: ignore[arg-type]
    assert len(objective.values) == STEPS
    # Statistics of earlier steps (BCO's delta, alpha-DPO's target) move, so compare the ends, not neighbours.
    assert objective.values[-1] < objective.values[0]
