"""One-line summaries of data sets."""

from __future__ import annotations

import numpy as np

from rlhf_lightning.data.kinds import KINDS
from rlhf_lightning.data.rows.problems import DataReport
from rlhf_lightning.data.tokens.examples import Examples


def summary_of(examples: Examples, kind: str, report: DataReport | None) -> str:
    """Summary of training or validation data: number and lengths of groups, and counts of rows."""
    lengths = examples.lengths
    targets = int(examples.slot_tokens.sum())
    noun = KINDS[kind].named(len(examples)) + _contents(examples, kind)
    counts = f"{len(examples)} {noun} of {lengths.mean():.0f} tokens on average (longest {lengths.max()})"
    if KINDS[kind].has_responses:
        counts += f", {targets / lengths.sum():.0%} of them scored"
    return counts if report is None else f"{counts}; {report.summary()}"


def _contents(examples: Examples, kind: str) -> str:
    """Statistics of a kind's numbers, in a few words."""
    for name in KINDS[kind].labels:
        if name in examples.numbers:
            return f" ({np.nanmean(examples.numbers[name]):.0%} {name})"
    filled = (examples.slot_tokens > 0).sum(axis=1)
    if KINDS[kind].slots or not len(filled):
        return ""
    return f" of {filled.min()}" + (f" to {filled.max()}" if filled.min() < filled.max() else "") + " responses"
