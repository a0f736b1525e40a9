"""Conversations as a chat template renders them, with the characters of the text that are scored.

Masks come from rendering growing prefixes of the conversation, never from generation markers, which most published
templates lack: the text that ``render(turns[:k + 1])`` adds to ``render(turns[:k])`` *with* a generation prompt is the
text that the model has to write at turn k.

The end of a scored turn. A template closes an assistant turn with a text such as ``<|im_end|>`` + line break. Up to and
including its first special token the closing text is scored, because the model must write it to stop; the rest (the
line break) is left out after the last turn and unscored inside a conversation: at inference generation has stopped
before it. Where a template closes a turn without a special token, the tokenizer's EOS is appended to the last turn.

The end of a prompt. It is behind the generation prompt, or behind the beginning of an assistant turn that the prompt
ends with. Where a template shows the first response differently once others follow (an empty thought in the generation
prompt), the prompt ends before the generation prompt, and only turns that appear as the model writes them are scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from rlhf_lightning.data.rows.messages import CALLS, Message, Turns, in_loss
from rlhf_lightning.data.rows.problems import ProblemKind, RowError
from rlhf_lightning.data.rows.records import Record
from rlhf_lightning.data.tokens.template_coverage import check_context, check_response, check_tools, unread_fields

Segment = tuple[str, bool]  #: text, and whether it is scored
Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A record as text."""

    prompt: str
    responses: list[list[Segment]]
    #: For each response: it needs no EOS, since it ends with the template's end-of-turn token or was cut.
    closed: list[bool]
    templated: bool  #: rendered by a chat template with special tokens, not as plain text
    unscored_turns: int = 0  #: assistant turns the template shows differently once others follow
    conversation: bool = False  #: rendered by a chat template
    hidden_reasoning: int = 0  #: assistant turns before the last one whose reasoning the template leaves out
    unread: frozenset[str] = frozenset()  #: fields of the turns that the template does not know


class Template(Protocol):
    """Layout and functions of a chat template."""

    ending: str  #: text that closes a response, up to its first special token
    tail: str  #: text behind it
    end_token: str | None
    brings_bos: bool

    @property
    def text(self) -> str:
        """Jinja source."""

    def render(self, turns: Turns, *, generation: bool = False, tools: Tools = ()) -> str:
        """The text of some turns."""

    def prompt(self, turns: Turns, tools: Tools = ()) -> str:
        """The text of some turns and the generation prompt."""


class _RewrittenPromptError(RowError):
    """The template shows the prompt differently when later turns follow."""


