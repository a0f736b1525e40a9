"""Recognise how a row is laid out and convert it to one shape, a :class:`Record`: a prompt and its responses.

Other columns (labels, scores, judgments, ...) are read by :mod:`rlhf_lightning.data.rows.kind_readers` for the kind of
data that the method needs. Templates and tokens come later.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from rlhf_lightning.data.kinds import KINDS, PROMPTS, kind_of
from rlhf_lightning.data.rows import rated_formats as rated
from rlhf_lightning.data.rows.fields import ALIASES, Fields, columns_read
from rlhf_lightning.data.rows.kind_readers import HELPSTEER, read_for_kind
from rlhf_lightning.data.rows.messages import ROLES, Turns, in_loss
from rlhf_lightning.data.rows.problems import DataError, ProblemKind, RowError
from rlhf_lightning.data.rows.records import (
    Record,
    as_conversation,
    begins_response,
    context_of,
    instruction_of,
    say,
    uniform,
)
from rlhf_lightning.data.spec import COLUMNS, DataSpec

#: Columns of rows whose tokens are given (``data.tokens.token_rows``), besides ``margin``.
TOKEN_COLUMNS = ("kind", "prompt_ids", "response_ids", "scored", "numbers")
#: Formats that are one conversation, and its column.
_CONVERSATIONS = {"sharegpt": "conversations", "messages": "messages"}
_DIALOGUE_TURN = re.compile(r"\n\n(Human|Assistant):")


# Converters: one a format. Each takes the row's fields and the spec and returns a Record.


def _pairs(fields: Fields, spec: DataSpec) -> Record:
    prompt = context_of(fields)
    chosen, rejected = fields.either("chosen"), fields.either("rejected")
    return replace(uniform(prompt, (chosen, rejected), "preference", "preference"), margin=_margin(fields))


def _implicit(fields: Fields, spec: DataSpec) -> Record:
    chosen, rejected = (
        _dialogue(fields, name) if isinstance(value := fields.either(name), str) else value
        for name in ("chosen", "rejected")
    )
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if turns[-1]["role"] != "assistant":
            raise RowError(
                ProblemKind.TYPE, f"{fields.column(name)!r} ends with a {turns[-1]['role']} turn, not the assistant's"
            )
    cut = _common_turns(chosen, rejected)
    responses = (chosen[cut:], rejected[cut:])
    return Record(chosen[:cut], responses, "implicit_prompt", margin=_margin(fields), kind="preference")


def _common_turns(chosen: Turns, rejected: Turns) -> int:
    """Turns that both dialogues share; what follows starts with an assistant turn and is empty in neither."""
    cut = 0
    while cut < min(len(chosen), len(rejected)) and chosen[cut] == rejected[cut]:
        cut += 1
    cut = min(cut, len(chosen) - 1, len(rejected) - 1)
    while cut > 0 and not chosen[cut]["role"] == rejected[cut]["role"] == "assistant":
        cut -= 1
    return cut


def _dialogue(fields: Fields, name: str) -> Turns:
    r"""Turns of a ``\n\nHuman: ... \n\nAssistant: ...`` text (hh-rlhf); space around a turn is layout."""
    text = fields.text(name)
    before, *pieces = _DIALOGUE_TURN.split("\n\n" + text.lstrip("\n"))
    if not pieces or before.strip():
        raise RowError(
            ProblemKind.TYPE, f"{fields.column(name)!r} has no prompt column and is not a '\\n\\nHuman:' dialogue"
        )
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": content.strip()}
        for speaker, content in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def _sharegpt(fields: Fields, spec: DataSpec) -> Record:
    return _demonstration(fields.turns("conversations"), spec, "sharegpt")


def _messages(fields: Fields, spec: DataSpec) -> Record:
    return _demonstration(fields.turns("messages"), spec, "messages")


def _demonstration(turns: Turns, spec: DataSpec, name: str) -> Record:
    """A whole conversation: with ``mask=assistant`` the response starts at the first assistant turn.

    Turns after the last scored one teach nothing and are left out.
    """
    if turns[-1]["role"] != "assistant":
        raise RowError(
            ProblemKind.MISSING, f"the conversation ends with a {turns[-1]['role']} turn, not the assistant's"
        )
    last = max((at for at, turn in enumerate(turns) if in_loss(turn)), default=None)
    if last is None or (spec.mask == "response" and last < len(turns) - 1):
        which = "every assistant turn" if last is None else "the last turn, which data.spec.mask=response would score,"
        raise RowError(ProblemKind.UNSCORED, f"{which} is marked as not to be scored")
    turns = turns[: last + 1]
    cut = last
    if spec.mask == "assistant":
        cut = next(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
    return Record(turns[:cut], (turns[cut:],), name)


def _conversation_prompt(fields: Fields, name: str) -> Record:
    """A conversation as a prompt: up to the last response, or all of it where the last turn is not the assistant's."""
    turns = fields.turns(_CONVERSATIONS[name])
    if turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    return Record(turns, (), name, kind=PROMPTS)


