"""A part of the data in one line."""

from __future__ import annotations

import numpy as np

from rlhf_lightning.data.kinds import KINDS
from rlhf_lightning.data.rows.problems import DataReport
from rlhf_lightning.data.tokens.examples import Examples


def summary_of(examples: Examples, kind: str, report: DataReport | None) -> str:
    """What a part of the data holds: how many groups of which lengths, and what became of its rows."""
    lengths = examples.lengths
    scored = int(examples.slot_tokens.sum())
    what = KINDS[kind].named(len(examples)) + _contents(examples, kind)
    counts = f"{len(examples)} {what} of {lengths.mean():.0f} tokens on average (longest {lengths.max()})"
    if KINDS[kind].has_responses:
        counts += f", {scored / lengths.sum():.0%} of them scored"
    return counts if report is None else f"{counts}; {report.summary()}"


def _contents(examples: Examples, kind: str) -> str:
    """What a kind's own numbers say, in a few words."""
    for name in KINDS[kind].labels:
        if name in examples.numbers:
            return f" ({np.nanmean(examples.numbers[name]):.0%} {name})"
    filled = (examples.slot_tokens > 0).sum(axis=1)
    if KINDS[kind].slots or not len(filled):
        return ""
    return f" of {filled.min()}" + (f" to {filled.max()}" if filled.min() < filled.max() else "") + " responses"
