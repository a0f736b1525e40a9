"""Groups for training, made of a round's samples as a selector chose them.

Tokens are those that were drawn: a response has an end-of-sequence token only where it was drawn. The same groups are
written to a file, one JSON row each, which ``data=json`` reads back to the same tokens (``data.tokens.token_rows``).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from rlhf_lightning import types
from rlhf_lightning.data.kinds import kind_of, slot_names
from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.types import DATA, NONE, Example, SampleGroup, Selected


def same_as(
    responses: Sequence[Sequence[Hashable]], of_data: Sequence[Hashable | None]
) -> Int[Tensor, "prompts samples"]:
    """The selectors' input ``same_as``.

    Args:
        responses: of each prompt its samples, as text or as another value that equal responses have in common.
        of_data: the same of the data's response to each prompt; None: the data has none.

    Returns:
        For each sample the first equal one of the prompt, or ``DATA`` where the data's response is equal.
    """
    return torch.tensor(
        [
            [DATA if expected is not None and text == expected else texts.index(text) for text in texts]
            for texts, expected in zip(map(list, responses), of_data, strict=True)
        ],
        dtype=torch.long,
    ).reshape(len(responses), len(responses[0]) if responses else 0)


def leave_out_equal(selected: Selected, equal: Int[Tensor, "prompts samples"]) -> Selected:
    """Leave out groups two of whose responses have the same tokens, which cannot be told apart.

    Args:
        selected: of the round's prompts.
        equal: see :func:`same_as`, by tokens.

    Returns:
        The other groups; ``equal_responses`` counts those left out.
    """
    kept, first = [], equal.tolist()
    for at, (prompt, slots) in enumerate(zip(selected.prompt.tolist(), selected.slots.tolist(), strict=True)):
        responses = [slot if slot == DATA else first[prompt][slot] for slot in slots if slot != NONE]
        if len(set(responses)) == len(responses):
            kept.append(at)
    rows = torch.tensor(kept, dtype=torch.long)
    return Selected(
        selected.prompt[rows],
        selected.slots[rows],
        {name: values[rows] for name, values in selected.numbers.items()},
        {**selected.metrics, "equal_responses": float(len(selected) - len(kept))},
    )


def examples_of(
    groups: Sequence[SampleGroup],
    selected: Selected,
    kind: str,
    data_group: Callable[[SampleGroup], Example] | None = None,
) -> Examples:
    """The groups of a round, tokenised as data of a kind.

    Args:
        groups: the round's prompts with their samples, in the order in which they were selected.
        selected: of them.
        kind: of data that the method learns from.
        data_group: the data's group of a prompt, whose first response is used where a selector chose ``DATA``.

    Raises:
        ValueError: the groups have other slots than the kind, or lack numbers that it needs; or the data's response is
            selected and ``data_group`` is None.
    """
    return Examples.build(_examples(groups, selected, kind, data_group))


def rows_of(
    groups: Sequence[SampleGroup],
    selected: Selected,
    kind: str,
    decode: Callable[[list[int]], str],
    data_group: Callable[[SampleGroup], Example] | None = None,
) -> Iterator[dict[str, Any]]:
    """The groups of a round as JSON rows that are read back to the same examples.

    Args:
        groups: see :func:`examples_of`.
        selected: the same.
        kind: the same.
        decode: ids as text, for people.
        data_group: see :func:`examples_of`.

    Raises:
        ValueError: as :func:`examples_of`.
    """
    examples = _examples(groups, selected, kind, data_group)
    for (prompt, slots), example in zip(
        zip(selected.prompt.tolist(), selected.slots.tolist(), strict=True), examples, strict=True
    ):
        names = slot_names(kind, len(example.responses))
        yield {
            "kind": kind,
            "from": example.row,
            "position": prompt,
            "samples": [None if slot == DATA else slot for slot in slots if slot != NONE],
            "prompt": decode(example.prompt),
            **{name: decode(ids) for name, ids in zip(names, example.responses, strict=True)},
            "prompt_ids": example.prompt,
            "response_ids": example.responses,
            "scored": example.loss_mask,
            "margin": example.margin,
            "numbers": dict(example.numbers),
        }


def _examples(
    groups: Sequence[SampleGroup],
    selected: Selected,
    kind: str,
    data_group: Callable[[SampleGroup], Example] | None,
) -> Iterator[Example]:
    _check(selected, kind)
    numbers = {name: values.tolist() for name, values in by_response(selected).items()}
    margin = selected.numbers.get("margin")
    for at, (prompt, slots) in enumerate(zip(selected.prompt.tolist(), selected.slots.tolist(), strict=True)):
        filled = [slot for slot in slots if slot != NONE]
        if NONE in slots[: len(filled)]:
            raise ValueError(f"a selector left slot {slots.index(NONE)} empty and filled one behind it: {slots}")
        responses, masks = zip(*(response_of(groups[prompt], slot, data_group) for slot in filled), strict=True)
        example = Example([*groups[prompt].prompt], [[*ids] for ids in responses], row=groups[prompt].row)
        if not all(map(all, masks)):
            example = replace(example, loss_mask=[*masks])
        yield replace(
            example,
            margin=None if margin is None else float(margin[at]),
            numbers={name: values[at][: len(filled)] for name, values in numbers.items()},
        )


def response_of(
    group: SampleGroup, slot: int, data_group: Callable[[SampleGroup], Example] | None = None
) -> tuple[Sequence[int], list[bool]]:
    """Tokens of a slot, and which of them are scored; none of an empty slot.

    Args:
        group: a prompt with its samples.
        slot: as in ``Selected.slots``.
        data_group: see :func:`examples_of`.

    Raises:
        ValueError: the slot holds the data's response, and ``data_group`` is None.
    """
    if slot == NONE:
        return [], []
    if slot != DATA:
        ids = group.samples[slot].ids
        return ids, [True] * len(ids)
    if data_group is None:
        raise ValueError("the selector compares samples with the data's responses, but they were not read")
    example = data_group(group)
    return example.responses[0], example.loss_mask[0] if example.loss_mask else [True] * len(example.responses[0])


def by_response(selected: Selected) -> dict[str, NDArray[np.float32]]:
    """A selector's numbers of groups and responses, one for each response, (groups, slots); without the margin."""
    shape = selected.slots.shape
    return {
        name: (values[:, None].expand(shape) if values.ndim == 1 else values).numpy()
        for name, values in selected.numbers.items()
        if name != "margin"
    }


def _check(selected: Selected, kind: str) -> None:
    """Refuse groups that do not fit a kind."""
    declared, count = kind_of(kind), selected.slots.shape[1]
    if declared.slots and count != len(declared.slots):
        raise ValueError(f"the selector makes groups of {count}, and {declared.noun} have {len(declared.slots)}")
    batch: type[types.PackedBatch] = getattr(types, declared.batch)
    if missing := sorted(set(batch.NUMBERS) - selected.numbers.keys()):
        raise ValueError(f"{declared.noun} need {missing} of each response, but the selector gives no such number")