def _alpaca(fields: Fields, spec: DataSpec) -> Record:
    return Record(instruction_of(fields), ([say("assistant", fields.text("output"))],), "alpaca")


def _prompt_response(fields: Fields, spec: DataSpec) -> Record:
    return uniform(fields.either("prompt"), (fields.either("response"),), "prompt_response")


def _prompt(fields: Fields, spec: DataSpec) -> Record:
    prompt = context_of(fields)
    return Record(prompt, (), "prompt", kind=PROMPTS, continued=begins_response(prompt))


def _text(fields: Fields, spec: DataSpec) -> Record:
    return Record("", (fields.text("text"),), "text")


def _starts_with_assistant(value: Any) -> bool:
    first = value[0] if isinstance(value, Sequence) and value else value
    return isinstance(first, Mapping) and ROLES.get(str(first.get("from", first.get("role")))) == "assistant"


def _fits_pairs(fields: Fields) -> bool:
    if not fields.has("chosen", "rejected"):
        return False
    has_context = fields.has("prompt") or fields.has("messages") or fields.has("instruction")
    chosen = fields.get("chosen")
    # Whole conversations repeat the prompt, so a prompt column next to them is only a copy.
    return has_context and (isinstance(chosen, str) or _starts_with_assistant(chosen))


@dataclass(frozen=True)
class Format:
    """A layout of rows: the columns it needs, a test that recognises it, and its converter."""

    needs: str
    fits: Callable[[Fields], bool]
    convert: Callable[[Fields, DataSpec], Record]
    kind: str = "supervised"  #: of such a row itself


#: In the order in which they are tried.
FORMATS: Mapping[str, Format] = {
    "sharegpt_pairs": Format(
        "conversations [{from, value}], chosen {from, value}, rejected {from, value}",
        lambda fields: fields.has("conversations", "chosen", "rejected"),
        lambda fields, spec: replace(_pairs(fields, spec), format="sharegpt_pairs"),
        "preference",
    ),
    "preference": Format(
        "prompt (or messages, or instruction), chosen, rejected: text or messages", _fits_pairs, _pairs, "preference"
    ),
    "implicit_prompt": Format(
        "chosen, rejected: whole dialogues that begin alike, as messages or '\\n\\nHuman:' / '\\n\\nAssistant:' text",
        lambda fields: fields.has("chosen", "rejected"),
        _implicit,
        "preference",
    ),
    "safety": Format(
        "prompt, response_0, response_1, safer_response_id, is_response_0_safe, is_response_1_safe, and optionally "
        "better_response_id",
        rated.fits_safety,
        rated.safety,
        "safety",
    ),
    "ranked": Format(
        "prompt, responses [text, messages or {response, score}], and scores or ranks",
        rated.fits_ranked,
        rated.ranked,
        "ranked",
    ),
    "steps": Format("prompt, steps (or completions) [text], labels", rated.fits_steps, rated.steps, "steps"),
    "math_shepherd": Format(
        "input: question and steps with a tag behind each; label: the same with + or - for the tag",
        rated.fits_math_shepherd,
        rated.math_shepherd,
        "steps",
    ),
    "coin": Format(
        "original_instruction, paraphrased_instruction, targets; every second row is a hard negative",
        rated.fits_coin,
        rated.coin,
        "paraphrase",
    ),
    "paraphrase": Format(
        "instruction, paraphrase, output, and optionally negative_instruction, negative_paraphrase, negative_output",
        rated.fits_paraphrase,
        rated.paraphrase,
        "paraphrase",
    ),
    "sharegpt": Format("conversations [{from, value}]", lambda fields: fields.has("conversations"), _sharegpt),
    "messages": Format("messages [{role, content}]", lambda fields: fields.has("messages"), _messages),
    "alpaca": Format(
        "instruction, output, and optionally input, system, history",
        lambda fields: fields.has("instruction", "output"),
        _alpaca,
    ),
    "prompt_response": Format(
        "prompt, response (or completion): text or messages",
        lambda fields: fields.has("prompt", "response"),
        _prompt_response,
    ),
    "text": Format("text", lambda fields: fields.has("text"), _text),
    "prompt": Format(
        "prompt (or instruction): text or messages, without a response",
        lambda fields: fields.has("prompt") or fields.has("instruction"),
        _prompt,
        "prompt",
    ),
}


def detect(fields: Fields, kind: str | None = None) -> str | None:
    """Name of the first format that a row fits, None when there is none.

    A row without a response fits a format only for methods that read prompts alone.
    """
    return next((name for name, form in _formats_for(kind).items() if form.fits(fields)), None)


def _formats_for(kind: str | None) -> Mapping[str, Format]:
    """The formats in the order in which they are tried; for prompts alone, ``text`` comes last."""
    if _reads_prompts_alone(kind):
        return {name: FORMATS[name] for name in (*(other for other in FORMATS if other != "text"), "text")}
    return {name: form for name, form in FORMATS.items() if KINDS[form.kind].has_responses}


def _reads_prompts_alone(kind: str | None) -> bool:
    """Return whether a method ignores the rows' responses and draws its own."""
    return kind is not None and not kind_of(kind).has_responses


