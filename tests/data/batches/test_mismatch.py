"""KTO's mismatched responses: partners, batches, numbers of processes, and the cache."""

from __future__ import annotations

from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lightning.data.batches import mismatch
from rlhf_lightning.data.batches.loader import EpochLoader
from rlhf_lightning.data.batches.mismatch import Mismatches, partners
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.data.batches.plan import Batching, ProcessShare
from rlhf_lightning.data.module import AlignmentDataModule
from rlhf_lightning.data.reference.store import ReferenceStore, ReferenceWriter
from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.types import Example, UnpairedBatch

GROUPS = 24


def responses(count=GROUPS, seed=0, prompts=None):
    """Labelled responses of random lengths, some prompts several times."""
    rng = np.random.default_rng(seed)
    asked = [rng.integers(0, 50, rng.integers(1, 6)).tolist() for _ in range(prompts or count)]
    return Examples.build(
        Example(
            asked[i % len(asked)],
            [[100 + i, *rng.integers(0, 50, rng.integers(0, 7)).tolist()]],
            row=f"f:{i}",
            numbers={"desirable": [float(i % 2)]},
        )
        for i in range(count)
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=40).filter(lambda drawn: len(set(drawn)) > 1))
def test_no_prompt_ever_gets_a_response_of_its_own(drawn) -> None:
    prompts = np.array(drawn)
    partner = partners(prompts)
    assert (prompts[partner] != prompts).all()
    assert np.array_equal(partner, partners(prompts))
    # the walk: from the offset on, the next row with another prompt
    offset = int(np.random.default_rng([mismatch._SEED, len(prompts)]).integers(1, len(prompts)))
    for row, match in enumerate(partner.tolist()):
        at = (row + offset) % len(prompts)
        while prompts[at] == prompts[row]:
            at = (at + 1) % len(prompts)
        assert match == at


def test_with_distinct_prompts_every_response_is_used_once():
    # fails if responses are drawn with replacement, or the order is only reversed (an odd row would meet itself)
    for count in (2, 3, 24, 101):
        assert sorted(partners(np.arange(count)).tolist()) == list(range(count))


def test_one_prompt_alone_is_refused_with_the_fix():
    with pytest.raises(DataError, match=r"all 3 rows of the training data have the same prompt.*=apo_zero_unpaired"):
        Mismatches.draw(responses(3, prompts=1))
    data = AlignmentDataModule(responses(4, prompts=1), kind="unpaired", mismatched=True)
    with pytest.raises(DataError, match="all 4 rows of the training data"):
        data.setup()
    data = AlignmentDataModule(responses(), kind="unpaired", mismatched=True, validation=responses(2, prompts=1))
    with pytest.raises(DataError, match="all 2 rows of the validation data"):
        data.setup()
    AlignmentDataModule(responses(40, prompts=1), kind="unpaired").setup()  # nobody asked for them
    with pytest.raises(ValueError, match="one response a prompt, and the examples have 2"):
        Mismatches.draw(Examples.build([Example([1], [[1], [2]])]))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(2, 6))
def test_selected_rows_are_those_of_a_plain_loop(seed, count, prompts) -> None:
    # fails if a gather is off by one, the cut is missed, or scored tokens are counted for the uncut response
    examples = responses(count, seed, min(prompts, count))
    if len(set(map(tuple, (e.prompt for e in examples)))) == 1:
        return
    drawn = Mismatches.draw(examples)
    groups = np.random.default_rng(seed).integers(0, count, 5)
    got, longest = drawn.select(groups), int(examples.lengths.max())
    for made, group in zip(got, groups.tolist(), strict=True):
        example, other = examples[group], examples[int(drawn.partner[group])]
        assert made.prompt == example.prompt
        assert made.responses == [other.responses[0][: longest - len(example.prompt)]]
        assert made.row == f"{example.row} with the response of {other.row}"
    assert np.array_equal(got.slot_tokens, drawn.slot_tokens[groups])
    assert np.array_equal(got.lengths, drawn.lengths[groups])
    batch = pack(got)
    assert len(batch.target) == got.slot_tokens.sum()
    assert max(drawn.lengths) <= longest


