"""What a data set's columns say in numbers: lengths of prompts and responses, shares of labels, ranges of scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf_lightning.data.batches.packing import ATTRIBUTE
from rlhf_lightning.data.kinds import KINDS, RANKED_SLOT, slot_names
from rlhf_lightning.data.tokens.examples import Examples

PROMPT = "prompt"


def lengths_of(examples: Examples, kind: str) -> dict[str, NDArray[np.int64]]:
    """Token counts of the prompts and of each slot's responses, by name; what is not there is not counted.

    Prompts alone have no responses. The responses of ranked lists are counted together. With several prompts, each is
    named after its response.
    """
    cuts = np.diff(examples.by_prompt, axis=1)
    prompts = cuts[:, 0].reshape(len(examples), examples.prompts)
    responses = cuts[:, 1:].reshape(len(examples), examples.slots)
    names = slot_names(kind, examples.slots)
    if not responses.any():
        return {PROMPT: prompts[:, 0]}
    if examples.prompts > 1:
        both: dict[str, NDArray[np.int64]] = {}
        for slot, name in enumerate(names):
            filled = responses[:, slot] > 0
            both |= {f"{PROMPT}: {name}": prompts[filled, slot], name: responses[filled, slot]}
        return {name: counts for name, counts in both.items() if len(counts)}
    if not KINDS[kind].slots:
        return {PROMPT: prompts[:, 0], RANKED_SLOT: responses[responses > 0]}
    return {PROMPT: prompts[:, 0], **dict(zip(names, responses.T, strict=True))}


def together(examples: Examples) -> NDArray[np.int64]:
    """Tokens of each group's longest prompt with a response, (groups,)."""
    cuts = np.diff(examples.by_prompt, axis=1)
    longest: NDArray[np.int64] = (cuts[:, 0] + cuts[:, 1:].max(axis=1)).reshape(len(examples), -1).max(axis=1)
    return longest


def remarks(examples: Examples, kind: str) -> list[str]:
    """What there is to say beside lengths, a line each."""
    filled = examples.slot_tokens > 0
    said = []
    if KINDS[kind].pair:
        longer = float(np.mean(examples.slot_tokens[:, 0] > examples.slot_tokens[:, 1]))
        first, second = KINDS[kind].slots
        said.append(f"{first} is longer than {second} in {longer:.0%} of pairs")
    if examples.margin is not None:
        said.append(f"margin {_range(examples.margin)}")
    if not KINDS[kind].slots:
        counts = np.bincount(filled.sum(axis=1))
        listed = ", ".join(f"{size}: {count:,}" for size, count in enumerate(counts.tolist()) if count)
        said.append(f"responses a list: lists  {listed}")
    for name, values in examples.numbers.items():
        known = values[np.isfinite(values)]
        if name in KINDS[kind].labels:
            said += _shares(name, values, slot_names(kind, examples.slots))
        elif len(known):
            missing = int(filled.sum()) - len(known)
            absent = f", {missing:,} missing" if missing else ""
            said.append(f"{name.removeprefix(ATTRIBUTE)} {_range(known)}{absent}")
    if examples.step_labels is not None:
        labels = examples.step_labels[np.isfinite(examples.step_labels)]
        steps = examples.slot_tokens.sum(axis=1)
        said.append(f"{steps.mean():.1f} steps a solution (most {steps.max()}), {labels.mean():.0%} of them right")
    if examples.prompts > 1 and not filled.all():
        names = slot_names(kind, examples.slots)
        shares = [(name, share) for name, share in zip(names, filled.mean(axis=0), strict=True) if share < 1]
        said += [f"{name}: in {share:.0%} of the groups" for name, share in shares]
    return said


def _shares(name: str, values: NDArray[np.float32], slots: Sequence[str]) -> list[str]:
    """How many responses have a label, which is 1 or 0."""
    if values.shape[1] == 1:
        yes = int(values.sum())
        return [f"{yes:,} {name}, {len(values) - yes:,} not"]
    return [f"{slot}: {share:.0%} {name}" for slot, share in zip(slots, values.mean(axis=0), strict=True)]


def _range(values: NDArray[np.float32]) -> str:
    low, middle, top = np.percentile(values, [0, 50, 100])
    return f"{low:.3g} .. {middle:.3g} .. {top:.3g} (min, median, max)"
