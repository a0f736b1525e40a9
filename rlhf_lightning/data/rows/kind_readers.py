"""Columns other than prompt and responses, read for the kind of data that a method learns from.

A demonstration with a label is unpaired data, with a score a list of one, with a judgment judged data, and so on. The
layout of prompt and response (``formats``) does not matter here. A column that cannot be read is an error of the row; a
row that cannot serve the method at all keeps its kind, and the pipeline reports what the method needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from rlhf_lightning.data.kinds import KINDS, PROMPTS
from rlhf_lightning.data.rows import rated_formats as rated
from rlhf_lightning.data.rows.fields import Fields
from rlhf_lightning.data.rows.judge_questions import compared
from rlhf_lightning.data.rows.problems import DataError, ProblemKind, RowError
from rlhf_lightning.data.rows.records import Record
from rlhf_lightning.data.spec import DataSpec

Reader = Callable[[Record, Fields, DataSpec], Record]

#: Columns of HelpSteer and HelpSteer2, rated 0 to 4.
HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def read_for_kind(record: Record, fields: Fields, spec: DataSpec, kind: str) -> Record:
    """Add to a record the columns that a method of this kind needs.

    Args:
        record: prompt and responses, as the format gave them.
        fields: of the row.
        spec: options such as the context.
        kind: of data that the method learns from.

    Raises:
        RowError: a column holds a value of the wrong type.
        DataError: an option is missing that every row needs.
    """
    if not record.responses and KINDS[kind].has_responses:  # whatever its columns, a prompt alone is of no use here
        return record
    readers = READERS[kind]
    reader = readers.get(record.kind) or readers.get(ANY)
    return record if reader is None else reader(record, fields, spec)


def _demonstration(record: Record, fields: Fields, spec: DataSpec) -> Record:
    """The best response alone."""
    first = replace(record, responses=record.responses[:1], cut_off=record.cut_off[:1])
    return replace(first, kind="supervised", margin=None, numbers={}, parts=(), steps=())


def _better_first(record: Record, fields: Fields, spec: DataSpec) -> Record:
    """A safety-labelled pair as a pair."""
    return rated.better_first(record, fields)


def _numbered(record: Record, fields: Fields, spec: DataSpec) -> Record:
    """A pair with the row's numbers of its responses."""
    return replace(record, numbers=rated.of_pair(fields))


def _safe(record: Record, fields: Fields, spec: DataSpec) -> Record:
    """A pair as a safety-labelled one, where the row has both labels."""
    if not fields.has("chosen_safe", "rejected_safe"):
        return record
    safe = [float(fields.flag(name)) for name in ("chosen_safe", "rejected_safe")]
    return replace(record, kind="safety", numbers={"safe": safe})


def _labelled(record: Record, fields: Fields, spec: DataSpec) -> Record:
    """A demonstration with a label, or with a score."""
    if fields.has("label"):
        return replace(record, kind="unpaired", numbers={"desirable": [float(fields.flag("label"))]})
    return _with_score(record, fields, spec)


def _with_score(record: Record, fields: Fields, spec: DataSpec) -> Record:
    """A demonstration with a score as a list of one."""
    if not fields.has("score"):
        return record
    return replace(record, kind="ranked", numbers={"score": [fields.number("score")]})


def _pair_with_scores(record: Record, fields: Fields, spec: DataSpec) -> Record:
    """A pair with the scores of both responses; without them the margin and 0, without a margin 1 and 0."""
    if fields.has("score_chosen", "score_rejected"):
        scores = [fields.number("score_chosen"), fields.number("score_rejected")]
    else:
        scores = [1.0 if record.margin is None else record.margin, 0.0]
    return replace(record, numbers={"score": scores})


def _judged(record: Record, fields: Fields, spec: DataSpec) -> Record:
    """A demonstration behind its judgment, unless the score shows that the judgment is praise."""
    judgment = fields.text("judgment") if fields.has("judgment") else None
    if spec.threshold is not None and fields.has("score"):
        if isinstance(spec.threshold, str):
            raise DataError(
                f"data.spec.threshold={spec.threshold}: judged rows need a number, the score from which on a judgment "
                "counts as praise and is left out"
            )
        judgment = None if fields.number("score") >= spec.threshold else judgment
    return rated.judged(_demonstration(record, fields, spec), judgment, spec)


def _in_context(record: Record, fields: Fields, spec: DataSpec) -> Record:
    """A demonstration behind the context of the spec."""
    if not spec.context:
        raise DataError("this method needs the context to distil: set data.spec.context=TEXT")
    return rated.in_context(_demonstration(record, fields, spec), spec.context, spec)


def _instructed(record: Record, fields: Fields, spec: DataSpec) -> Record:
    """A pair, a demonstration or a labelled response, under both instructions of the spec and without one."""
    if KINDS[record.kind].pair:
        return rated.instructed(record, spec, (1.0, 0.0))
    good = fields.flag("label") if fields.has("label") else True
    return rated.instructed(_demonstration(record, fields, spec), spec, (float(good),))


def _compared(record: Record, fields: Fields, spec: DataSpec) -> Record:
    """A pair as questions for a judge."""
    return compared(record, spec)


def _rated(record: Record, fields: Fields, spec: DataSpec) -> Record:
    """A demonstration with the ratings that the spec or the row names."""
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
    """The prompt alone; the row's own responses stay among its columns."""
    if record.format == "text":
        raise RowError(
            ProblemKind.EMPTY_PROMPT, "plain text has no prompt; to use it as one, data.spec.columns.prompt=text"
        )
    return Record(record.prompt, (), record.format, kind=PROMPTS, continued=record.continued, tools=record.tools)


def _prompt_with_score(record: Record, fields: Fields, spec: DataSpec) -> Record:
    """The prompt of one of several scored responses, a row each; a nan score marks it, since it is used only once."""
    prompt = _prompt(record, fields, spec)
    return replace(prompt, numbers={"score": [float("nan")]}) if spec.gather and fields.has("score") else prompt


def _then(first: Reader, second: Reader) -> Reader:
    """A reader that applies the second one to the result of the first."""
    return lambda record, fields, spec: second(first(record, fields, spec), fields, spec)


#: A row of any kind that a table does not name.
ANY = ""
#: By the kind that a method learns from, and then by the row's kind; other rows stay as they are.
READERS: Mapping[str, Mapping[str, Reader]] = {
    "supervised": {ANY: _demonstration, "safety": _then(_better_first, _demonstration)},
    "preference": {"preference": _numbered, "safety": _then(_better_first, _numbered), "supervised": _with_score},
    "safety": {"preference": _safe},
    "unpaired": {"safety": _better_first, "supervised": _labelled},
    "ranked": {
        "safety": _then(_better_first, _pair_with_scores),
        "preference": _pair_with_scores,
        "supervised": _with_score,
    },
    "judged": {ANY: _judged, "safety": _then(_better_first, _judged)},
    "paraphrase": {},
    "context": {ANY: _in_context, "safety": _then(_better_first, _in_context)},
    "instruction": {ANY: _instructed, "safety": _then(_better_first, _instructed)},
    "steps": {},
    "attributes": {"supervised": _rated},
    "comparison": {"preference": _compared, "safety": _then(_better_first, _compared), "supervised": _with_score},
    "prompt": {ANY: _prompt, "supervised": _prompt_with_score},
}
