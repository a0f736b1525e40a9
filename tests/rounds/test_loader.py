"""The loader's length, order and state, without a Trainer."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from rlhf_lightning.data.batches.plan import ProcessShare
from rlhf_lightning.rounds.prompts import PromptStream
from rlhf_lightning.types import RolloutOptions
from tests.helpers.fake_rollouts import FakeEngine, looped

TWICE = RolloutOptions(group_size=2, minibatches=2, inner_epochs=2)


def numbers(batch) -> list[list[float]]:
    return [batch.ids.tolist(), batch.advantage.tolist(), batch.index.tolist(), [batch.rollout]]


def test_every_prompt_comes_once_before_any_comes_again():
    stream = PromptStream(5, seed=3)
    for start in range(0, 20, 5):
        assert sorted(stream.take(start, 5).tolist()) == [0, 1, 2, 3, 4]
    orders = {tuple(stream.take(start, 5).tolist()) for start in range(0, 50, 5)}
    assert len(orders) > 5
    assert np.array_equal(stream.take(3, 9), np.concatenate([stream.take(3, 4), stream.take(7, 5)]))
    assert PromptStream(5, seed=3, shuffle=False).take(3, 4).tolist() == [3, 4, 0, 1]
    assert len(set(stream.seeds(0, 100))) == 100


def test_an_epoch_takes_up_where_the_last_one_stopped():
    """Twelve prompts, eight a rollout: one rollout an epoch, and nothing is left out over two epochs."""
    data, _ = looped(TWICE)
    loader = data.train_dataloader()
    epochs = [[set(batch.index.tolist()) for batch in loader] for _ in range(3)]
    assert [len(batches) for batches in epochs] == [4, 4, 4] == [len(loader)] * 3
    assert len(set.union(*epochs[0])) == 8
    assert set.union(*epochs[0], *epochs[1]) == set(range(12))


def test_inner_epochs_deal_out_the_same_groups_in_another_way():
    data, _ = looped(TWICE)
    batches = list(data.train_dataloader())
    first, second = ([set(batch.index.tolist()) for batch in batches[at : at + 2]] for at in (0, 2))
    assert set.union(*first) == set.union(*second)
    assert first != second
    assert {batch.rollout for batch in batches} == {0}


def test_micro_batches_share_a_step():
    """Every group once; denominators those of the step."""
    data, _ = looped(RolloutOptions(group_size=2), process_share=ProcessShare(accumulate=2))
    batches = list(data.train_dataloader())
    assert len(batches) == 6
    for step in (batches[0:2], batches[2:4], batches[4:6]):
        assert sum(len(batch) for batch in step) == 4
        assert {batch.totals for batch in step} == {step[0].totals}
        assert (step[0].totals.groups, step[0].totals.micro_batches) == (4, 2)
        assert sum(step[0].totals.slot_tokens) == sum(len(batch.target) for batch in step)
    assert len({int(row) for batch in batches for row in batch.index}) == 12


@pytest.mark.parametrize("taken", [0, 1, 3, 4, 5, 7, 8])
def test_state_resumes_anywhere(taken):
    """Mid-rollout the state brings the rollout; at its end the next one is drawn."""
    options = RolloutOptions(group_size=2, minibatches=2, inner_epochs=2)
    whole, _ = looped(options, count=20)
    loader = whole.train_dataloader()
    expected = [numbers(batch) for _ in range(2) for batch in loader]

    before, _ = looped(options, count=20)
    loader = before.train_dataloader()
    iterator = iter(loader)
    for _ in range(taken):
        next(iterator)
    stored = io.BytesIO()
    torch.save(loader.state_dict(), stored)
    stored.seek(0)

    engine = FakeEngine()
    after, _ = looped(options, engine, count=20, seed=99)  # the state's seed counts
    after.prompts.batching = before.prompts.batching
    loader = after.train_dataloader()
    loader.load_state_dict(torch.load(stored, weights_only=True))
    resumed = [numbers(batch) for batch in loader]
    if taken < 8:
        resumed += [numbers(batch) for batch in loader]
    assert resumed == expected[taken:]
    assert len(engine.calls) == (16 - taken) // 4, "a rollout that the state holds is not drawn again"


@pytest.mark.parametrize(("then", "taken"), [(2, 0), (2, 1), (1, 1), (4, 1)])
def test_a_rollout_that_was_drawn_is_trained_on_whole(then, taken):
    """A state from within its first step holds the rollout, and serves any cut. Nothing is drawn or charged twice."""
    options, count = RolloutOptions(group_size=2, minibatches=2), [0]
    before, _ = looped(options, count=8, process_share=ProcessShare(accumulate=2))
    loader = before.train_dataloader()
    loader.position.taken = lambda: count[0]
    iterator = iter(loader)
    for _ in range(1 + taken):  # the last micro-batch of the step fails where the step is not taken
        next(iterator)
    state = loader.state_dict()
    assert (state["step"], state["number"]) == (0, 1)
    engine = FakeEngine()
    after, _ = looped(options, engine, count=8, process_share=ProcessShare(accumulate=then))
    resumed = after.train_dataloader()
    resumed.load_state_dict(state)
    assert resumed.state_dict()["experience"] is not None
    batches = list(resumed)
    assert sorted(int(row) for batch in batches for row in batch.index) == list(range(8))
    assert {batch.rollout for batch in batches} == {0}
    assert engine.calls == []


def test_another_meaning_of_the_position_is_refused():
    data, _ = looped(TWICE)
    loader = data.train_dataloader()
    next(iter(loader))
    state = loader.state_dict()
    other, _ = looped(RolloutOptions(group_size=2, minibatches=1, inner_epochs=2))
    with pytest.raises(ValueError, match=r"in the middle of epoch 0: method.rollout.minibatches was 2 and is 1"):
        other.train_dataloader().load_state_dict(state)


@pytest.mark.parametrize("key", ["step", "units", "experience"])
def test_the_state_of_another_version_is_refused(key):
    loader = looped(TWICE)[0].train_dataloader()
    next(iter(loader))
    state = loader.state_dict()
    older = {name: value for name, value in state.items() if name != key} | {"position": 1}
    with pytest.raises(ValueError, match=rf"lacks {key} \(it holds .*position.*another version of rlhf-lightning"):
        loader.load_state_dict(older)
    del state["experience"]["truncated"]
    with pytest.raises(ValueError, match=r"lacks truncated \("):
        loader.load_state_dict(state)


def test_an_epoch_cut_short_is_an_epoch():
    """As limit_train_batches does it: the next epoch begins with a rollout of its own."""
    data, _ = looped(TWICE)
    loader = data.train_dataloader()
    iterator = iter(loader)
    next(iterator)
    loader.set_epoch(1)
    batch = next(iter(loader))
    assert (batch.rollout, loader.epoch, loader.position.steps) == (1, 1, 1)


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"batch_size": 8}, TWICE, r"minibatches=2 x data.batch_size=8 = 16 prompts, and the data has 12"),
        ({"max_tokens": 64}, TWICE, r"set data.batch_size \(prompts of an optimiser step\) and data.max_tokens=null"),
        (
            {"process_share": ProcessShare(4, 0, 2)},
            TWICE,
            r"data.batch_size=4 prompts a step cannot be split into 8 micro-batches",
        ),
    ],
)
def test_impossible_sizes(settings, options, message):
    """Found when the data is set up, before any weight loads."""
    with pytest.raises(ValueError, match=message):
        looped(options, **settings)


def test_without_a_module_it_says_what_to_do():
    data, _ = looped()
    data.attach(None)
    with pytest.raises(RuntimeError, match=r"call attach\(module\) first"):
        next(iter(data.train_dataloader()))
