"""Converted rows: one shape for every layout, with text or messages and no tokens yet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlhf_lightning.data.rows.fields import Fields
from rlhf_lightning.data.rows.file_readers import Unreadable
from rlhf_lightning.data.rows.messages import Message, Turns
from rlhf_lightning.data.rows.problems import ProblemKind, RowError, lone_surrogate


@dataclass(frozen=True, slots=True)
class Record:
    """A converted row. Text throughout (prompt and responses are strings) or a conversation throughout (messages)."""

    prompt: str | Turns
    responses: tuple[str | Turns, ...]  #: the best one first: chosen before rejected, lists by falling score
    format: str
    margin: float | None = None
    kind: str = "supervised"  #: of the row itself, a key of ``kinds.KINDS``
    #: One number a response by name (``score``, ``desirable``, ``safe``, ``attribute:<name>``).
    numbers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    #: Of a group with several prompts: for each a record of one response, None for a slot that this row does not fill.
    parts: tuple[Record | None, ...] = ()
    #: The only response as steps, each with its label; ``responses`` then holds the whole of it.
    steps: tuple[tuple[str, float], ...] = ()
    #: Characters that ``data.spec.prompt_start`` and ``prompt_end`` left out of the prompt.
    cut: int = 0
    #: The prompt ends with the beginning of an assistant turn, which the responses continue.
    continued: bool = False
    tools: tuple[Mapping[str, Any], ...] = ()  #: that the conversation may call
    #: Of each response, whether a length limit ended it, so that it gets no EOS; () where none was.
    cut_off: tuple[bool, ...] = ()

    @property
    def conversation(self) -> bool:
        """Return whether prompt and responses are messages."""
        return not isinstance(self.prompt, str)


def say(role: str, content: str) -> Message:
    """One turn."""
    return {"role": role, "content": content}


def uniform(prompt: str | Turns, responses: tuple[str | Turns, ...], name: str, kind: str = "supervised") -> Record:
    """A record that is all text or all messages: where one part is messages, texts become turns."""
    record = Record(prompt, responses, name, kind=kind, continued=begins_response(prompt))
    return record if all(isinstance(part, str) for part in (prompt, *responses)) else as_conversation(record)


def begins_response(prompt: str | Turns) -> bool:
    """Return whether a prompt column ends with an assistant turn, which is then the beginning of a response."""
    return not isinstance(prompt, str) and prompt[-1]["role"] == "assistant"


def as_conversation(record: Record) -> Record:
    """Text parts as turns: the prompt is the user's, a response the assistant's.

    Raises:
        RowError: a response does not start and end with an assistant turn.
    """
    prompt = [say("user", record.prompt)] if isinstance(record.prompt, str) else record.prompt
    responses = tuple(
        [say("assistant", response)] if isinstance(response, str) else response for response in record.responses
    )
    for response in responses:
        if response[0]["role"] != "assistant" or response[-1]["role"] != "assistant":
            raise RowError(ProblemKind.TYPE, "a response must start and end with an assistant turn")
    parts = tuple(part and as_conversation(part) for part in record.parts)
    return replace(record, prompt=prompt, responses=responses, parts=parts)


def instruction_of(fields: Fields) -> Turns:
    """Alpaca's prompt columns as a conversation: history pairs, then instruction and input in one user turn."""
    turns: Turns = []
    history = fields.get("history") or []
    if not isinstance(history, Sequence):
        raise fields.wrong("history", "pairs of texts (user, assistant)", history)
    for exchange in history:
        if not isinstance(exchange, Sequence) or [type(text) for text in exchange] != [str, str]:
            raise fields.wrong("history", "pairs of texts (user, assistant)", exchange)
        turns += [say("user", exchange[0]), say("assistant", exchange[1])]
    instruction = fields.text("instruction")
    context = fields.text("input") if fields.has("input") else ""
    return [*turns, say("user", f"{instruction}\n{context}" if context else instruction)]


def context_of(fields: Fields) -> str | Turns:
    """The prompt of several responses, from whichever column holds it."""
    if fields.has("conversations"):
        return fields.turns("conversations")
    if not fields.has("prompt") and fields.has("messages"):
        return fields.turns("messages")
    if not fields.has("prompt") and fields.has("instruction"):
        return instruction_of(fields)
    return fields.either("prompt")


def as_json(values: Mapping[str, Any]) -> tuple[str, list[str]]:
    """A row's columns as a JSON object, and the names of columns that JSON cannot hold and that are left out.

    Dates and similar values are not JSON; data for a reward that needs them should store them as text.

    Raises:
        RowError: a column holds text that is not valid Unicode.
    """
    kept: dict[str, str] = {}
    lost = []
    for name, value in values.items():
        if isinstance(value, Unreadable):
            raise RowError(ProblemKind.BROKEN, f"{str(name)!r}: {value.reason}")
        try:
            kept[str(name)] = json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            lost.append(str(name))
            continue
        if (half := lone_surrogate(kept[str(name)])) or (half := lone_surrogate(str(name))):
            raise RowError(
                ProblemKind.BROKEN, f"{str(name)!r} holds {half}, half of a surrogate pair, so it is not valid Unicode"
            )
    return "{" + ", ".join(f"{json.dumps(name, ensure_ascii=False)}: {text}" for name, text in kept.items()) + "}", lost