class Conversation:
    """A record of messages under a chat template."""

    def __init__(self, template: Template, record: Record) -> None:
        """Split the prompt from the beginning of a response at its end, if there is one.

        Raises:
            RowError: that beginning calls tools.
        """
        self.template, self.tools, self.cut_off = template, record.tools, record.cut_off
        turns = cast("Turns", record.prompt)
        begun = turns[-1] if record.continued and turns and turns[-1]["role"] == "assistant" else None
        if begun is not None and any(begun.get(name) for name in CALLS):
            raise RowError(ProblemKind.TEMPLATE, "the prompt ends with a tool call, which a response cannot continue")
        self.context: Turns = turns if begun is None else turns[:-1]
        self.begun = begun
        self.responses = [_continued(begun, turns) for turns in cast("Sequence[Turns]", record.responses)]

    def rendered(self) -> Rendered:
        """The text of prompt and responses.

        Raises:
            RowError: the template refuses the turns, leaves out a part of them, or shows the prompt differently once a
                response follows.
        """
        template, prompt = self.template, self._opening()
        start = prompt
        try:
            made = [self._response(start, prompt, turns) for turns in self.responses]
        except _RewrittenPromptError:
            start = self._text(self.context)
            if not prompt.startswith(start):
                raise
            made = [self._response(start, prompt, turns) for turns in self.responses]
        closed = [template.end_token is not None and part.segments[-1][0].endswith(template.ending) for part in made]
        for at, part in enumerate(made):
            if self.cut_off[at : at + 1] == (True,):
                part.reopen(template.ending)
                closed[at] = True
        turns = [*self.context, *([] if self.begun is None else [self.begun])]
        everything = [*turns, *(turn for response in self.responses for turn in response)]
        hidden = check_context(turns, prompt, self._text)
        return Rendered(
            start,
            [part.segments for part in made],
            closed,
            template.brings_bos,
            sum(part.unscored for part in made),
            conversation=True,
            hidden_reasoning=hidden + sum(part.hidden for part in made),
            unread=frozenset(unread_fields(everything, template.text)),
        )

    def _text(self, turns: Turns) -> str:
        return self.template.render(turns, tools=self.tools)

    def _opening(self) -> str:
        """The model's input: the prompt with the generation prompt, and the beginning of the response if any."""
        begun = "" if self.begun is None else self.begun["content"]
        text = self.template.prompt(self.context, self.tools) + begun
        if self.begun is not None and not self._text([*self.context, self.begun]).startswith(text):
            raise RowError(ProblemKind.TEMPLATE, "the template changes the assistant turn that the prompt ends with")
        if self.tools:
            check_tools(self.tools, text, self.template.prompt(self.context) + begun)
        return text

    def _response(self, start: str, prompt: str, turns: Turns) -> _Response:
        """The text that follows ``start``, which is the prompt or the part of it before the generation prompt."""
        made = _Response(start, prompt)
        for k, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            so_far = [*self.context, *turns[: k + 1]]
            if k:
                made.show(self.template.prompt(so_far[:-1], self.tools))
            full = self._text(so_far)
            if not full.startswith(made.text):
                raise RowError(
                    ProblemKind.TEMPLATE, "the template shows the prompt differently when a response follows"
                )
            body = full[len(made.text) :].removesuffix(self.template.tail)
            if in_loss(turn):
                begun = self.begun["content"] if self.begun is not None and not k else ""
                check_response(so_far, begun + body, self._text)
            made.write(body, counts=in_loss(turn))
        whole = [*self.context, *turns]
        others = [at for at, turn in enumerate(whole) if at >= len(self.context) and not in_loss(turn)]
        if others:
            made.hidden = check_context(whole, made.text, self._text, others)
        return made


class _Response:
    """The text of a response under construction."""

    def __init__(self, start: str, prompt: str) -> None:
        self.start, self.text = start, prompt
        self.segments: list[Segment] = [(prompt[len(start) :], False)] if prompt != start else []
        self.unscored = self.hidden = 0

    def show(self, shown: str) -> None:
        """Append the model's input before its next turn; ``shown`` is all of it, from the beginning.

        Raises:
            RowError: it does not begin with the prompt.
        """
        if not shown.startswith(self.start):
            raise _RewrittenPromptError(
                ProblemKind.TEMPLATE, "the template shows the prompt differently when later turns follow"
            )
        if shown.startswith(self.text):
            self.segments.append((shown[len(self.text) :], False))
        else:  # the template rewrites history: earlier responses are shown, but not as the model writes them
            self.unscored += sum(counts for _, counts in self.segments)
            self.segments = [(shown[len(self.start) :], False)]
        self.text = shown

    def write(self, body: str, *, counts: bool) -> None:
        """Append a turn of the assistant, scored where it ``counts``."""
        self.segments.append((body, counts))
        self.text += body

    def reopen(self, ending: str) -> None:
        """Remove the closing text of the last turn, which was cut off before it."""
        body, counts = self.segments[-1]
        self.segments[-1] = (body.removesuffix(ending), counts)


def _continued(begun: Message | None, turns: Turns) -> Turns:
    """A response whose first turn begins in the prompt."""
    if begun is None:
        return turns
    beginning = {name: value for name, value in begun.items() if name != "train"}
    return [{**beginning, **turns[0], "content": begun["content"] + turns[0]["content"]}, *turns[1:]]
