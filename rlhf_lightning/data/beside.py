"""What a row says beside prompt and responses, read for the kind of data that a method learns from.

A demonstration with a label is unpaired data, with a score a list of one, with a judgment judged data, and so on: the
layout of prompt and response (``formats``) and what is known of them are independent. What cannot be read is an error
of the row; a row that cannot serve the method at all keeps its kind, and the pipeline says what the method needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from rlhf_lightning.data import rated_formats as rated
from rlhf_lightning.data.checks import DataError, Kind, RowError
from rlhf_lightning.data.comparisons import compared
from rlhf_lightning.data.fields import Fields
from rlhf_lightning.data.records import Record
from rlhf_lightning.data.spec import DataSpec

#: Columns of HelpSteer and HelpSteer2, rated 0 to 4.
HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def read_beside(record: Record, fields: Fields, spec: DataSpec, kind: str) -> Record:
    """The record with what a method of this kind needs from the row's other columns.

    Args:
        record: prompt and responses, as the format gave them.
        fields: of the row.
        spec: options such as the context.
        kind: what the method learns from.

    Raises:
        RowError: a column holds something else than it should.
        DataError: an option is missing without which no row can be used.
    """
    if not record.responses and kind != "prompt":  # a prompt alone serves nobody else, whatever stands beside it
        return record
    return _READERS[kind](record, fields, spec)


def _demonstration(record: Record, fields: Fields, spec: DataSpec) -> Record:
    """The best response alone."""
    if record.kind == "safety":
        record = rated.better_first(record, fields)
    return replace(
        record, responses=record.responses[:1], kind="supervised", margin=None, numbers={}, parts=(), steps=()
    )


def _pair(record: Record, fields: Fields, spec: DataSpec) -> Record:
    if record.kind == "safety":
        return rated.better_first(record, fields)
    return _scored(record, fields)


def _safety(record: Record, fields: Fields, spec: DataSpec) -> Record:
    if record.kind == "preference" and fields.has("chosen_safe", "rejected_safe"):
        safe = [float(fields.flag(name)) for name in ("chosen_safe", "rejected_safe")]
        return replace(record, kind="safety", numbers={"safe": safe})
    return record


def _unpaired(record: Record, fields: Fields, spec: DataSpec) -> Record:
    if record.kind == "safety":
        return rated.better_first(record, fields)
    if record.kind == "supervised" and fields.has("label"):
        return replace(record, kind="unpaired", numbers={"desirable": [float(fields.flag("label"))]})
    return _scored(record, fields)


def _ranked(record: Record, fields: Fields, spec: DataSpec) -> Record:
    if record.kind == "safety":
        record = rated.better_first(record, fields)
    if record.kind == "preference":
        return replace(record, numbers={"score": _pair_scores(record, fields)})
    return _scored(record, fields)


def _pair_scores(record: Record, fields: Fields) -> list[float]:
    """A score each where the row has both, else the margin, else 1 for the chosen and 0 for the rejected one."""
    if fields.has("score_chosen", "score_rejected"):
        return [fields.number("score_chosen"), fields.number("score_rejected")]
    return [1.0 if record.margin is None else record.margin, 0.0]


def _scored(record: Record, fields: Fields) -> Record:
    """A demonstration with a score as a list of one."""
    if record.kind == "supervised" and fields.has("score"):
        return replace(record, kind="ranked", numbers={"score": [fields.number("score")]})
    return record


def _judged(record: Record, fields: Fields, spec: DataSpec) -> Record:
    judgment = fields.text("judgment") if fields.has("judgment") else None
    if spec.threshold is not None and fields.has("score"):
        if isinstance(spec.threshold, str):
            raise DataError(
                f"data.spec.threshold={spec.threshold}: judged rows are compared with a number, the score from which "
                "on a judgment counts as praise and is left out"
            )
        judgment = None if fields.number("score") >= spec.threshold else judgment
    return rated.judged(_demonstration(record, fields, spec), judgment, spec)


def _context(record: Record, fields: Fields, spec: DataSpec) -> Record:
    if not spec.context:
        raise DataError("this method needs the context that is to be distilled: set data.spec.context=TEXT")
    return rated.in_context(_demonstration(record, fields, spec), spec.context)


def _comparison(record: Record, fields: Fields, spec: DataSpec) -> Record:
    pair = _pair(record, fields, spec)
    return compared(pair, spec) if pair.kind in ("preference", "safety") else pair


def _attributes(record: Record, fields: Fields, spec: DataSpec) -> Record:
    if record.kind != "supervised":
        return record
    ratings = fields.get("attributes")
    where = fields.inside(ratings, {}) if isinstance(ratings, Mapping) else fields
    if spec.attributes:
        names = [*spec.attributes]
    elif isinstance(ratings, Mapping):
        names = sorted(map(str, ratings))
    else:
        names = [*HELPSTEER] if fields.has(*HELPSTEER) else []
    if not any(where.has(name) for name in names):
        return record
    values = {name: where.number(name) if where.has(name) else float("nan") for name in names}
    return replace(record, kind="attributes", numbers={f"attribute:{name}": [v] for name, v in values.items()})


def _prompt(record: Record, fields: Fields, spec: DataSpec) -> Record:
    """The prompt alone; what the row answers itself stays among its columns."""
    if record.format == "text":
        raise RowError(Kind.EMPTY_PROMPT, "plain text has no prompt; to answer it, data.spec.columns.prompt=text")
    # One of several scored responses to a prompt, a row each: the prompt is asked once.
    gathered = spec.gather and record.kind == "supervised" and fields.has("score")
    return Record(
        record.prompt,
        (),
        record.format,
        kind="prompt",
        numbers={"score": [float("nan")]} if gathered else {},
        continued=record.continued,
        tools=record.tools,
    )


def _as_it_is(record: Record, fields: Fields, spec: DataSpec) -> Record:
    return record


_READERS: Mapping[str, Callable[[Record, Fields, DataSpec], Record]] = {
    "supervised": _demonstration,
    "preference": _pair,
    "safety": _safety,
    "unpaired": _unpaired,
    "ranked": _ranked,
    "judged": _judged,
    "paraphrase": _as_it_is,
    "context": _context,
    "steps": _as_it_is,
    "attributes": _attributes,
    "comparison": _comparison,
    "prompt": _prompt,
}
