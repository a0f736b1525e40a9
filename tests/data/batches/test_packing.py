"""Packing, against a plain loop that builds every field one token at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lightning.data.batches.packing import local_totals, pack
from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.types import Example, PreferenceBatch, RankedBatch, StepTotals, SupervisedBatch

TOKENS = st.integers(0, 500)
PAIR = Example([7, 8, 9], [[1, 2], [3, 4, 5]], [[True, True], [False, True, True]], row="a.jsonl:4", margin=0.5)


@st.composite
def groups(draw: st.DrawFn, slots: int | None = None) -> list[tuple]:
    """The fields of groups of one or two responses, some with masks.

    Not ``Example`` itself: under the type-checking hook its constructor draws from ``random``.
    """
    slots = slots or draw(st.sampled_from([1, 2]))
    count = draw(st.integers(1, 6))
    return [draw(group(slots, f"file.jsonl:{i}")) for i in range(count)]


@st.composite
def group(draw: st.DrawFn, slots: int, row: str) -> tuple:
    """The fields of one group; a mask scores at least one token."""
    prompt = draw(st.lists(TOKENS, min_size=1, max_size=6))
    responses = [draw(st.lists(TOKENS, min_size=1, max_size=6)) for _ in range(slots)]
    if draw(st.booleans()):
        return prompt, responses, None, row
    masks = [draw(st.lists(st.booleans(), min_size=len(r), max_size=len(r)).filter(any)) for r in responses]
    return prompt, responses, masks, row


@st.composite
def ragged_groups(draw: st.DrawFn) -> list[tuple]:
    """The fields of lists of one to four responses; those shorter than the longest leave slots empty."""
    return [draw(group(draw(st.integers(1, 4)), f"file.jsonl:{i}")) for i in range(draw(st.integers(1, 5)))]


@st.composite
def several_prompts(draw: st.DrawFn) -> list[tuple]:
    """The fields of groups with a prompt for each of two to four responses, any but one of which may be missing."""
    slots = draw(st.integers(2, 4))
    made = []
    for number in range(draw(st.integers(1, 5))):
        filled = draw(st.lists(st.booleans(), min_size=slots, max_size=slots).filter(any))
        parts = [draw(group(1, "")) if present else ([], [[]], [[]], "") for present in filled]
        masks = [mask or [[True] * len(responses[0])] for _, responses, mask, _ in parts]
        made.append(
            (
                parts[0][0],
                [responses[0] for _, responses, _, _ in parts],
                [mask[0] for mask in masks],
                f"file.jsonl:{number}",
                None,
                tuple(prompt for prompt, *_ in parts[1:]),
            )
        )
    return made


def one_by_one(examples: list[Example]) -> dict[str, list]:
    """Every field of a batch with empty slots or several prompts, one token at a time."""
    slots = max(len(example.responses) for example in examples)
    out: dict[str, list] = {
        name: []
        for name in ("ids", "positions", "prompt_span", "response_span", "parent", "target", "source", "sequence")
    }
    for example in examples:
        prompts = [example.prompt, *example.more_prompts]
        for number in range(slots):
            if number == 0 or example.more_prompts:
                prompt, begin = prompts[number], len(out["ids"])
                out["ids"] += prompt
                out["positions"] += range(len(prompt))
                out["prompt_span"].append([begin, begin + len(prompt)])
            response = example.responses[number] if number < len(example.responses) else []
            mask = example.loss_mask[number] if example.loss_mask and response else [True] * len(response)
            for offset, counts in enumerate(mask):
                if counts:
                    at = len(out["ids"]) + offset
                    out["target"].append(at)
                    out["source"].append(at - 1 if offset else out["prompt_span"][-1][1] - 1)
                    out["sequence"].append(len(out["response_span"]))
            out["parent"].append(len(out["prompt_span"]) - 1)
            out["response_span"].append([len(out["ids"]), len(out["ids"]) + len(response)])
            out["ids"] += response
            out["positions"] += range(len(prompt), len(prompt) + len(response))
    return out


@settings(max_examples=150, deadline=None)
@given(st.one_of(ragged_groups(), several_prompts()))
def test_empty_slots_and_several_prompts_equal_a_plain_loop(fields: list[tuple]) -> None:
    # fails if an empty slot takes its neighbour's span, or a response continues another one's prompt
    examples = [Example(*group) for group in fields]
    batch = pack(examples, kind=None)
    for name, expected in one_by_one(examples).items():
        assert getattr(batch, name).tolist() == expected, name
    assert Examples.build(examples).longest == int(batch.positions.max()) + 1
    slots = max(len(example.responses) for example in examples)
    lengths = [[*map(len, example.responses)] + [0] * (slots - len(example.responses)) for example in examples]
    assert batch.slots == slots
    assert batch.present.view(-1, slots).tolist() == [[length > 0 for length in row] for row in lengths]
    assert [*Examples.build(examples)] == [
        replace(example, responses=example.responses + [[]] * (slots - len(example.responses)),
                loss_mask=example.loss_mask and example.loss_mask + [[]] * (slots - len(example.responses)))
        if example.loss_mask and not all(map(all, example.loss_mask)) else
        replace(example, responses=example.responses + [[]] * (slots - len(example.responses)), loss_mask=None)
        for example in examples
    ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.one_of(ragged_groups(), several_prompts()), st.randoms(use_true_random=False))
def test_numbers_and_labels_stay_with_their_responses(fields: list[tuple], random) -> None:
    # fails if numbers of a shorter list move to the next group, or a selection forgets to take them along
    examples = []
    for number, group_fields in enumerate(fields):
        example = Example(*group_fields)
        numbers = {"score": [100.0 * number + slot for slot in range(len(example.responses))]}
        labels = [[float(token) for token in response] for response in example.responses]
        examples.append(replace(example, numbers=numbers, step_labels=labels))
    chosen = np.array([random.randrange(len(examples)) for _ in range(4)])
    batch = pack(Examples.build(examples).select(chosen), kind="ranked")
    assert isinstance(batch, RankedBatch)
    score, present = batch.score.view(4, -1), batch.present.view(4, -1)
    for row, group_number in enumerate(chosen.tolist()):
        count = len(examples[group_number].responses)
        assert score[row, :count].tolist() == examples[group_number].numbers["score"]
        assert score[row, count:].isnan().all()
        assert not present[row, count:].any()
    if batch.slots == 1:
        steps = pack(Examples.build(examples).select(chosen), kind="steps")
        assert steps.step_label.tolist() == steps.ids[steps.target].tolist()


def plain_loop(examples: list[Example]) -> dict[str, list]:
    """Every field of the batch, one token at a time."""
    out: dict[str, list] = {
        name: []
        for name in ("ids", "positions", "prompt_span", "response_span", "parent", "target", "source", "sequence")
    }
    for parent, example in enumerate(examples):
        begin = len(out["ids"])
        for position, token in enumerate(example.prompt):
            out["ids"].append(token)
            out["positions"].append(position)
        prompt_end = len(out["ids"])
        out["prompt_span"].append([begin, prompt_end])
        for slot, response in enumerate(example.responses):
            out["response_span"].append([len(out["ids"]), len(out["ids"]) + len(response)])
            for offset, token in enumerate(response):
                if example.loss_mask is None or example.loss_mask[slot][offset]:
                    out["target"].append(len(out["ids"]))
                    out["source"].append(prompt_end - 1 if offset == 0 else len(out["ids"]) - 1)
                    out["sequence"].append(len(out["parent"]))
                out["ids"].append(token)
                out["positions"].append(len(example.prompt) + offset)
            out["parent"].append(parent)
    return out


@settings(max_examples=150, deadline=None)
@given(groups())
def test_pack_equals_a_plain_loop(fields: list[tuple]) -> None:
    examples = [Example(*group) for group in fields]
    # fails if: positions restart at 0 in a response, source of a first token is target - 1, or the mask is ignored
    batch = pack(examples)
    for name, expected in plain_loop(examples).items():
        assert getattr(batch, name).tolist() == expected, name
        assert getattr(batch, name).dtype == torch.int64
    assert batch.rows == [example.row for example in examples]
    assert batch.index.tolist() == list(range(len(examples)))


@settings(max_examples=60, deadline=None)
@given(groups(slots=2))
def test_every_scored_token_belongs_to_a_response_and_is_predicted_by_its_own_context(fields: list[tuple]) -> None:
    examples = [Example(*group) for group in fields]
    batch = pack(examples)
    for target, source, response in zip(batch.target, batch.source, batch.sequence, strict=True):
        start, end = batch.response_span[response].tolist()
        prompt_start, prompt_end = batch.prompt_span[batch.parent[response]].tolist()
        assert start <= target < end  # never a prompt token
        assert batch.positions[source] == batch.positions[target] - 1
        assert start <= source < end or source == prompt_end - 1
        assert prompt_start < prompt_end <= start
    assert batch.parent.tolist() == [i // 2 for i in range(2 * len(examples))]  # chosen, rejected, chosen, ...
    assert batch.sequence.tolist() == sorted(batch.sequence.tolist())


@settings(max_examples=40, deadline=None)
@given(groups(), st.randoms(use_true_random=False))
def test_a_selection_of_columns_packs_like_the_list_of_its_examples(fields: list[tuple], random) -> None:
    examples = [Example(*group) for group in fields]
    chosen = [random.randrange(len(examples)) for _ in range(4)]
    view = Examples.build(examples).select(np.array(chosen))
    batch, expected = pack(view), pack([examples[i] for i in chosen])
    for name in ("ids", "positions", "target", "source", "sequence", "response_span"):
        assert torch.equal(getattr(batch, name), getattr(expected, name))
    assert batch.index.tolist() == chosen
    assert batch.totals == expected.totals
    assert [view[i] for i in range(4)] == [Examples.build(examples)[i] for i in chosen]


def test_worked_example() -> None:
    batch = pack([PAIR])
    assert isinstance(batch, PreferenceBatch)
    assert batch.ids.tolist() == [7, 8, 9, 1, 2, 3, 4, 5]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 3, 4, 5]
    assert batch.target.tolist() == [3, 4, 6, 7]
    assert batch.source.tolist() == [2, 3, 5, 6]
    assert batch.sequence.tolist() == [0, 0, 1, 1]
    assert batch.margin is not None
    assert batch.margin.tolist() == [0.5]
    assert batch.totals == StepTotals(groups=1, slot_tokens=(2, 2), micro_batches=1)


def test_first_response_turns_pairs_into_demonstrations() -> None:
    batch = pack(Examples.build([PAIR]).first_response())
    assert isinstance(batch, SupervisedBatch)
    assert batch.ids.tolist() == [7, 8, 9, 1, 2]
    assert batch.totals.slot_tokens == (2,)


def test_totals_indices_and_reference_are_passed_on() -> None:
    totals = StepTotals(8, (40, 44), 4)
    cached = np.array([-1.0, -2.0, -3.0, -4.0], dtype=np.float32)
    batch = pack([PAIR], totals=totals, indices=[17], reference_log_probs=cached)
    assert batch.totals is totals
    assert batch.index.tolist() == [17]
    assert batch.reference_log_probs is not None
    assert batch.ragged(batch.reference_log_probs).sum().tolist() == [-3.0, -7.0]
    with pytest.raises(ValueError, match="3 reference log-probs for 4 scored tokens"):
        pack([PAIR], reference_log_probs=cached[:3])


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (Example([], [[1], [2]], row="f:1"), "f:1: the prompt has no token"),
        (Example([1], [[], []], row="f:2"), "f:2: no response has a token"),
        (Example([1], [[1], [2]], row="f:3", more_prompts=([1],)), "f:3: 2 prompts where earlier examples have 1"),
        (Example([1], [[1], [2]], [[True], [False]], row="f:4"), "f:4: a response without a scored token"),
        (Example([1], [[1], [2]], [[True], [True, True]], row="f:5"), "f:5: the scored masks"),
        (Example([1], [[1], [2]], row="f:6"), "f:6: no margin"),
    ],
)
def test_malformed_examples_are_named(example: Example, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Examples.build([PAIR, example])


def test_examples_are_a_sequence_with_provenance() -> None:
    examples = Examples.build([PAIR, Example([1], [[2], [3]], margin=1.0)])
    assert examples[0] == PAIR
    assert len(examples[1:]) == 1
    assert examples.rows() == ["a.jsonl:4", "example 1"]
    assert examples.lengths.tolist() == [8, 3]
    assert examples.padded_lengths.tolist() == [12, 4]
    assert local_totals(examples) == StepTotals(2, (3, 3), 1)
    assert [example.row for example in examples] == ["a.jsonl:4", ""]
