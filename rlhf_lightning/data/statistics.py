"""Statistics of a data set: lengths of prompts and responses, shares of labels, ranges of scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf_lightning.data.batches.packing import ATTRIBUTE
from rlhf_lightning.data.kinds import KINDS, RANKED_SLOT, slot_names
from rlhf_lightning.data.tokens.examples import Examples

PROMPT = "prompt"


def lengths_of(examples: Examples, kind: str) -> dict[str, NDArray[np.int64]]:
    """Token counts of the prompts and of each slot's responses, by name; empty slots are not counted.

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
    """Statistics other than lengths, a line each."""
    filled = examples.slot_tokens > 0
    lines = []
    if KINDS[kind].pair:
        longer = float(np.mean(examples.slot_tokens[:, 0] > examples.slot_tokens[:, 1]))
        first, second = KINDS[kind].slots
        lines.append(f"{first} is longer than {second} in {longer:.0%} of pairs")
    if examples.margin is not None:
        lines.append(f"margin {_range(examples.margin)}")
    if not KINDS[kind].slots:
        counts = np.bincount(filled.sum(axis=1))
        listed = ", ".join(f"{size}: {count:,}" for size, count in enumerate(counts.tolist()) if count)
        lines.append(f"responses a list: lists  {listed}")
    for name, values in examples.numbers.items():
        finite = values[np.isfinite(values)]
        if name in KINDS[kind].labels:
            lines += _shares(name, values, slot_names(kind, examples.slots))
        elif len(finite):
            missing = int(filled.sum()) - len(finite)
            absent = f", {missing:,} missing" if missing else ""
            lines.append(f"{name.removeprefix(ATTRIBUTE)} {_range(finite)}{absent}")
    if examples.step_labels is not None:
        labels = examples.step_labels[np.isfinite(examples.step_labels)]
        steps = examples.slot_tokens.sum(axis=1)
        lines.append(f"{steps.mean():.1f} steps a solution (most {steps.max()}), {labels.mean():.0%} of them right")
    if examples.prompts > 1 and not filled.all():
        names = slot_names(kind, examples.slots)
        shares = [(name, share) for name, share in zip(names, filled.mean(axis=0), strict=True) if share < 1]
        lines += [f"{name}: in {share:.0%} of the groups" for name, share in shares]
    return lines


def _shares(name: str, values: NDArray[np.float32], slots: Sequence[str]) -> list[str]:
    """Counts or shares of responses with a label, which is 1 or 0."""
    if values.shape[1] == 1:
        yes = int(values.sum())
        return [f"{yes:,} {name}, {len(values) - yes:,} not"]
    return [f"{slot}: {share:.0%} {name}" for slot, share in zip(slots, values.mean(axis=0), strict=True)]


def _range(values: NDArray[np.float32]) -> str:
    low, middle, top = np.percentile(values, [0, 50, 100])
    return f"{low:.3g} .. {middle:.3g} .. {top:.3g} (min, median, max)"