def test_cut_responses_count_their_scored_tokens_only():
    long = Example([1] * 9, [[7]])
    masked = Example([2], [[4, 5, 6, 7]], [[True, False, False, True]])
    drawn = Mismatches.draw(Examples.build([long, masked]))
    assert drawn.lengths.tolist() == [10, 2]
    assert drawn.slot_tokens.tolist() == [[1], [1]]
    assert drawn.select(np.array([0]))[0].responses == [[4]]


# In batches


def told(batches):
    """Prompt and response of every row, batch by batch."""
    return [
        [
            (tuple(batch.ids[slice(*prompt)].tolist()), tuple(batch.ids[slice(*response)].tolist()))
            for prompt, response in zip(batch.prompt_span.tolist(), batch.response_span.tolist(), strict=True)
        ]
        for batch in batches
    ]


def loader(accumulate=1, rank=0, world_size=1, batching=None, **options):
    examples = responses()
    return EpochLoader(
        examples,
        batching or Batching(batch_size=8, seed=3),
        accumulate=accumulate,
        rank=rank,
        world_size=world_size,
        kind="unpaired",
        mismatches=Mismatches.draw(examples),
        **options,
    )


@pytest.mark.parametrize("batching", [Batching(batch_size=8, seed=3), Batching(max_tokens=30, seed=3)])
def test_the_first_micro_batch_has_those_of_its_whole_step(batching):
    batches = list(loader(accumulate=4, batching=batching))
    drawn = Mismatches.draw(responses())
    for start in range(0, len(batches), 4):
        step = batches[start : start + 4]
        assert all(type(batch) is UnpairedBatch for batch in step)
        assert [len(batch.mismatched) for batch in step] == [4, 0, 0, 0]
        for batch, brought in zip(step, step[0].mismatched, strict=True):
            assert brought.index.tolist() == batch.index.tolist()
            assert told([brought]) == told([pack(drawn.select(batch.index.numpy()))])
            assert brought.totals.groups == batch.totals.groups
            assert brought.totals.micro_batches == 4
        tokens = sum(len(brought.target) for brought in step[0].mismatched)
        assert {brought.totals.slot_tokens for brought in step[0].mismatched} == {(tokens,)}


def rows_of_steps(loaders, accumulate):
    """The mismatched rows of every step, over all processes."""
    steps = []
    for together in zip(*(list(each) for each in loaders), strict=True):
        brought = chain(*(batch.mismatched for batch in together))
        steps.append(sorted(chain(*told(brought))))
    return [sorted(chain(*steps[i : i + accumulate])) for i in range(0, len(steps), accumulate)]


def test_a_step_has_the_same_mismatched_rows_however_it_is_cut():
    whole = rows_of_steps([loader()], 1)
    assert [len(step) for step in whole] == [8, 8, 8]
    assert rows_of_steps([loader(accumulate=2)], 2) == whole
    assert rows_of_steps([loader(accumulate=8)], 8) == whole  # micro-batches of one row
    assert rows_of_steps([loader(accumulate=2, rank=rank, world_size=2) for rank in (0, 1)], 2) == whole


