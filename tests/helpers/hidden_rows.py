"""Generated examples of the kinds that methods on distributions, hidden states and values eat."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.types import Example, PackedBatch

VOCAB = 250  # of the byte tokenizer's 260


def _tokens(generator: torch.Generator, low: int, high: int) -> list[int]:
    size = int(torch.randint(low, high, (), generator=generator))
    return torch.randint(0, VOCAB, (size,), generator=generator).tolist()


def context(count: int, seed: int = 0, longest: int = 12) -> list[Example]:
    """A response behind context and prompt, and behind the prompt alone."""
    draw = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(count):
        before, prompt, response = _tokens(draw, 4, longest), _tokens(draw, 1, 4), _tokens(draw, 1, 5)
        out.append(Example(before + prompt, [response, response], more_prompts=(prompt,)))
    return out


def paraphrase(count: int, seed: int = 0) -> list[Example]:
    """Two wordings with their responses; every third row without a hard negative."""
    draw = torch.Generator().manual_seed(seed)
    out = []
    for number in range(count):
        prompts = [_tokens(draw, 1, 5) for _ in range(4)]
        first, second = _tokens(draw, 1, 4), _tokens(draw, 1, 4)
        if number % 3 == 1:
            prompts[2:], second = [[], []], []
        out.append(Example(prompts[0], [first, first, second, second], more_prompts=tuple(prompts[1:])))
    return out


def ranked(count: int, seed: int = 0) -> list[Example]:
    """Three and two scored responses in turn."""
    draw = torch.Generator().manual_seed(seed)
    out = []
    for number in range(count):
        responses = [_tokens(draw, 1, 5) for _ in range(3 - number % 2)]
        scores = torch.randn(len(responses), generator=draw).tolist()
        out.append(Example(_tokens(draw, 1, 4), responses, numbers={"score": scores}))
    return out


def supervised(count: int, seed: int = 0) -> list[Example]:
    draw = torch.Generator().manual_seed(seed)
    return [Example(_tokens(draw, 1, 4), [_tokens(draw, 1, 6)]) for _ in range(count)]


ROWS: dict[str, Callable[[int], list[Example]]] = {
    "context": context,
    "paraphrase": paraphrase,
    "ranked": ranked,
    "supervised": supervised,
}


def steps(kind: str, groups: int, parts: int = 1) -> list[PackedBatch]:
    """One optimiser step, cut into equal micro-batches of equally many slots."""
    rows = ROWS[kind](groups)
    slots = max(len(row.responses) for row in rows)
    filled = [_filled(row, slots) for row in rows]
    totals = pack(filled, kind=kind).totals._replace(micro_batches=parts)
    size = groups // parts
    return [pack(filled[at : at + size], kind=kind, totals=totals) for at in range(0, groups, size)]


def _filled(row: Example, slots: int) -> Example:
    missing = slots - len(row.responses)
    numbers = {name: [*values, *[float("nan")] * missing] for name, values in row.numbers.items()}
    return Example(row.prompt, [*row.responses, *[[]] * missing], more_prompts=row.more_prompts, numbers=numbers)
