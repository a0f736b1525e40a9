"""Checks that a chat template shows all parts of a conversation.

Published templates silently leave out parts: tool calls, reasoning, turns of a role that they do not know. The parts of
a turn are searched for in the rendered text, where they nearly always appear unchanged. A part that is not there is
tested: it is replaced and the conversation is rendered again; if the text stays the same, the template does not use it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from rlhf_lightning.data.rows.messages import CALLS, REASONING, Message, Turns
from rlhf_lightning.data.rows.problems import ProblemKind, RowError

Render = Callable[[Turns], str]

#: Replacement of a part, to see whether the rendered text changes.
_PROBE = "qqprobefieldqq"
#: Separators of pieces of a turn's text, one of which a template may leave out: line breaks and tags.
_PIECES = re.compile(r"\n|</?[A-Za-z_]+>|\[/?[A-Z_]+\]")
_REASONED = "</think>"
#: Shorter texts may be in the template's text by chance.
_SHORT = 12
#: Roles that every template shows.
_SPEAKERS = ("user", "assistant")
#: Fields that need not be shown by themselves: the checks below or ``data.rows.messages`` read them.
_READ = frozenset({"role", "content", "train", *CALLS, *REASONING})


def check_response(turns: Turns, body: str, render: Render) -> None:
    """Refuse a rendering that leaves out a part of the last turn, which the model is to learn.

    Args:
        turns: the conversation up to it.
        body: text that the template renders for it.
        render: the template.

    Raises:
        RowError: its text, its reasoning or a call is not shown; the message names it.
    """
    turn = turns[-1]
    if len(turn) == 2 and turn["content"].strip() in body:  # role and content
        return
    for name, text in _texts(turn):
        if (lost := _lost(turns, len(turns) - 1, name, text, body, render)) is not None:
            raise _unshown(len(turns), turn, name, lost)
    _check_calls(turns, len(turns) - 1, render)


def check_context(turns: Turns, text: str, render: Render, asked: Collection[int] | None = None) -> int:
    """Refuse a rendering that leaves out a part of the turns before or between the responses.

    Args:
        turns: the conversation.
        text: rendered.
        render: the template.
        asked: the turns to check; None: all of them.

    Returns:
        Assistant turns whose reasoning is not shown: models that reason are trained without their earlier thoughts.

    Raises:
        RowError: a turn, its text or a call is not shown; the message names it.
    """
    hidden, start = 0, 0
    for at, turn in enumerate(turns):
        content = turn["content"].strip()
        position = text.find(content, start)
        if position >= 0:
            start = position + len(content)
        if asked is not None and at not in asked:
            continue
        if position < 0 or (turn["role"] not in _SPEAKERS and len(content) < _SHORT):
            # a text at another position, or a short one, may be another turn's
            hidden += _check_text(turns, at, "content", turn["content"], "" if content in text else text, render)
        for name, value in _texts(turn):
            if name != "content":
                hidden += _check_text(turns, at, name, value, text, render)
        _check_calls(turns, at, render)
    return hidden


def check_tools(tools: Sequence[Mapping[str, Any]], text: str, without: str) -> None:
    """Refuse a rendering that does not show the tools of a conversation.

    Args:
        tools: of the row.
        text: rendered with them.
        without: rendered without them.

    Raises:
        RowError: the text is the same, or a tool's name is not in it.
    """
    names = [str(_inside(tool).get("name", "")) for tool in tools]
    lost = names if text == without else [name for name in names if name not in text]
    if lost:
        raise RowError(
            ProblemKind.TEMPLATE,
            f"the template does not show the row's tools ({', '.join(lost)}): choose a data.spec.template that does, "
            "or ignore them with data.spec.columns.tools=-",
        )


def unread_fields(turns: Turns, source: str) -> set[str]:
    """Fields of the turns beside their text and calls that a template's source does not mention."""
    return {name for turn in turns for name in turn.keys() - _READ if name not in source}


def _texts(turn: Message) -> Iterator[tuple[str, str]]:
    """The fields of a turn that are text."""
    for name in ("content", *REASONING):
        if isinstance(value := turn.get(name), str) and value.strip():
            yield name, value


def _check_text(turns: Turns, at: int, name: str, text: str, shown: str, render: Render) -> int:
    """Refuse a text that is not shown; 1 where only reasoning is not."""
    turn = turns[at]
    if turn["role"] != "assistant":
        required, optional = text, ""
    elif name == "content":
        optional, _, required = text.rpartition(_REASONED)
    else:
        required, optional = "", text
    if (lost := _lost(turns, at, name, required, shown, render)) is not None:
        raise _unshown(at + 1, turn, name, lost)
    return int(_lost(turns, at, name, optional, shown, render) is not None)


def _lost(turns: Turns, at: int, name: str, text: str, shown: str, render: Render) -> str | None:
    """The first piece of a text that the template does not use; None when all of it is shown."""
    if not text.strip() or (shown and text.strip() in shown):
        return None
    whole: str | None = None
    for piece in dict.fromkeys(part.strip() for part in _PIECES.split(text)):
        if not piece or (shown and piece in shown):
            continue
        whole = render(turns) if whole is None else whole
        changed = _with(turns, at, name, turns[at][name].replace(piece, _PROBE))
        if render(changed) == whole:
            return piece
    return None


def _check_calls(turns: Turns, at: int, render: Render) -> None:
    """Refuse calls of which the template leaves out a name or the arguments."""
    turn = turns[at]
    for name in CALLS:
        if not (value := turn.get(name)):
            continue
        calls = value if isinstance(value, list) else [value]
        whole = render(turns)
        for number, call in enumerate(calls):
            for part, changed in _changed(call):
                other = [*calls[:number], changed, *calls[number + 1 :]] if isinstance(value, list) else changed
                if render(_with(turns, at, name, other)) == whole:
                    raise _unshown(at + 1, turn, name, f"{part} {_inside(call).get(part)}")


def _changed(call: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A call with another name, and with other arguments where it has some."""
    inside = _inside(call)
    for part in ("name", "arguments"):
        if not (value := inside.get(part)) or value == "{}":
            continue
        other = {**inside, part: _PROBE if part == "name" else _other_values(value)}
        yield part, {**call, "function": other} if "function" in call else other


def _other_values(arguments: Any) -> Any:
    """Arguments, or their JSON text, with a probe for each value."""
    if isinstance(arguments, Mapping):
        return dict.fromkeys(arguments, _PROBE)
    try:
        parsed = json.loads(arguments) if isinstance(arguments, str) else None
    except (ValueError, RecursionError):
        parsed = None
    return json.dumps(dict.fromkeys(parsed, _PROBE)) if isinstance(parsed, Mapping) else _PROBE


def _inside(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a tool, or of a call, that has its name: the object itself or its ``function``."""
    function = call.get("function")
    return function if isinstance(function, Mapping) else call


def _with(turns: Turns, at: int, name: str, value: Any) -> Turns:
    return [*turns[:at], {**turns[at], name: value}, *turns[at + 1 :]]


def _unshown(number: int, turn: Message, name: str, lost: str) -> RowError:
    what = "" if name == "content" else f" {name!r} of"
    return RowError(
        ProblemKind.TEMPLATE,
        f"the template does not show{what} turn {number} ({turn['role']}): {lost[:60]!r} is not in what it renders. "
        "Choose a data.spec.template (or data.spec.template_arguments) that shows it, or remove it from the row",
    )
