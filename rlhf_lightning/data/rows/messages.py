"""Messages of data sets in one spelling: ``role``, ``content`` and other fields that a template may show.

A turn that must not be scored (``weight: 0``, ``train: false`` and similar flags) has ``train: false`` here; no other
turn has such a field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_lightning.data.rows.problems import ProblemKind, RowError

Message = dict[str, Any]
Turns = list[Message]

#: Role names of data sets -> the names that chat templates know.
ROLES: Mapping[str, str] = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "ipython": "tool",
}
#: Fields that decide whether a turn is scored, and whether true means that it is.
_FLAGS: Mapping[str, bool] = {
    "weight": True,  # OpenAI, Mistral
    "train": True,  # Axolotl's ShareGPT
    "training": True,  # Axolotl
    "trainable": True,
    "loss": True,  # SWIFT, XTuner
    "masked": False,  # torchtune
}
#: A field that lists the characters of a turn that are scored.
_PARTIAL = "train_detail"
_VALUES = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
#: Fields that are part of a turn's message, instead of ``content`` or in addition to it.
REASONING = ("reasoning_content", "reasoning", "thinking")
CALLS = ("tool_calls", "function_call")
_MESSAGES_TEXT = re.compile(r"""\s*\[?\s*\{\s*(["'])(?:role|content|from|value)\1\s*:""")
_ROLE_TEXT, _CONTENT_TEXT = (
    re.compile(r"""(["'])(?:role|from)\1\s*:"""),
    re.compile(r"""(["'])(?:content|value)\1\s*:"""),
)


def in_loss(turn: Message) -> bool:
    """Return whether the model learns to write a turn of a response."""
    return turn["role"] == "assistant" and turn.get("train", True) is not False


def is_empty(turn: Message) -> bool:
    """Return whether a turn has no text, no calls and no reasoning."""
    return not turn["content"].strip() and not any(turn.get(name) for name in (*CALLS, *REASONING))


def messages_in(text: str, column: str) -> Any:
    """Parse messages that are stored as JSON text; return any other text as it is.

    Args:
        text: a cell of a column that may hold messages.
        column: the data's name of it.

    Raises:
        RowError: the text begins like messages but is not JSON.
    """
    if _MESSAGES_TEXT.match(text) is None or not (_ROLE_TEXT.search(text) and _CONTENT_TEXT.search(text)):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(
            ProblemKind.TYPE, f"{column!r} holds messages as text that is not JSON ({error}): store a list, or JSON"
        ) from error
    listed = value if isinstance(value, list) else [value]
    return value if all(isinstance(part, Mapping) and ("role" in part or "from" in part) for part in listed) else text


def turns_of(value: Any, column: str) -> Turns:
    """A list of messages, or one message, in either spelling.

    Args:
        value: of a cell.
        column: the data's name of it.

    Raises:
        RowError: it holds something else. The message has the number of the turn, from 1.
    """
    messages = [value] if isinstance(value, Mapping) else value
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence) or not messages:
        raise RowError(ProblemKind.TYPE, f"{column!r} must be a list of messages, not {shown(value)}")
    return [_message(message, f"turn {number} of {column!r}") for number, message in enumerate(messages, start=1)]


def shown(value: Any) -> str:
    """A value for an error message: its type and its first characters."""
    try:
        text = str(value)[:40]
    except (ValueError, ArithmeticError, RecursionError):  # an integer of thousands of digits, a value inside itself
        text = "..."
    return f"{type(value).__name__} {text!r}"


def _message(message: Any, name: str) -> Message:
    if isinstance(message, str):
        message = messages_in(message, name)
    if not isinstance(message, Mapping):
        raise RowError(
            ProblemKind.TYPE, f"{name} must be a message (an object with role and content), not {shown(message)}"
        )
    spelt = ("from", "value") if "from" in message else ("role", "content")
    role, content = (message.get(key) for key in spelt)
    if not isinstance(role, str) or role not in ROLES:
        unknown = repr(role) if isinstance(role, str) else shown(role)
        raise RowError(ProblemKind.TYPE, f"{name} has the unknown role {unknown}; supported: {', '.join(ROLES)}")
    # Arrow tables fill fields that a message does not have with nulls; a template must not see them.
    others = {key: value for key, value in message.items() if key not in spelt and value is not None}
    calls = _calls(others, name)
    if content is None and (calls or any(others.get(key) for key in REASONING)):
        content = ""
    if isinstance(content, list):  # content parts; only text ones can be used
        content = "".join(part["text"] for part in content) if all(map(_is_text_part, content)) else None
    if not isinstance(content, str):
        raise RowError(ProblemKind.TYPE, f"{name} must have text as its content, not {shown(message.get(spelt[1]))}")
    train = _trained(others, ROLES[role], name)
    kept = {key: value for key, value in others.items() if key not in _FLAGS and key not in CALLS}
    return {**kept, **calls, "role": ROLES[role], "content": content} | ({} if train else {"train": False})


def _calls(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The calls of a turn, parsed where they are JSON text; empty ones are left out."""
    made = {}
    for key in CALLS:
        value = fields.get(key)
        if isinstance(value, str) and value.strip():
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise RowError(ProblemKind.TYPE, f"{key!r} of {name} is text, but not JSON: {error}") from error
        if value:
            made[key] = value
    listed = made.get("tool_calls", [])
    if not isinstance(listed, Sequence) or not all(isinstance(call, Mapping) for call in listed):
        raise RowError(ProblemKind.TYPE, f"'tool_calls' of {name} must be a list of objects, not {shown(listed)}")
    return made


def _trained(fields: Mapping[str, Any], role: str, name: str) -> bool:
    """Return whether a turn's flags allow scoring it; only the assistant's turns are ever scored.

    Raises:
        RowError: a flag is neither true nor false, contradicts another one, or asks to score a turn of another role.
    """
    if fields.get(_PARTIAL):
        raise RowError(
            ProblemKind.TYPE, f"{_PARTIAL!r} of {name} asks to score a part of a turn, which is not supported"
        )
    flags = {}
    for key in _FLAGS.keys() & fields.keys():
        value = _VALUES.get(str(fields[key]).lower())
        if value is None:
            raise RowError(
                ProblemKind.TYPE,
                f"{key!r} of {name} must be 0 or 1 (false or true), since a turn is scored as a whole or not at "
                f"all, not {shown(fields[key])}",
            )
        flags[key] = value is _FLAGS[key]
    if len(set(flags.values())) > 1:
        raise RowError(ProblemKind.TYPE, f"{' and '.join(sorted(flags))} of {name} contradict each other")
    train = all(flags.values())
    if flags and train and role != "assistant":
        raise RowError(
            ProblemKind.TYPE,
            f"{', '.join(map(repr, sorted(flags)))} of {name} asks to score a turn of role {role}; only "
            "the assistant's turns are scored",
        )
    return train


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
