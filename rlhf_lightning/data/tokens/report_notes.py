"""Notes about a tokenised data set for its report, and errors for data without a usable row."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from rlhf_lightning import clock
from rlhf_lightning.data.kinds import KINDS, fed_by
from rlhf_lightning.data.rows.problems import DataError, DataReport
from rlhf_lightning.data.rows.records import Record
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.data.tokens.templates import ChatTemplate

PLAIN_TEXT = (
    "prompts are plain text and stay so, although the tokenizer has a chat template; "
    "data.spec.template=tokenizer makes each prompt a user turn"
)


def note_counts(report: DataReport, examples: Examples, spec: DataSpec) -> None:
    """Count the tokens of the examples, and add notes about the report's counts.

    Raises:
        DataError: no row has the column that the method is about.
    """
    report.scored_tokens = int(examples.slot_tokens.sum())
    lengths = np.diff(examples.by_prompt, axis=1).sum(axis=0, dtype=np.int64)
    report.prompt_tokens, report.response_tokens = int(lengths[0]), int(lengths[1:].sum())
    _note_contents(report, examples)
    if report.boundary_mismatched:
        report.note(
            f"in {report.mismatch_rate:.1%} of {report.boundary_checked} rows tokens would merge across the "
            f"boundary of prompt and response (data.spec.boundary={spec.boundary})"
        )
    if report.cut_prompts:
        report.note(
            f"{report.cut_prompts} of {report.kept} prompts are cut to begin and end as data.spec.prompt_start="
            f"{spec.prompt_start} and prompt_end={spec.prompt_end} ask; each of them lost "
            f"{report.cut_characters / report.cut_prompts:.0f} characters on average"
        )
    if report.unscored_turns:
        report.note(
            f"{report.unscored_turns} assistant turns are not scored: the template shows them differently once "
            "other turns follow"
        )
    if report.hidden_reasoning:
        report.note(
            f"the reasoning of {report.hidden_reasoning} assistant turns before the last one is not shown: the "
            "template leaves it out once other turns follow"
        )
    if report.unknown_tokens:
        report.note(f"{report.unknown_tokens} response tokens are the tokenizer's unknown token")


def note_template(report: DataReport, template: ChatTemplate, ends: Collection[int], unread: Collection[str]) -> None:
    """Add notes about the template that rendered rows.

    Args:
        report: gets the notes.
        template: that rendered rows.
        ends: tokens that end a response, the tokenizer's EOS among them.
        unread: fields of the turns that the template does not show.
    """
    if template.reads_clock:
        report.note(
            f"the template reads the clock: it is given {clock.today()}, the date of this run, of its resumes and "
            "of what evaluates it; another one with RLHF_DATE=2026-01-31 in the environment, or with "
            "data.spec.template_arguments where the template takes a date"
        )
    if len(ends) > 1:
        report.note(
            f"responses end with {template.end_token!r}, not with the tokenizer's EOS: generation must stop there"
        )
    if unread:
        report.note(f"turns have fields that the template does not show: {', '.join(sorted(unread))}")


def _note_contents(report: DataReport, examples: Examples) -> None:
    if not len(examples):
        return
    kind = KINDS[report.kind]
    optional = kind.optional
    if optional and not examples.slot_tokens[:, 0].any():
        raise DataError(
            f"{report.source}: no row has a {optional}; name its column with data.spec.columns.{optional}=NAME"
        )
    labels = examples.numbers.get("desirable")
    if labels is not None and not kind.same_response and labels.min() == labels.max():
        word = "desirable" if labels.max() else "undesirable"
        report.note(f"all {len(labels)} responses are {word}: there is nothing to distinguish")


def wrong_kind(source: str, record: Record, kind: str, absent: str = "") -> DataError:
    """The error for rows that a method cannot use: the kinds that it can use, and missing mapped columns."""
    needs = "\n".join(f"  {KINDS[fed].noun}: {KINDS[fed].needs}" for fed in fed_by(kind))
    return DataError(
        f"{absent}{'. ' if absent else ''}"
        f"this method learns from {KINDS[kind].noun}, and {source} holds {KINDS[record.kind].noun} "
        f"(format {record.format}). It can use:\n{needs}\nMap columns of other names, e.g. "
        f"data.spec.columns.{KINDS[kind].mapped}, or choose another method: `rlhf methods` lists what each learns from"
    )
