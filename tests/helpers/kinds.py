"""Generated examples of every kind of data that a method of conf/method eats, and one optimiser step made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.types import Example, PackedBatch, StepTotals, UnpairedBatch
from tests.helpers import hidden_rows
from tests.helpers.training import examples


def _pairs(count: int) -> list[Example]:
    """Pairs with every column that a row may have; every other one has a sample of the policy or reference."""
    numbers = [
        {"win_probability": [0.75, 0.25], "policy_sample": [0.0, n % 2], "reference_sample": [n % 2, 0.0]}
        for n in (0, 1)
    ]
    return [replace(row, margin=1.5, numbers=numbers[number % 2]) for number, row in enumerate(examples(count))]


def _labelled(count: int) -> list[Example]:
    rows = examples(count, responses=1)
    return [
        replace(row, margin=None, numbers={"desirable": [float(number % 3 > 0)]}) for number, row in enumerate(rows)
    ]


def _ranked(count: int) -> list[Example]:
    """Lists of three, two and one responses, some of them tied."""
    out = []
    for number, row in enumerate(examples(count, responses=3)):
        keep = 3 - number % 3 % 2 - (number % 5 == 4)
        score = [[2.0, -1.0, 0.5], [0.0, 1.0, 1.0]][number % 2][:keep]
        out.append(replace(row, margin=None, responses=row.responses[:keep], numbers={"score": score}))
    return out


def _safety(count: int) -> list[Example]:
    """Pairs, safer response first: one safe and one unsafe, both safe, both unsafe."""
    labels = [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    return [replace(row, numbers={"safe": labels[number % 3]}) for number, row in enumerate(examples(count))]


def _judged(count: int) -> list[Example]:
    """Every third row without a judgment."""
    out = []
    for number, row in enumerate(examples(count, responses=1)):
        behind = [] if number % 3 == 2 else [*row.prompt, 7 + number % 5]
        responses = [row.responses[0] if behind else [], row.responses[0]]
        out.append(replace(row, margin=None, prompt=behind, more_prompts=(row.prompt,), responses=responses))
    return out


def _steps(count: int) -> list[Example]:
    """Solutions whose last token, and in every other one also the first, ends a step; labels alternate."""
    out = []
    for number, row in enumerate(examples(count, responses=1)):
        response = row.responses[0]
        ends = [
            position == len(response) - 1 or (position == 0 and number % 2 == 0) for position in range(len(response))
        ]
        labels = [float((number + position) % 2) if end else float("nan") for position, end in enumerate(ends)]
        out.append(replace(row, margin=None, loss_mask=[ends], step_labels=[labels]))
    return out


def _rated(count: int) -> list[Example]:
    """Five ratings each, as HelpSteer has them; one is missing now and then."""
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    return [
        replace(
            row,
            margin=None,
            numbers={
                f"attribute:{name}": [float("nan") if (number + at) % 7 == 6 else float((number + at) % 5)]
                for at, name in enumerate(names)
            },
        )
        for number, row in enumerate(examples(count, responses=1))
    ]


def _compared(count: int) -> list[Example]:
    """A judge's verdicts 1 and 2 on pairs in both orders."""
    return [
        replace(
            row,
            margin=None,
            prompt=[3, *row.responses[0], *row.responses[1]],
            more_prompts=([3, *row.responses[1], *row.responses[0]],),
            responses=[[1], [2], [2], [1]],
        )
        for row in examples(count)
    ]


def _instructed(count: int) -> list[Example]:
    """A response behind two contexts and behind its prompt alone, good and bad ones in turn."""
    return [
        replace(
            row,
            margin=None,
            prompt=[3, 4, *row.prompt],
            more_prompts=([5, *row.prompt], row.prompt),
            responses=row.responses * 3,
            numbers={"desirable": [float(number % 2 == 0)] * 3},
        )
        for number, row in enumerate(examples(count, responses=1))
    ]


#: Examples by kind of data; the owner of a kind adds it.
EXAMPLES: dict[str, Callable[[int], list[Example]]] = {
    "context": hidden_rows.context,
    "paraphrase": hidden_rows.paraphrase,
    "supervised": lambda count: [replace(row, margin=None) for row in examples(count, responses=1)],
    "preference": _pairs,
    "unpaired": _labelled,
    "ranked": _ranked,
    "instruction": _instructed,
    "judged": _judged,
    "safety": _safety,
    "steps": _steps,
    "attributes": _rated,
    "comparison": _compared,
}


def step(kind: str, groups: int, parts: int = 1) -> list[PackedBatch]:
    """One optimiser step of a kind, cut into equal micro-batches, with what the first of them brings."""
    rows = EXAMPLES[kind](groups)
    totals = pack(rows, kind=kind).totals._replace(micro_batches=parts)
    size = groups // parts
    batches = [_packed(rows[at : at + size], kind, totals, range(at, at + size)) for at in range(0, groups, size)]
    if isinstance(batches[0], UnpairedBatch):
        batches[0] = replace(batches[0], mismatched=tuple(mismatched(rows, size, totals)))
    return batches


def mismatched(rows: list[Example], size: int, totals: StepTotals) -> list[PackedBatch]:
    """Each prompt with the response of the next row."""
    turned = [replace(row, responses=after.responses) for row, after in zip(rows, rows[1:] + rows[:1], strict=True)]
    return [_packed(turned[at : at + size], "supervised", totals, None) for at in range(0, len(rows), size)]


def _packed(rows: list[Example], kind: str, totals: StepTotals, indices: range | None) -> PackedBatch:
    slots = len(totals.slot_tokens)
    filled = [
        replace(
            row,
            responses=row.responses + [[]] * (slots - len(row.responses)),
            numbers={key: [*values, *[float("nan")] * (slots - len(values))] for key, values in row.numbers.items()},
        )
        for row in rows
    ]
    return pack(filled, kind=kind, totals=totals, indices=indices)
