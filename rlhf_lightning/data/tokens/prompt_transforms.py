"""Prompt transforms, which make the model's prompt of a conversation: their protocol, and their use on rows.

A prompt transform is a function of turns (``PromptTransform = Turns -> Turns``) with a few attributes. Rows of data,
``rlhf generate``, evaluations and rollouts all use it, so the model sees the same prompt everywhere. The transforms
themselves are in :mod:`rlhf_lightning.prompting`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast, runtime_checkable

from rlhf_lightning.data.rows.messages import Turns
from rlhf_lightning.data.rows.problems import ProblemKind, RowError
from rlhf_lightning.data.rows.records import Record, say
from rlhf_lightning.types import PromptForm


@runtime_checkable
class PromptTransform(Protocol):
    """A function from turns to turns; the same turns always give the same result.

    Attributes:
        plain: the result is one turn of text that no chat template renders.
        closing: text behind a response of the data that closes what the transform opens (a code fence).
        form: properties of the prompts that generation needs.
    """

    plain: bool

    @property
    def closing(self) -> str:
        """See above."""
        ...

    @property
    def form(self) -> PromptForm:
        """See above."""
        ...

    def __call__(self, turns: Turns) -> Turns:
        """Return the turns that the model gets instead of these.

        Raises:
            RowError: these turns have no such prompt.
        """
        ...

    def begin(self, tokenizer: Any) -> None:
        """Take the tokenizer of the model that reads the prompts; called before the first turns."""
        ...

    def prepare(self, conversations: Sequence[Turns]) -> None:
        """Take conversations that will be transformed later, for a transform that is faster with many at once."""
        ...

    def content(self) -> Mapping[str, Any]:
        """Everything that determines its result, files by their content: part of the keys of caches."""
        ...


def form_of(transform: PromptTransform | None, tokenizer: Any) -> PromptForm:
    """The form of the prompts under a transform; an empty one without."""
    if transform is None:
        return PromptForm()
    transform.begin(tokenizer)
    return transform.form


def turns_in(record: Record) -> Turns:
    """The prompt of a record as turns; text is the user's."""
    return [say("user", record.prompt)] if isinstance(record.prompt, str) else record.prompt


def changed(record: Record, transform: PromptTransform) -> Record:
    """A record with another prompt, and with responses that continue it.

    Raises:
        RowError: the record has no such prompt, or shows its responses in another way than the transform does.
    """
    if any(part is not None and part.prompt != record.prompt for part in record.parts):
        raise RowError(
            ProblemKind.TYPE,
            "prompting=... changes the prompt of a row, and this row makes several: set prompting=none",
        )
    if record.parts:
        return replace(
            changed(replace(record, parts=()), transform),
            parts=tuple(part and changed(part, transform) for part in record.parts),
        )
    turns = transform(turns_in(record))
    if transform.plain:
        return _plain(record, turns[-1]["content"], transform.closing)
    if record.conversation:
        return replace(record, prompt=turns, continued=record.continued or turns[-1]["role"] == "assistant")
    if len(turns) != 1:
        raise RowError(
            ProblemKind.TYPE, "prompting=... makes several turns of this prompt of plain text: set data.spec.template"
        )
    return replace(record, prompt=turns[0]["content"])


def _plain(record: Record, prompt: str, closing: str) -> Record:
    """A record of text: a conversation's only turn is its text."""
    if record.tools or record.steps:
        what = "tools" if record.tools else "labelled steps"
        raise RowError(
            ProblemKind.TEMPLATE, f"prompting=... makes a prompt without a chat template, which shows no {what}"
        )
    responses = []
    for at, response in enumerate(record.responses):
        turns = response if not isinstance(response, str) else [say("assistant", response)]
        if len(turns) != 1:
            raise RowError(
                ProblemKind.TEMPLATE,
                f"prompting=... makes a prompt without a chat template, and the response has {len(turns)} turns: score "
                "the last one alone with data.spec.mask=response",
            )
        end = "" if record.cut_off[at : at + 1] == (True,) else closing
        responses.append(cast("str", turns[0]["content"]) + end)
    return replace(record, prompt=prompt, responses=tuple(responses), continued=False)


def prompt_text(turns: Turns, template: Any) -> str:
    """Text of some turns as a model's input; a response that they begin is continued.

    Args:
        turns: of a conversation.
        template: a chat template; None: the last turn's text is all.
    """
    if template is None:
        return str(turns[-1]["content"])
    begun = turns[-1]["content"] if turns[-1]["role"] == "assistant" else ""
    return str(template.prompt(turns[:-1] if begun else turns)) + begun
