"""Messages as data sets write them, brought to one spelling: ``role``, ``content`` and what else a template may show.

A turn that must not be scored (``weight: 0``, ``train: false`` and their relatives) has ``train: false`` here, every
other turn no such field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_lightning.data.rows.problems import Kind, RowError

Message = dict[str, Any]
Turns = list[Message]

#: Role names in the wild -> the names that chat templates know.
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
#: Fields that say whether a turn is scored, and whether true means that it is.
_FLAGS: Mapping[str, bool] = {
    "weight": True,  # OpenAI, Mistral
    "train": True,  # Axolotl's ShareGPT
    "training": True,  # Axolotl
    "trainable": True,
    "loss": True,  # SWIFT, XTuner
    "masked": False,  # torchtune
}
#: A part of a turn only: which characters of it are scored.
_PARTIAL = "train_detail"
_VALUES = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
#: Fields of a turn that are what it says, in place of ``content`` or beside it.
REASONING = ("reasoning_content", "reasoning", "thinking")
CALLS = ("tool_calls", "function_call")
_MESSAGES_TEXT = re.compile(r"""\s*\[?\s*\{\s*(["'])(?:role|content|from|value)\1\s*:""")
_ROLE_TEXT, _CONTENT_TEXT = (
    re.compile(r"""(["'])(?:role|from)\1\s*:"""),
    re.compile(r"""(["'])(?:content|value)\1\s*:"""),
)


def scored(turn: Message) -> bool:
    """Whether a turn of a response is one that the model learns to write."""
    return turn["role"] == "assistant" and turn.get("train", True) is not False


def says_nothing(turn: Message) -> bool:
    """Whether a turn has neither text nor calls nor reasoning."""
    return not turn["content"].strip() and not any(turn.get(name) for name in (*CALLS, *REASONING))


def messages_in(text: str, column: str) -> Any:
    """Messages that are written as JSON text; the text itself where it is none of that kind.

    Args:
        text: a cell of a column that may hold messages.
        column: the data's name of it.

    Raises:
        RowError: the text begins as messages do and is no JSON.
    """
    if _MESSAGES_TEXT.match(text) is None or not (_ROLE_TEXT.search(text) and _CONTENT_TEXT.search(text)):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(
            Kind.TYPE, f"{column!r} holds messages as text, and the text is no JSON ({error}): store a list, or JSON"
        ) from error
    listed = value if isinstance(value, list) else [value]
    return value if all(isinstance(part, Mapping) and ("role" in part or "from" in part) for part in listed) else text


def turns_of(value: Any, column: str) -> Turns:
    """A list of messages, or one message, in either spelling.

    Args:
        value: of a cell.
        column: the data's name of it.

    Raises:
        RowError: it holds something else. The message says which turn, from 1.
    """
    messages = [value] if isinstance(value, Mapping) else value
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence) or not messages:
        raise RowError(Kind.TYPE, f"{column!r} must be a list of messages, not {shown(value)}")
    return [_message(message, f"turn {number} of {column!r}") for number, message in enumerate(messages, start=1)]


def shown(value: Any) -> str:
    """A value in an error message: its type and how it begins."""
    try:
        text = str(value)[:40]
    except (ValueError, ArithmeticError, RecursionError):  # an integer of thousands of digits, a value inside itself
        text = "..."
    return f"{type(value).__name__} {text!r}"


def _message(message: Any, name: str) -> Message:
    if isinstance(message, str):
        message = messages_in(message, name)
    if not isinstance(message, Mapping):
        raise RowError(Kind.TYPE, f"{name} must be a message (an object with role and content), not {shown(message)}")
    spelt = ("from", "value") if "from" in message else ("role", "content")
    role, content = (message.get(key) for key in spelt)
    if not isinstance(role, str) or role not in ROLES:
        unknown = repr(role) if isinstance(role, str) else shown(role)
        raise RowError(Kind.TYPE, f"{name} is of role {unknown}; known: {', '.join(ROLES)}")
    # Arrow tables fill fields that a message does not have with nulls; a template must not see them.
    others = {key: value for key, value in message.items() if key not in spelt and value is not None}
    calls = _calls(others, name)
    if content is None and (calls or any(others.get(key) for key in REASONING)):
        content = ""
    if isinstance(content, list):  # content parts; only text ones can be used
        content = "".join(part["text"] for part in content) if all(map(_is_text_part, content)) else None
    if not isinstance(content, str):
        raise RowError(Kind.TYPE, f"{name} must have text as its content, not {shown(message.get(spelt[1]))}")
    train = _trained(others, ROLES[role], name)
    kept = {key: value for key, value in others.items() if key not in _FLAGS and key not in CALLS}
    return {**kept, **calls, "role": ROLES[role], "content": content} | ({} if train else {"train": False})


def _calls(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The calls of a turn, parsed where they are JSON text; empty ones are none."""
    made = {}
    for key in CALLS:
        value = fields.get(key)
        if isinstance(value, str) and value.strip():
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise RowError(Kind.TYPE, f"{key!r} of {name} is text and no JSON: {error}") from error
        if value:
            made[key] = value
    listed = made.get("tool_calls", [])
    if not isinstance(listed, Sequence) or not all(isinstance(call, Mapping) for call in listed):
        raise RowError(Kind.TYPE, f"'tool_calls' of {name} must be a list of objects, not {shown(listed)}")
    return made


def _trained(fields: Mapping[str, Any], role: str, name: str) -> bool:
    """Whether a turn may be scored, as its flags say; turns of others never are.

    Raises:
        RowError: a flag is no yes or no, contradicts another one, or asks to score somebody else's turn.
    """
    if fields.get(_PARTIAL):
        raise RowError(Kind.TYPE, f"{_PARTIAL!r} of {name} asks to score a part of a turn, which is not supported")
    flags = {}
    for key in _FLAGS.keys() & fields.keys():
        value = _VALUES.get(str(fields[key]).lower())
        if value is None:
            raise RowError(
                Kind.TYPE,
                f"{key!r} of {name} must be 0 or 1 (false or true), since a turn is scored or not, not "
                f"{shown(fields[key])}",
            )
        flags[key] = value is _FLAGS[key]
    if len(set(flags.values())) > 1:
        raise RowError(Kind.TYPE, f"{' and '.join(sorted(flags))} of {name} contradict each other")
    train = all(flags.values())
    if flags and train and role != "assistant":
        raise RowError(
            Kind.TYPE,
            f"{', '.join(map(repr, sorted(flags)))} of {name} asks to score a turn of the role {role}; only "
            "the assistant's turns are scored",
        )
    return train


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
