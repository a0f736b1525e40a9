"""The gap between an engine's log-probs and the trainer's."""

from __future__ import annotations

import pytest
import torch

from rlhf_lightning.rollout import TransformersEngine
from rlhf_lightning.rollout.probe import check, gap


def test_a_gap_is_absolute():
    gaps = gap(torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-1.5, -1.0, -3.0]))
    assert gaps == {"mean": 0.5, "max": 1.0}  # signed, the mean would be 1/6


def test_no_tokens_no_gap():
    assert gap(torch.tensor([]), torch.tensor([])) == {"mean": 0.0, "max": 0.0}


def test_the_mean_is_bounded():
    engine = TransformersEngine(None, max_gap=0.1)
    check({"mean": 0.1, "max": 5.0}, engine)
    with pytest.raises(
        RuntimeError, match=r"rollout=transformers .* 0\.1001 nats .*rollout.max_gap=0\.1.*rollout\.dtype"
    ):
        check({"mean": 0.1001, "max": 0.2}, engine)
    check({"mean": 9.0, "max": 9.0}, TransformersEngine(None, max_gap=None))


def test_what_is_not_a_number_is_no_match():
    with pytest.raises(RuntimeError, match="nan"):
        check(gap(torch.tensor([float("nan")]), torch.tensor([0.0])), TransformersEngine(None))