def test_the_partners_do_not_depend_on_the_training_seed():
    # fails if the offset is drawn from the order's seed: every seed of a sweep would miss the reference cache
    orders = [rows_of_steps([loader(batching=Batching(batch_size=8, seed=seed))], 1) for seed in (0, 1)]
    assert orders[0] != orders[1]
    assert sorted(chain(*orders[0])) == sorted(chain(*orders[1]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_gives_the_same(workers):
    expected = list(loader(accumulate=4))
    for stop in (1, 4, 5, 8):  # a step that was begun is begun again
        first = loader(accumulate=4, workers=workers)
        list(islice(first, stop))
        second = loader(accumulate=4, workers=workers)
        second.load_state_dict(first.state_dict())
        rest, left = list(second), expected[stop // 4 * 4 :]
        assert told(rest) == told(left)
        assert [told(batch.mismatched) for batch in rest] == [told(batch.mismatched) for batch in left]


def test_batches_move_with_their_mismatched_rows():
    batch = next(iter(loader(accumulate=2)))
    moved = batch.to("meta")
    assert {brought.ids.device.type for brought in moved.mismatched} == {"meta"}
    assert len(moved.mismatched) == 2


# In the data module


def module(**options):
    data = AlignmentDataModule(
        responses(), kind="unpaired", validation=responses(7, seed=5), batch_size=8, mismatched=True, **options
    )
    data.setup()
    return data


def test_evaluation_batches_have_those_of_their_prompts():
    batches = list(module(loading={"eval_batch_size": 3}).val_dataloader())
    drawn = Mismatches.draw(responses(7, seed=5))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    for batch in batches:
        (brought,) = batch.mismatched
        assert told([brought]) == told([pack(drawn.select(batch.index.numpy()))])
        assert brought.totals.groups == batch.totals.groups == 7


def test_by_default_batches_have_none():
    data = AlignmentDataModule(responses(), kind="unpaired", batch_size=8)
    data.setup()
    assert {len(batch.mismatched) for batch in data.train_dataloader()} == {0}


def log_probs(batch):
    """Log-probs that depend on prompt, response and position, as a model's do."""
    prompts = [sum(batch.ids[slice(*span)].tolist()) for span in batch.prompt_span.tolist()]
    return (
        torch.tensor([-0.01 * prompts[parent] for parent in batch.parent[batch.sequence]])
        - 0.001 * batch.ids[batch.target].float()
    )


def test_the_reference_cache_covers_them_for_every_seed(tmp_path: Path):
    data, store = module(process_share=ProcessShare(accumulate=2)), ReferenceStore(tmp_path, "model")
    passed = list(data.reference_loader(store))
    with ReferenceWriter(store) as writer:
        for batch in passed:
            writer.put(batch, log_probs(batch))
    again = ReferenceStore(tmp_path, "model")
    for seed in (0, 9):  # the second seed finds everything
        other = module(process_share=ProcessShare(accumulate=2), seed=seed)
        assert len(other.reference_loader(again, checks=0)) == 0
        other.reference_store = again
        loaders = [*other.train_dataloader(), *other.val_dataloader()]
        for batch in chain(loaders, *(batch.mismatched for batch in loaders)):
            torch.testing.assert_close(batch.reference_log_probs, log_probs(batch))
    assert sum(len(batch) for batch in passed) == 2 * (GROUPS + 7)


def test_empty_slots_and_several_prompts_need_no_entry(tmp_path: Path):
    lists = [Example([1, 2], [[3], [4, 5]], row="a:1"), Example([6], [[7]], row="a:2")]
    judged = [
        Example([], [[], [3, 4]], more_prompts=([1],), row="b:1"),
        Example([9], [[3], [3]], more_prompts=([1],), row="b:2"),
    ]
    store = ReferenceStore(tmp_path, "model")
    for made in (Examples.build(lists), Examples.build(judged)):
        batch = pack(made)
        with ReferenceWriter(store) as writer:
            writer.put(batch, log_probs(batch))
        assert len(store.missing(made)) == 0
        torch.testing.assert_close(torch.from_numpy(store.log_probs(made)), log_probs(batch))
        store.verify(made, lambda batch: batch.ragged(log_probs(batch)))
    assert len(store) == 3 + 3
    bad = pack(Examples.build(judged))
    with pytest.raises(Exception, match="b:2: the reference model gives"):
        ReferenceWriter(ReferenceStore(tmp_path, "other")).put(bad, torch.tensor([0.0, 0.0, 0.0, float("nan")]))
