"""Micro-batches of a step, and the number of processes, change neither samples nor advantages nor steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.methods import PolicyGradient
from rlhf_lightning.strategies import FSDP2Strategy
from rlhf_lightning.types import RolloutOptions
from tests.helpers.jobs import in_processes
from tests.helpers.online import OPTIONS, Unsure, module_of, trajectory

SGD = partial(torch.optim.SGD, lr=0.05)  # Adam divides tiny gradients by their size, and rounding with them
#: What clocks say.
TIMED = ("train/time/", "train/throughput/")
FILTER = RolloutOptions(group_size=3, minibatches=2, inner_epochs=2, dynamic_filter=True, max_refills=2)

RUNS: dict[str, tuple[Callable[[], PolicyGradient], Any]] = {
    "statistics": (lambda: module_of(OPTIONS, optimizer=SGD), None),
    # some responses have no score: denominators and statistics leave them out on every process alike
    "unscored": (lambda: module_of(OPTIONS, optimizer=SGD), Unsure),
    # how many prompts a rollout takes depends on what all processes drew
    "filtered": (lambda: module_of(FILTER, optimizer=SGD), Unsure),
}


def samples(folder: Path) -> list[Any]:
    """Token ids and scores of every rollout."""
    files = sorted((folder / "rollouts").glob("*.jsonl"))
    rows = [[json.loads(line) for line in file.open()] for file in files]  # splitlines() knows more ends of lines
    return [[(row["place"], row["ids"], row["score"]) for row in rollout] for rollout in rows]


def assert_same(one: dict[str, Any], other: dict[str, Any], tolerance: float = 5e-5) -> None:
    """Every logged metric at every step, and every weight."""
    assert one["metrics"].keys() == other["metrics"].keys()
    for name, values in one["metrics"].items():
        if not name.startswith(TIMED):
            metric, limits = torch.tensor(other["metrics"][name]), {"atol": tolerance, "rtol": tolerance}
            expected = torch.tensor(values)
            torch.testing.assert_close(metric, expected, msg=lambda text, name=name: f"{name}: {text}", **limits)
    for name, weight in one["weights"].items():
        torch.testing.assert_close(weight, other["weights"][name], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "unscored" else ()) for name in RUNS]
)
def test_8x1_is_4x2_is_two_processes(tmp_path, name):
    """Fails when statistics are those of a process, or a sample depends on what is drawn with it."""
    make, reward = RUNS[name]
    score = None if reward is None else reward()
    whole = trajectory(make, tmp_path / "whole", score)
    assert len(whole["metrics"]["train/loss"]) == 12
    assert len(set(whole["metrics"]["train/loss"])) > 6
    accumulated = trajectory(make, tmp_path / "cut", score, accumulate_grad_batches=2)
    assert samples(tmp_path / "whole") == samples(tmp_path / "cut")
    assert_same(whole, accumulated)
    two = tmp_path / "two"
    parallel = in_processes(2, two, trajectory, make, two, score, devices=2, strategy="ddp", accumulate_grad_batches=2)
    assert samples(tmp_path / "whole") == samples(two)
    assert_same(whole, parallel)


def test_single_is_fsdp(tmp_path):
    """Two processes, each with half of every weight; weights are gathered for each rollout."""
    make = RUNS["filtered"][0]
    single = trajectory(make, tmp_path / "single", Unsure())
    folder = tmp_path / "fsdp"
    sharded = in_processes(2, folder, trajectory, make, folder, Unsure(), devices=2, strategy=FSDP2Strategy)
    assert samples(tmp_path / "single") == samples(folder)
    assert_same(single, sharded)


def test_first_ratios_are_exactly_one(tmp_path):
    """The old log-probs are those of the first steps' own forward passes, micro-batch by micro-batch."""
    metrics = trajectory(RUNS["statistics"][0], tmp_path, accumulate_grad_batches=2)["metrics"]
    first, later = metrics["train/ratio/max"][::4], metrics["train/ratio/max"][1::4]
    assert set(first) == {1.0}
    assert metrics["train/approx_kl"][::4] == [0.0] * 3
    assert min(later) > 1.0
