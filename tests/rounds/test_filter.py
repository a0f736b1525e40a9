"""Dynamic filtering: groups that teach nothing are left out, and other prompts take their place."""

from __future__ import annotations

import pytest

from rlhf_lightning.types import RolloutOptions
from tests.helpers.fake_rollouts import FakeEngine, Sum, looped


class Fussy(FakeEngine):
    """Gives two responses to prompts of the given seeds, one to all others."""

    def __init__(self, seeds: list[int]) -> None:
        super().__init__(lambda seed, j: [1 + j] if seed in seeds else [3])


def seeds_of(data, positions: list[int]) -> list[int]:
    stream = data.stream
    return [stream.seeds(position, 1)[0] for position in positions]


def loop(informative: list[int], **options):
    """A loop whose prompts at these positions of the stream get two different responses."""
    settings = RolloutOptions(group_size=2, dynamic_filter=True, **options)
    probe, _ = looped(settings)
    engine = Fussy(seeds_of(probe, informative))
    data, module = looped(settings, engine)
    return data, module, engine


def test_refills_take_the_next_prompts():
    """Of positions 0-3 two teach; 4 and 5 replace the others, then 6 replaces 5."""
    data, module, engine = loop([0, 2, 4, 6, 9])
    loader = data.train_dataloader()
    batch = next(iter(loader))
    assert sorted(batch.index.tolist()) == sorted(data.stream.take(0, 8)[[0, 2, 4, 6]].tolist())
    assert [count for count, _ in engine.calls] == [4, 2, 1]
    assert loader.cursor == 7, "the next rollout begins behind the last prompt that was drawn"
    assert module.episodes[0].reward.tolist() == [1.0, 2.0] * 4
    assert data.metrics["train/group/zero_std"] == pytest.approx(3 / 7)


def test_what_is_missing_in_the_end_is_filled_up():
    """Steps keep their size: groups that were left out come back, the first ones first."""
    data, module, engine = loop([1], max_refills=1)
    batch = next(iter(data.train_dataloader()))
    assert len(batch) == 4
    assert [count for count, _ in engine.calls] == [4, 3]
    assert module.episodes[0].reward.tolist() == [1.0, 2.0] + [3.0] * 6
    assert sorted(batch.index.tolist()) == sorted(data.stream.take(0, 4)[[1, 0, 2, 3]].tolist())


def test_no_refill_where_every_group_teaches():
    data, _, engine = loop([0, 1, 2, 3])
    next(iter(data.train_dataloader()))
    assert [count for count, _ in engine.calls] == [4]


def test_one_scored_response_teaches_nothing():
    class Half(Sum):
        def __call__(self, groups):
            return [[row[0], *[None] * (len(row) - 1)] for row in super().__call__(groups)]

    settings = RolloutOptions(group_size=2, dynamic_filter=True, max_refills=2)
    engine = FakeEngine(lambda seed, j: [1 + j])
    data, _ = looped(settings, engine, Half())
    next(iter(data.train_dataloader()))
    assert [count for count, _ in engine.calls] == [4, 4, 4]
