"""Token-level methods in their modules: what they ask the policy for, denominators, seeded draws, what is logged."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rlhf_lightning.callbacks import LastCheckpoint, StepSeed
from rlhf_lightning.checkpointing import AtomicCheckpointIO
from rlhf_lightning.losses import WeightedSum, cringe, cut, cut_paper, pairwise_cringe, simpo
from rlhf_lightning.methods import AlignmentModule, Judged, Preference, Unpaired
from tests.helpers.jobs import Memory
from tests.helpers.kinds import step
from tests.helpers.training import VOCAB, Builder, trainer

METHODS = {
    "cringe": (Unpaired, partial(cringe, k=1)),
    "pairwise_cringe": (Preference, partial(pairwise_cringe, k=1)),
    "cut": (Judged, cut),
    "cut_paper": (Judged, cut_paper),
}


def module(name: str, **options: Any) -> AlignmentModule[Any]:
    kind, loss = METHODS[name]
    made = kind(Builder("none"), partial(loss, **options), partial(torch.optim.AdamW, lr=0.05))
    made.configure_model()
    return made


def asked(method: AlignmentModule[Any], batch: Any) -> dict[str, Any]:
    """Arguments of the policy's forward other than the batch."""
    seen: dict[str, Any] = {}
    method.policy.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    method(batch)
    return seen


def test_only_negative_tokens_are_asked_for() -> None:
    unpaired, pairs = step("unpaired", 6)[0], step("preference", 3)[0]
    seen = asked(module("cringe", k=4), unpaired)
    assert seen["top_width"] == 5
    assert seen["top_of"].tolist() == (unpaired.desirable == 0).tolist()
    seen = asked(module("pairwise_cringe", k=2), pairs)
    assert seen["top_width"] == 3
    assert seen["top_of"].tolist() == [False, True] * 3
    plain = Preference(Builder("none"), simpo)
    plain.configure_model()
    assert "top_width" not in asked(plain, pairs)


def test_a_sum_asks_for_its_widest_term() -> None:
    terms = {str(k): {"loss": partial(pairwise_cringe, k=k), "weight": 1.0} for k in (2, 6, 3)}
    method = Preference(Builder("none"), WeightedSum(terms))
    method.configure_model()
    assert asked(method, step("preference", 2)[0])["top_width"] == 7


@pytest.mark.parametrize("name", METHODS)
def test_the_cut_of_a_step_does_not_matter(name: str) -> None:
    """Six groups at once, or in two or three micro-batches: the mean of their losses, and the gradients, are equal."""
    results = []
    for parts in (1, 2, 3):
        method = module(name)
        losses = [method(batch).loss / parts for batch in step(method.kind, 6, parts)]
        torch.stack(losses).sum().backward()
        results.append([torch.stack(losses).sum().detach(), *(p.grad for p in method.policy.parameters())])
    for other in results[1:]:
        for value, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(value, expected)


def trained(tmp_path: Any, epochs: int, seed: int, checkpoint: Any = None) -> list[Tensor]:
    method = module("pairwise_cringe", k=VOCAB - 1, alpha=2.0)
    run = trainer(tmp_path, [StepSeed(seed), LastCheckpoint()], plugins=[AtomicCheckpointIO()], max_epochs=epochs)
    run.fit(method, DataLoader(step("preference", 6, 2), batch_size=None), ckpt_path=checkpoint)  # type: ignore[arg-type]
    return [p.detach() for p in method.policy.parameters()]


def test_draws_are_those_of_the_step_after_a_resume(tmp_path: Any) -> None:
    whole = trained(tmp_path / "whole", 3, seed=1)
    trained(tmp_path / "part", 1, seed=1)
    torch.manual_seed(99)  # a new process has another generator
    resumed = trained(tmp_path / "part", 3, seed=1, checkpoint=tmp_path / "part" / "checkpoints" / "last.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    other = trained(tmp_path / "other", 3, seed=2)
    assert not all(torch.equal(a, b) for a, b in zip(whole, other, strict=True))  # chance does matter here


LOGGED = {
    "cringe": {"ce", "contrast", "rank", "reward/chosen", "reward/rejected"},
    "pairwise_cringe": {"gate", "closed", "margin", "ce", "contrast", "rank"},
    "cut": {"detected", "ratio", "detected_prob", "loss/judged", "loss/plain"},
    "cut_paper": {"detected", "ratio", "detected_prob", "loss/judged", "loss/plain"},
}


@pytest.mark.parametrize("name", METHODS)
def test_diagnostics_are_logged(name: str, tmp_path: Any) -> None:
    method, logger = module(name), Memory()
    if name.startswith("cut"):
        method = module(name, threshold=1e-3)  # something is detected
    batches = DataLoader(step(method.kind, 6), batch_size=None)  # type: ignore[arg-type]
    trainer(tmp_path, [StepSeed()], logger=logger).fit(method, batches, batches)
    for prefix in ("train/", "val/"):
        for metric in LOGGED[name]:
            (value,) = logger.series(prefix + metric)
            assert value == value, metric  # not nan


def test_the_share_of_detected_tokens_is_over_criticised_rows(tmp_path: Any) -> None:
    """A threshold of almost 0 detects every criticised token, and none of the rows without a criticism."""
    method, logger = module("cut", threshold=1e-6), Memory()
    batches = DataLoader(step("judged", 6), batch_size=None)  # type: ignore[arg-type]
    trainer(tmp_path, logger=logger).fit(method, batches)
    assert logger.series("train/detected") == [1.0]
