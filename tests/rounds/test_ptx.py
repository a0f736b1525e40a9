"""Demonstrations beside the rollouts."""

from __future__ import annotations

from functools import partial

import pytest

from rlhf_lightning.data.batches.plan import ProcessShare
from rlhf_lightning.data.module import AlignmentDataModule
from rlhf_lightning.types import RolloutOptions
from tests.helpers.fake_rollouts import looped
from tests.helpers.training import examples


def demonstrations(batch_size: int):
    return partial(AlignmentDataModule, examples(10, responses=1), batch_size=batch_size)


def test_every_micro_batch_has_its_share():
    """Four demonstrations a step, whatever micro-batches it has; every one comes once before any comes again."""
    options = RolloutOptions(group_size=2, minibatches=2, inner_epochs=2)
    data, _ = looped(options, process_share=ProcessShare(accumulate=2), ptx=demonstrations(5))
    batches = list(data.train_dataloader())
    assert len(batches) == 8
    for step in range(4):
        parts = [batch.ptx for batch in batches[2 * step : 2 * step + 2]]
        assert sum(len(part) for part in parts) == 5
        assert {part.totals for part in parts} == {parts[0].totals}
        assert parts[0].totals.micro_batches == batches[0].totals.micro_batches == 2
        assert sum(len(part.target) for part in parts) == sum(parts[0].totals.slot_tokens)
    once = [int(row) for batch in batches[:4] for row in batch.ptx.index]
    assert sorted(once) == list(range(10))
    assert [int(row) for batch in batches[4:] for row in batch.ptx.index] != once


def test_it_continues_with_the_steps():
    """A function of the step's number: neither the second rollout nor a resumed run starts again."""
    data, _ = looped(RolloutOptions(group_size=2), ptx=demonstrations(5))
    loader = data.train_dataloader()
    batches = list(loader)
    assert [batch.rollout for batch in batches] == [0, 1, 2]
    assert sorted(int(row) for batch in batches[:2] for row in batch.ptx.index) == list(range(10))
    before, _ = looped(RolloutOptions(group_size=2), ptx=demonstrations(5))
    first = before.train_dataloader()
    next(iter(first))
    resumed = data.train_dataloader()
    resumed.load_state_dict(first.state_dict())
    assert [batch.ptx.ids.tolist() for batch in resumed] == [batch.ptx.ids.tolist() for batch in batches[1:]]


def test_too_few_for_the_micro_batches():
    with pytest.raises(ValueError, match=r"data.batch_size=1 groups a step cannot be split into 2 micro-batches"):
        looped(RolloutOptions(group_size=2), process_share=ProcessShare(accumulate=2), ptx=demonstrations(1))


def test_nothing_where_nothing_is_mixed_in():
    data, _ = looped()
    assert next(iter(data.train_dataloader())).ptx is None
