"""Runs whose processes read shares of a model's files: checkpoints and numbers are those of whole weights."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from rlhf_lightning.losses import dpo
from rlhf_lightning.methods import Preference
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import ModelSource, Pretrained, TinyRandom
from rlhf_lightning.strategies import FSDP2Strategy
from tests.helpers import jobs
from tests.helpers.jobs import differences, final_state, fit, in_processes, module_of, ranks, trajectory

TWO = {"devices": 2, "strategy": FSDP2Strategy, "accumulate_grad_batches": 2, "max_epochs": 2}
TINY = TinyRandom(hidden_size=16, intermediate_size=32)


@pytest.fixture
def saved(tmp_path: Path) -> str:
    TINY.load().save_pretrained(tmp_path / "model")
    TINY.tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tiny", "tiny_lora"])
def test_a_killed_run_of_shares_resumes_as_one_of_whole_weights(tmp_path, saved, kind, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert ranks(2, fit, whole, kind, **TWO) == [0, 0]

    def of_files(kind, schedule=None):
        module = module_of(kind, schedule)
        module._build.source = Pretrained(saved)
        return module

    monkeypatch.setattr(jobs, "module_of", of_files)
    assert ranks(2, fit, cut, kind, 7, **TWO) == [-signal.SIGKILL] * 2
    assert ranks(2, fit, cut, kind, **TWO) == [0, 0]
    expected, resumed = final_state(whole), final_state(cut)
    assert expected["global_step"] == 10
    assert differences(expected, resumed) == []


def made(source: ModelSource, adapter: Lora | None, precision: str) -> Preference:
    # Plain gradient descent: Adam's first steps have the size of the learning rate where a gradient is next to nothing.
    rate = 0.5 if precision == "bf16-true" and adapter is None else 0.05
    return Preference(ModelBuilder(source, adapter, "auto"), partial(dpo, beta=0.5), partial(torch.optim.SGD, lr=rate))


def moved(weights: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([(weights[name].float() - start[name].float()).flatten() for name in sorted(start)])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("adapter", [None, Lora(r=2, alpha=16, seed=5)], ids=["full", "lora"])
def test_half_precision_trains_as_in_one_process(tmp_path, saved, precision, adapter):
    one = trajectory(partial(made, TINY, adapter, precision), tmp_path / "one", precision=precision)
    sharded = in_processes(
        2,
        tmp_path / "two",
        trajectory,
        partial(made, Pretrained(saved), adapter, precision),
        tmp_path / "two",
        precision=precision,
        devices=2,
        strategy=FSDP2Strategy,
    )
    assert len(one["metrics"]["train/loss"]) == 6
    for name in ("train/loss", "val/loss", "train/reward/margin"):
        of_two, of_one = (torch.tensor(run["metrics"].get(name, [])) for run in (sharded, one))
        torch.testing.assert_close(of_two, of_one, rtol=0.02, atol=0.03)
    assert one["weights"].keys() == sharded["weights"].keys()
    start = ModelBuilder(TINY, adapter, "none")().policy.state_dict()
    start = {name: value for name, value in start.items() if name in one["weights"]}
    of_two, of_one = moved(sharded["weights"], start), moved(one["weights"], start)
    assert of_one.norm() > 0.1
    assert (of_two - of_one).norm() < 0.1 * of_one.norm()
