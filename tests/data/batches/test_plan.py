"""The plan of an epoch: nothing lost, exact totals, the same steps however they are cut."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlhf_lightning.data.batches import bins
from rlhf_lightning.data.batches.plan import Batching, Plan, plan_epoch, plan_steps


def data(count: int, seed: int = 0, longest: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Lengths and scored tokens of pairs; about log-normal, as real responses are."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(3.3, 0.6, count).astype(np.int64), 3, longest)
    return lengths, np.stack([lengths // 3, lengths // 4 + 1], axis=1).astype(np.int32)


def steps(plan: Plan) -> list[set[int]]:
    """The groups of each step."""
    cuts = plan.cuts[:: plan.micro_batches]
    return [set(plan.order[a:b].tolist()) for a, b in pairwise(cuts)]


batchings = st.one_of(
    st.builds(Batching, batch_size=st.integers(1, 20), seed=st.integers(0, 5), bucket=st.integers(1, 4)),
    st.builds(Batching, batch_size=st.integers(1, 20), shuffle=st.just(False)),
    st.builds(Batching, max_tokens=st.integers(120, 400), seed=st.integers(0, 5), shuffle=st.booleans()),
    st.builds(Batching, max_tokens=st.integers(120, 400), bucket=st.integers(1, 9), padded=st.just(True)),
)


@settings(max_examples=250, deadline=None)
@given(st.integers(1, 90), batchings, st.integers(1, 6), st.integers(0, 3))
def test_every_group_once_exact_totals_and_empty_micro_batches_in_a_short_last_step_only(
    count: int, batching: Batching, micro_batches: int, epoch: int
) -> None:
    assume(batching.batch_size is None or batching.batch_size >= micro_batches)
    lengths, slot_tokens = data(count)
    plan = plan_epoch(lengths, slot_tokens, batching, micro_batches=micro_batches, epoch=epoch)
    assert sorted(plan.order.tolist()) == list(range(count))
    assert len(plan.cuts) == len(plan) * micro_batches + 1
    for step in range(len(plan)):
        members = [plan.micro_batch(step * micro_batches + i) for i in range(micro_batches)]
        empty = sum(len(members) == 0 for members in members)
        assert empty == (max(micro_batches - sum(map(len, members)), 0) if step == len(plan) - 1 else 0)
        together = np.concatenate(members)
        totals = plan.totals(step)
        assert totals.groups == len(together)
        assert totals.slot_tokens == tuple(slot_tokens[together].sum(axis=0).tolist())
        assert totals.micro_batches == micro_batches
        for i, groups in enumerate(members):
            longest = lengths[groups].max(initial=0)
            size = len(groups) * longest if batching.padded else lengths[groups].sum()
            assert plan.tokens[step * micro_batches + i] == size
    assert plan.fill > 0
    again = plan_epoch(lengths, slot_tokens, batching, micro_batches=micro_batches, epoch=epoch)
    assert np.array_equal(plan.order, again.order)
    assert np.array_equal(plan.cuts, again.cuts)


@settings(max_examples=60, deadline=None)
@given(st.integers(40, 300), st.integers(1, 4), st.sampled_from([1, 3]), st.integers(0, 3))
def test_a_step_of_batch_size_holds_the_same_groups_however_it_is_cut(
    count: int, factor: int, bucket: int, epoch: int
) -> None:
    # fails if the shuffle or the bucketing looks at the number of micro-batches
    lengths, slot_tokens = data(count)
    batching = Batching(batch_size=8 * factor, bucket=bucket)
    whole = plan_epoch(lengths, slot_tokens, batching, micro_batches=1, epoch=epoch)
    for micro_batches in (2, 4, 8):
        cut = plan_epoch(lengths, slot_tokens, batching, micro_batches=micro_batches, epoch=epoch)
        assert steps(cut) == steps(whole)
        assert np.array_equal(cut.slot_tokens, whole.slot_tokens)


def test_micro_batches_of_a_step_are_balanced_by_tokens() -> None:
    lengths, slot_tokens = data(4096)
    plan = plan_epoch(lengths, slot_tokens, Batching(batch_size=64), micro_batches=8)
    assert plan.fill > 0.97  # dealing the groups out in shuffled order gives 0.83
    dealt = lengths[plan_epoch(lengths, slot_tokens, Batching(batch_size=64)).order].reshape(-1, 8, 8).sum(axis=2)
    assert dealt.sum() / (dealt.max(axis=1).sum() * 8) < 0.9


@pytest.mark.parametrize("micro_batches", [1, 2, 4, 8])
def test_an_incomplete_last_step_is_kept(micro_batches: int) -> None:
    lengths, slot_tokens = data(41)
    plan = plan_epoch(lengths, slot_tokens, Batching(batch_size=8), micro_batches=micro_batches)
    assert [plan.totals(i).groups for i in range(len(plan))] == [8, 8, 8, 8, 8, 1]
    single = plan_epoch(lengths[:3], slot_tokens[:3], Batching(batch_size=64), micro_batches=micro_batches)
    assert [single.totals(i).groups for i in range(len(single))] == [3]
    assert np.diff(single.cuts).max() == -(-3 // micro_batches)


@settings(max_examples=60, deadline=None)
@given(st.integers(30, 400), st.integers(1, 6), st.booleans(), st.integers(120, 600))
def test_token_budget_holds_and_an_epoch_has_one_length(
    count: int, micro_batches: int, padded: bool, budget: int
) -> None:
    lengths, slot_tokens = data(count)
    batching = Batching(max_tokens=budget, padded=padded, bucket=3)
    plans = [plan_epoch(lengths, slot_tokens, batching, micro_batches=micro_batches, epoch=e) for e in range(4)]
    assert len({len(plan) for plan in plans}) == 1
    assert max(plan.tokens.max() for plan in plans) <= budget


def test_bins_are_full_and_change_with_the_epoch() -> None:
    lengths, slot_tokens = data(20_000)
    batching = Batching(max_tokens=1024, seed=3)
    first, second = (plan_epoch(lengths, slot_tokens, batching, micro_batches=4, epoch=e) for e in (0, 1))
    assert first.fill > 0.98
    together = [{frozenset(plan.micro_batch(i).tolist()) for i in range(len(plan.tokens))} for plan in (first, second)]
    assert len(together[0] & together[1]) < 0.02 * len(together[0])
    other_seed = plan_epoch(lengths, slot_tokens, Batching(max_tokens=1024, seed=4), micro_batches=4)
    assert not np.array_equal(first.order[:100], other_seed.order[:100])


def test_bucketed_steps_have_similar_lengths_and_still_shuffle() -> None:
    lengths, slot_tokens = data(2048)
    plain = plan_epoch(lengths, slot_tokens, Batching(batch_size=16))
    bucketed = plan_epoch(lengths, slot_tokens, Batching(batch_size=16, bucket=16))
    spread = [np.mean(np.ptp(lengths[plan.order].reshape(-1, 16), axis=1)) for plan in (plain, bucketed)]
    assert spread[1] < 0.25 * spread[0]
    assert abs(np.corrcoef(lengths[bucketed.order].reshape(-1, 16).mean(axis=1), np.arange(128))[0, 1]) < 0.3


def test_rows_as_long_as_the_budget_leave_no_room_to_split() -> None:
    lengths = np.full(7, 100)
    slot_tokens = np.full((7, 2), 30)
    plan = plan_epoch(lengths, slot_tokens, Batching(max_tokens=100), micro_batches=4)
    assert np.diff(plan.cuts).tolist() == [1] * 7 + [0]  # a budget is for memory, and never exceeded
    assert plan.tokens.tolist() == [100] * 7 + [0]
    assert [plan.totals(step).groups for step in range(2)] == [4, 3]


def test_a_row_longer_than_the_budget_is_named() -> None:
    lengths, slot_tokens = np.array([5, 50, 7]), np.ones((3, 1), dtype=np.int32)
    with pytest.raises(ValueError, match=r"pairs.jsonl:1 \(50 tokens\).*data.max_tokens to at least 50"):
        plan_epoch(lengths, slot_tokens, Batching(max_tokens=20), name=lambda i: f"pairs.jsonl:{i}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "set one of data.batch_size"),
        ({"batch_size": 4, "max_tokens": 10}, "set one of data.batch_size"),
        ({"batch_size": 0}, "data.batch_size=0"),
        ({"batch_size": 4, "bucket": 0}, "data.bucket=0"),
    ],
)
def test_impossible_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batching(**options)


def test_steps_with_fewer_groups_than_micro_batches_are_refused() -> None:
    lengths, slot_tokens = data(50)
    with pytest.raises(ValueError, match=r"data\.batch_size=4 groups a step cannot be split into 8"):
        plan_epoch(lengths, slot_tokens, Batching(batch_size=4), micro_batches=8)
    with pytest.raises(ValueError, match="no groups"):
        plan_epoch(lengths[:0], slot_tokens[:0], Batching(batch_size=4))


def test_a_draw_that_needs_more_bins_is_not_used() -> None:
    lengths = np.array([51, 49] * 10)  # ten full bins, unless two of 49 meet first: most random orders
    for seed in range(10):
        filled = bins.fill(lengths, 100, 10, padded=False, window=1, rng=np.random.default_rng(seed))
        assert [int(lengths[groups].sum()) for groups in filled] == [100] * 10


def test_best_fit_beats_first_come() -> None:
    lengths = np.array([6, 5, 4, 3, 2])
    bin_of, count = bins.best_fit(np.arange(5), lengths, 10)
    assert count == 2  # 6 + 4 and 5 + 3 + 2; opening a bin whenever the last one is full needs 3
    assert bin_of.tolist() == [0, 1, 0, 1, 1]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("micro_batches", [1, 2, 3])
def test_a_fixed_number_of_full_steps_is_an_epoch(micro_batches, padded):
    """Group by group and number by number: rollouts are planned as they were when they were planned as epochs."""
    lengths, slots = data(24)
    batching = Batching(6, seed=2, padded=padded)
    one = plan_epoch(lengths, slots, batching, micro_batches=micro_batches, epoch=1)
    other = plan_steps(lengths, slots, batching, steps=4, micro_batches=micro_batches, epoch=1)
    for name in ("order", "cuts", "tokens", "slot_tokens"):
        assert getattr(one, name).tolist() == getattr(other, name).tolist(), name


@pytest.mark.parametrize("count", [0, 1, 3, 10, 11])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_fixed_number_of_steps_for_any_number_of_groups(count, micro_batches):
    """Every group once, equally many in each step or one less, exact totals; a step without groups has none."""
    lengths, slots = data(count)
    plan = plan_steps(lengths, slots, Batching(4, seed=2), steps=4, micro_batches=micro_batches)
    sizes = [len(groups) for groups in steps(plan)]
    assert len(plan) == len(sizes) == 4
    assert sorted(np.concatenate([plan.groups(step) for step in range(4)]).tolist()) == list(range(count))
    assert max(sizes) - min(sizes) <= 1
    for step in range(4):
        totals, groups = plan.totals(step), plan.groups(step)
        assert (totals.groups, totals.slot_tokens) == (len(groups), tuple(slots[groups].sum(0).tolist()))