def used_columns(spec: DataSpec, kind: str) -> frozenset[str] | None:
    """The data's columns that rows of a kind are made from; None: all of them, for rewards that read columns."""
    if _reads_prompts_alone(kind):
        return None
    names = {*COLUMNS, *TOKEN_COLUMNS, *HELPSTEER, *(spec.attributes or ())}
    names |= {alias for group in ALIASES.values() for alias in group}
    return frozenset(columns_read(names, spec.mapped))


def unrecognised(columns: Sequence[str], kind: str | None = None, absent: str = "") -> DataError:
    """The error for data that fits no format; ``absent`` is a message about mapped columns that it lacks."""
    listed = "\n".join(f"  {name}: {form.needs}" for name, form in _formats_for(kind).items())
    return DataError(
        f"{absent}{'. ' if absent else ''}no format fits the columns {', '.join(columns) or '(none)'}. "
        f"The formats need:\n{listed}\n"
        "Map columns, e.g. data.spec.columns.prompt=question data.spec.columns.response=reply, "
        "or choose data.spec.format"
    )


def convert(
    values: Mapping[str, Any],
    spec: DataSpec,
    *,
    kind: str | None = None,
    conversation: bool = False,
    expected: str | None = None,
    unmapped: Mapping[str, str] | None = None,
) -> Record | None:
    """Convert one row.

    Args:
        values: its fields as read.
        spec: format, column map, system message and label filter.
        kind: of data that the method learns from; it decides which columns other than prompt and responses are read.
            None: none of them.
        conversation: make conversations of plain text too, because the chosen template needs them.
        expected: with ``format=auto``, the format of earlier rows, which errors of a row that fits none refer to.
        unmapped: our names of columns that a mixture maps and the row lacks, with the data's names.

    Returns:
        The record with all its responses, of the row's kind as far as the method can use it; None when the row has
        another label than ``data.spec.label``.

    Raises:
        RowError: a field is missing or has the wrong type, or the row fits no format.
    """
    fields = Fields(values, {**spec.mapped, **(unmapped or {})})
    if spec.label is not None and fields.flag("label") is not spec.label:
        return None
    name = (detect(fields, kind) or expected) if spec.format == "auto" else spec.format
    if name is None:
        raise RowError(ProblemKind.MISSING, f"no format fits its {fields.listed()}")
    prompt_alone = _reads_prompts_alone(kind) and name in _CONVERSATIONS
    record = _conversation_prompt(fields, name) if prompt_alone else FORMATS[name].convert(fields, spec)
    if fields.has("finish"):
        record = replace(record, cut_off=_cut_off(record, fields))
    if fields.has("tools"):
        record = _with_tools(record, tuple(fields.tools()))
    system = fields.text("system") if fields.has("system") else ""
    if (conversation or system) and name != "text":
        record = as_conversation(record)
    if record.conversation:
        _refuse_second_system(record, system, fields)
        record = _with_system(record, system or spec.system)
    return record if kind is None else read_for_kind(record, fields, spec, kind)


def _cut_off(record: Record, fields: Fields) -> tuple[bool, ...]:
    """Return for each response whether a length limit ended it: ``length``, or a list of two for a pair.

    Raises:
        RowError: the column has entries for another number of responses than the row has.
    """
    value = fields.get("finish")
    listed = value if isinstance(value, list) else [value]
    if "length" not in listed or not record.responses:
        return ()
    if len(listed) != len(record.responses) or not (len(listed) == 1 or KINDS[record.kind].pair):
        expected = "'stop' or 'length', or for a pair a list of both, such as ['length', 'stop']"
        raise fields.wrong("finish", expected, value)
    return tuple(finish == "length" for finish in listed)


def _with_tools(record: Record, tools: tuple[Mapping[str, Any], ...]) -> Record:
    parts = tuple(part and _with_tools(part, tools) for part in record.parts)
    return replace(record, tools=tools, parts=parts)


def _refuse_second_system(record: Record, system: str, fields: Fields) -> None:
    """Raise RowError where a row's system column and its turns have different system messages."""
    first = cast("Turns", record.prompt)[:1]
    if system and first and first[0]["role"] in ("system", "developer") and first[0]["content"] != system:
        raise RowError(
            ProblemKind.TYPE,
            f"it has a {first[0]['role']} turn and another text in {fields.column('system')!r}: remove one of them",
        )


def _with_system(record: Record, system: str | None) -> Record:
    turns = cast("Turns", record.prompt)
    if not system or (turns and turns[0]["role"] in ("system", "developer")):
        return record
    parts = tuple(part and _with_system(part, system) for part in record.parts)
    return replace(record, prompt=[say("system", system), *turns], parts=parts)


def _margin(fields: Fields) -> float | None:
    """score(chosen) - score(rejected), in the data's own units."""
    if fields.has("margin"):
        return fields.number("margin")
    if fields.has("score_chosen") or fields.has("score_rejected"):
        return fields.number("score_chosen") - fields.number("score_rejected")
    return None
