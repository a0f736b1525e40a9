"""Steps from the tokenised parts of a row to one group: checks, equal responses, labels of steps, negatives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from rlhf_lightning.data.kinds import slot_names
from rlhf_lightning.data.rows.messages import Turns, in_loss, is_empty
from rlhf_lightning.data.rows.problems import ProblemKind, RowError, lone_surrogate
from rlhf_lightning.data.rows.records import Record, say
from rlhf_lightning.data.sources.base import Row
from rlhf_lightning.data.tokens.conversations import Rendered
from rlhf_lightning.data.tokens.converters import Native
from rlhf_lightning.data.tokens.encode import Encoded
from rlhf_lightning.types import Example

#: Formats whose every second row is the hard negative of the row before it.
_NEGATIVE_BEHIND = frozenset({"coin"})


def with_negatives(rows: Iterable[tuple[Row, Record, Example]]) -> Iterator[Native]:
    """Rows with their kinds; of CoIN's tables every second row becomes the hard negative of the one before it."""
    held: tuple[str, int, str, Example] | None = None
    for row, record, example in rows:
        if record.format not in _NEGATIVE_BEHIND or not record.parts:
            yield record.kind, example
            continue
        pair = row.file, (row.number - 1) // 2
        if held is not None and held[:2] == pair:
            yield record.kind, _with_negative(held[3], example)
            held = None
            continue
        if held is not None:
            yield held[2:]
        held = (*pair, record.kind, example)
    if held is not None:
        yield held[2:]


def _with_negative(example: Example, negative: Example) -> Example:
    masks = [e.loss_mask or [[True] * len(ids) for ids in e.responses] for e in (example, negative)]
    loss_mask = [*masks[0][:2], *masks[1][:2]]
    return replace(
        example,
        responses=[*example.responses[:2], *negative.responses[:2]],
        loss_mask=None if all(map(all, loss_mask)) else loss_mask,
        more_prompts=(example.more_prompts[0], negative.prompt, negative.more_prompts[0]),
    )


def make_equal(parts: list[Encoded]) -> None:
    """Cut the same responses behind several prompts to the shortest that the limits leave, in place.

    Raises:
        RowError: a prompt changes how a response is tokenised.
    """
    lengths = [min(map(len, same)) for same in zip(*(part.responses for part in parts), strict=True)]
    for part in parts:
        part.responses = [ids[:length] for ids, length in zip(part.responses, lengths, strict=True)]
        part.masks = [mask[:length] for mask, length in zip(part.masks, lengths, strict=True)]
        if part.responses != parts[0].responses or part.masks != parts[0].masks:
            raise RowError(
                ProblemKind.TEMPLATE, "the response has other tokens behind another prompt; set data.spec.boundary=ids"
            )


def step_labels(record: Record, made: Encoded) -> tuple[list[list[bool]], list[list[float]]]:
    """Masks that score the last token of each step, and its label there; steps that were cut off have none."""
    length = len(made.responses[0])
    mask, labels = [False] * length, [float("nan")] * length
    for end, (_, label) in zip(made.ends[0], record.steps, strict=True):
        if 0 < end <= length:
            mask[end - 1], labels[end - 1] = True, label
    if not any(mask):
        raise RowError(ProblemKind.UNSCORED, "no step ends within the length limits")
    return [mask], [labels]


def check_text(record: Record) -> None:
    """Raise RowError when a prompt, a response or one of their turns is empty, or a response ends unscored."""
    prompt = record.prompt if isinstance(record.prompt, str) else "".join(turn["content"] for turn in record.prompt)
    if not prompt.strip() and record.format != "text":
        raise RowError(ProblemKind.EMPTY_PROMPT, "the prompt is empty")
    if not isinstance(record.prompt, str):
        _check_turns(record.prompt, "the prompt", ProblemKind.EMPTY_PROMPT)
    for number, response in enumerate(record.responses):
        last = say("assistant", response) if isinstance(response, str) else response[-1]
        which = slot_names(record.kind, len(record.responses))[number]
        if is_empty(last):
            raise RowError(ProblemKind.EMPTY_RESPONSE, f"{which} is empty")
        if not in_loss(last):
            raise RowError(ProblemKind.UNSCORED, f"the last turn of {which} is marked as not to be scored")
        if not isinstance(response, str):
            _check_turns(response, which, ProblemKind.EMPTY_RESPONSE)


def _check_turns(turns: Turns, name: str, kind: ProblemKind) -> None:
    """Raise RowError for an empty turn of a user or the assistant; what a tool returns may be empty."""
    for number, turn in enumerate(turns, start=1):
        if turn["role"] in ("user", "assistant") and is_empty(turn):
            raise RowError(kind, f"turn {number} ({turn['role']}) of {name} is empty")


def check_unicode(values: Mapping[str, Any], parts: Iterable[Rendered | None]) -> None:
    """Raise RowError for text that is not valid Unicode, which no tokenizer accepts; it names the column."""
    rendered = (text for part in parts if part is not None for text in (part.prompt, *_segments(part)))
    half = next((surrogate for text in rendered if (surrogate := lone_surrogate(text))), None)
    if half is not None:
        texts = {str(name): str(value) for name, value in values.items() if isinstance(value, str | list | dict)}
        names = [name for name, text in texts.items() if lone_surrogate(text)]
        where = f"{', '.join(map(repr, names))} holds" if names else "its text holds"
        raise RowError(ProblemKind.BROKEN, f"{where} {half}, half of a surrogate pair, so it is not valid Unicode")


def _segments(part: Rendered) -> Iterator[str]:
    return (text for spans in part.responses for text, _ in spans)
